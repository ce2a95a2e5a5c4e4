"""Scenes: images with a landmark to search, from landmark files, from label images of Part A, or made."""
