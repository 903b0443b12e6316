"""imgray: distributed batch processing of images on Ray."""

__version__ = "0.1.0"
