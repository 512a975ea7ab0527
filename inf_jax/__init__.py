"""Training code for instruction-following retrieval."""

__version__ = "0.1.0"
