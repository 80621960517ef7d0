"""Find where an object is from classification scores alone, on a Ray cluster."""

__version__ = "0.1.0"
