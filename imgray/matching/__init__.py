"""Matching of images and texts: the thesis' chapters 5 and 6, and closed forms to compare with."""
