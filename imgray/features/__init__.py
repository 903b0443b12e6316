"""Features: networks as extractors, their weights, and the features of an image."""
