"""What strategies without embeddings stand on: shared tokens, columns, and healing."""
