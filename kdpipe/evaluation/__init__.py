"""Measures computed from stored predictions."""
