"""The foundations of strategies without embeddings: shared tokens, columns, and token healing."""
