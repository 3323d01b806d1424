"""Decoding: the public API, the worker thread, the step, and the state of each request."""
