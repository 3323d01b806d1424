"""Members that are models of `transformers`."""
