"""Tokenizers and vocabularies, and text that is encoded anew as it grows."""
