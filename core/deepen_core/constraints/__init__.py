"""Grammars that constrain answers."""
