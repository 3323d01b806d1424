"""Measures on given tasks what an ensemble is worth against each of its members."""
