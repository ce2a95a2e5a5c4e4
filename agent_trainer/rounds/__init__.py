"""Training rounds over Flower: the apps, the pinned insides, and the two trainer processes."""
