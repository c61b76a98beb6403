"""Benches: one file per simulation or closed form that a study can run."""
