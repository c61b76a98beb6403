"""Runs in MLflow, and the journal that survives when MLflow does not."""
