"""The family `checkerboard`: integers, two passes a group, learned details."""
