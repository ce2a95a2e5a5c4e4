"""Labelled images of a site: what the algorithms that classify learn from."""
