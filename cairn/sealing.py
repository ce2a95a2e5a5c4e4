"""Files that only their key opens: envelope encryption in chunks, so that what is larger than memory streams."""
