"""Choosing tokens, and the text that comes of them."""
