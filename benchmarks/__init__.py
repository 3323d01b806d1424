"""Measurements: ratios taken in one process, printed as tables and written as JSON."""
