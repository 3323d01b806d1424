"""Choosing tokens, and turning them into text."""
