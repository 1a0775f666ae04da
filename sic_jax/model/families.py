"""The families that a model may be made of."""

from sic_jax.fields import Kinds, kinds_of

FAMILIES: Kinds = kinds_of()
"""By the kinds that files and flags name."""
