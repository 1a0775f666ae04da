"""Probabilities, coding tables, range coders and noise of seeds: mathematics, no networks."""
