"""Conversations in the form that each member's chat template expects."""
