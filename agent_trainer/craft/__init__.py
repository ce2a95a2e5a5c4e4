"""The craft of medical deep learning, thin over MONAI: what any trainer here may draw from by its settings."""
