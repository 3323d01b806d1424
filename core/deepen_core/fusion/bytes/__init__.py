"""Fusing by bytes: what a member says of the next bytes, whatever its tokens."""
