"""The site's read-only page, for its own people, on its own machine."""
