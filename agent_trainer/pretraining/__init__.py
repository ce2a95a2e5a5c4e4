"""Self-supervised pre-training: an encoder learned from images without labels, for networks that then learn more."""
