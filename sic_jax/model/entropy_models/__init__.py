"""Families of entropy models: h_a, h_s, the prior of z, the context model and the details."""
