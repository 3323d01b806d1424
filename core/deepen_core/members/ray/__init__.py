"""Members that are actors of a Ray cluster."""
