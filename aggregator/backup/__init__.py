"""Copies of a whole aggregator: made while it serves, and put back into an empty folder."""
