"""Theory: closed forms and simulations that the benches are made of; no torch."""
