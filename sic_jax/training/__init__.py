"""Training: losses, state, step, loop and validation."""
