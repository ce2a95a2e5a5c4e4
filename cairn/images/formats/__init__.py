"""One file a format, imported when asked for; the table is `cairn.images.OPENERS`."""
