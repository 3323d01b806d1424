"""Tokenizers, vocabularies, and the re-tokenisation of a growing text."""
