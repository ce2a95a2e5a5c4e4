"""Masked sums: the sessions of secure aggregation, what sites send in them, and the sum that comes out."""
