"""Synthesis of pictures: translation of domains and swapping of clothes, chapters 7 and 8."""
