"""A trained model as files for others: weights that say what they are, a model card, ONNX that computes the same."""
