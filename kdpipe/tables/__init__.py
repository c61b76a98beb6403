"""Tables, figures and the report; no torch."""
