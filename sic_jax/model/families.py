"""The families that the package has. Code of one's own passes its classes beside them."""

from sic_jax.fields import kinds_of
from sic_jax.model.entropy_models.checkerboard.checkerboard import CheckerboardEntropy
from sic_jax.model.entropy_models.raster.raster import RasterEntropy
from sic_jax.model.transforms.pyramid import PyramidTransforms
from sic_jax.model.transforms.swin import SwinTransforms

FAMILIES = kinds_of(PyramidTransforms, SwinTransforms, CheckerboardEntropy, RasterEntropy)
"""Transforms and entropy models by the names that they have in files."""
