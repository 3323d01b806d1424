"""Members whose model is on a server."""
