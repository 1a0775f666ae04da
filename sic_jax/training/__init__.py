"""Training: data, losses, state, step and loop."""
