"""The family `raster`: the paper's entropy networks, in floats, symbol after symbol."""
