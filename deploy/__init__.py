"""Setting the programs up: the demo federation and its data."""
