"""The model: levels, transforms and entropy models; what trains and what codes are one code."""
