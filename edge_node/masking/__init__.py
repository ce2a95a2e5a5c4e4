"""This site's side of masked sums: what it must remember of them, whom it sums with, and its steps."""
