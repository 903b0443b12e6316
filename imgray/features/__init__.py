"""Features: networks and text encoders as extractors, their weights, and what they give."""
