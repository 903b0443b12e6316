"""Data: pixels from bytes, labelled data sets, and built-in pictures."""
