"""Parameters as one tree of arrays under the paper's symbols, and as leaves by path."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from flax import traverse_util

Params = dict[str, Any]
"""``{"g_a": {...}, "h_s": {...}}``, of arrays or of their shapes."""

_flatten: Any = traverse_util.flatten_dict
_unflatten: Any = traverse_util.unflatten_dict


def flatten_params(params: Params) -> dict[str, Any]:
    """Leaves of a parameter tree by path, such as ``g_a/Conv_0/kernel``."""
    leaves: dict[str, Any] = _flatten(params, sep="/")
    return leaves


def unflatten_params(leaves: Mapping[str, Any]) -> Params:
    """The inverse of `flatten_params`."""
    params: Params = _unflatten(leaves, sep="/")
    return params


def num_params(params: Params) -> int:
    """Number of scalars in a parameter tree."""
    return sum(int(np.prod(a.shape)) for a in jax.tree.leaves(params))
