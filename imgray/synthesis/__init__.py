"""Synthesis (thesis chapters 7 and 8): pictures of one domain translated into another."""
