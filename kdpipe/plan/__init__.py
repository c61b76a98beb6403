"""Studies become runs; no torch."""
