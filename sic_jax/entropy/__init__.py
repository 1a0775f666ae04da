"""Entropy models and range coding."""
