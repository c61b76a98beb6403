"""Names, ids, errors, run specs and the registry; no torch."""
