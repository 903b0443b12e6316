"""Synthesis of pictures: translation of one domain into another, the thesis' chapter 7."""
