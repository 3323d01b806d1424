"""Conversations as each member's chat template wants them."""
