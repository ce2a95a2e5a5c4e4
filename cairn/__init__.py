"""What every party of a Cairn federation must agree on, byte for byte."""

__version__ = "0.1.0"
