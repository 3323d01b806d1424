"""Decoding: the public API, the worker thread, the step, and each request's state."""
