"""Decoding: the ways in, the worker, the step, and what every request keeps."""
