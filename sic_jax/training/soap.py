"""The optimiser SOAP: Adam in the eigenbases of Shampoo's preconditioners.

A kernel's gradient is T matrices G_t [m, n] of m inputs and n outputs. Their second moments are
known by

    L = average over steps of sum_t G_t G_t^T,    R = average over steps of sum_t G_t^T G_t

and Q_L, Q_R are their eigenvectors: at first the identity, then brought nearer every few steps by
one step of the power iteration, the orthogonal factor of L Q_L. Adam works on Q_L^T G_t Q_R, and
the update is Q_L N_t Q_R^T for its result N_t. So an element's step size is that of a direction in
which the gradient varies, not that of a weight.

The nine taps of a 3x3 kernel are rows of one matrix, [9 m, n], unless those are too many; then they
are T = 9 matrices that share L and R. Kernels of equal sizes are computed together.

The first step changes nothing but the state.

Source: Vyas et al., "SOAP: Improving and Stabilizing Shampoo using Adam" (2024), Algorithm 3. Two
things differ: the bases begin with the identity, not with an eigendecomposition, and taps can
share them.
"""

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from sic_jax.model.tree import Params

Sizes = tuple[int, int, int, int]
"""Of a kernel as matrices: kernels stacked in it, T, m and n."""


class _Group(NamedTuple):
    """Kernels of equal sizes, K in all."""

    left: jax.Array
    """L, [K, m, m]."""
    right: jax.Array
    """R, [K, n, n]."""
    left_basis: jax.Array
    """Q_L, [K, m, m]."""
    right_basis: jax.Array
    """Q_R, [K, n, n]."""
    mean: jax.Array
    """First moments in the bases, [K, T, m, n]."""
    square: jax.Array
    """Second moments in the bases, [K, T, m, n]."""


class _SoapState(NamedTuple):
    """State of the optimiser."""

    step: jax.Array
    """Steps taken, an int32 scalar."""
    groups: tuple[_Group, ...]


def scale_by_soap(
    *,
    every: int = 10,
    b1: float = 0.95,
    b2: float = 0.95,
    eps: float = 1e-8,
    max_rows: int = 1024,
    is_stacked: Callable[[str], bool] = lambda name: False,
) -> optax.GradientTransformation:
    """SOAP for a tree of kernels, without a learning rate.

    Args:
        every: Steps from one improvement of the bases to the next.
        b1: Decay of first moments.
        b2: Decay of second moments, L and R.
        eps: What the root of a second moment is increased by.
        max_rows: Largest number of rows that taps and inputs make together.
        is_stacked: Whether the first axis of a kernel numbers kernels, by the name of the network
            that it is in.

    Returns:
        A transformation of trees whose leaves are [..., m, n], all axes before them taps.
    """

    def sizes(path: tuple[Any, ...], leaf: jax.Array) -> Sizes:
        stacked = leaf.shape[0] if is_stacked(path[0].key) else 1
        inputs, outputs = leaf.shape[-2:]
        taps = leaf.size // (stacked * inputs * outputs)
        if taps * inputs <= max_rows:
            return stacked, 1, taps * inputs, outputs
        return stacked, taps, inputs, outputs

    def grouped(tree: Params) -> list[list[tuple[int, Sizes]]]:
        """Numbers of the leaves that belong together, with their sizes."""
        leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
        numbered = [(k, sizes(path, leaf)) for k, (path, leaf) in enumerate(leaves)]
        numbered.sort(key=lambda item: (item[1][1:], item[0]))
        found = itertools.groupby(numbered, key=lambda item: item[1][1:])
        return [list(items) for _, items in found]

    def init(params: Params) -> _SoapState:
        def group(members: list[tuple[int, Sizes]]) -> _Group:
            count = sum(size[0] for _, size in members)
            _, taps, m, n = members[0][1]
            left, right = (jnp.tile(jnp.eye(k)[None], (count, 1, 1)) for k in (m, n))
            zeros = jnp.zeros((count, taps, m, n))
            return _Group(0 * left, 0 * right, left, right, zeros, zeros)

        return _SoapState(jnp.zeros((), jnp.int32), tuple(map(group, grouped(params))))

    def update(
        updates: Params, state: _SoapState, params: Params | None = None
    ) -> tuple[Params, _SoapState]:
        leaves, tree = jax.tree.flatten(updates)
        improves = state.step % every == 0
        steps = (state.step + 1).astype(jnp.float32)
        bias = 1 - b1**steps, 1 - b2**steps
        changed, groups = list(leaves), []
        for members, group in zip(grouped(updates), state.groups, strict=True):
            parts = [leaves[k].reshape(size) for k, size in members]
            result, group = _step(jnp.concatenate(parts), group, improves, bias, (b1, b2, eps))
            # The bases of one gradient alone have directions in which it is nothing but rounding.
            result = jnp.where(state.step > 0, result, 0)
            ends = np.cumsum([size[0] for _, size in members])[:-1].tolist()
            for (k, _), part in zip(members, jnp.split(result, ends), strict=True):
                changed[k] = part.reshape(leaves[k].shape)
            groups.append(group)
        return jax.tree.unflatten(tree, changed), _SoapState(state.step + 1, tuple(groups))

    return optax.GradientTransformation(init, update)  # type: ignore[arg-type]


def _step(
    g: jax.Array,
    group: _Group,
    improves: jax.Array,
    bias: tuple[jax.Array, jax.Array],
    constants: tuple[float, float, float],
) -> tuple[jax.Array, _Group]:
    """Updates [K, T, m, n] for gradients of these sizes, and the next state."""
    b1, b2, eps = constants
    left = b2 * group.left + (1 - b2) * jnp.einsum("gtmn,gtkn->gmk", g, g)
    right = b2 * group.right + (1 - b2) * jnp.einsum("gtmn,gtmk->gnk", g, g)

    def improved() -> tuple[jax.Array, jax.Array, jax.Array]:
        pairs = (left, group.left_basis), (right, group.right_basis)
        # Where L is 0, so far, the basis stays.
        bases = [jnp.linalg.qr(a @ q + 1e-12 * q)[0] for a, q in pairs]
        turns = [q.mT @ new for (_, q), new in zip(pairs, bases, strict=True)]
        return bases[0], bases[1], _turned(group.mean, turns[0], turns[1])

    def kept() -> tuple[jax.Array, jax.Array, jax.Array]:
        return group.left_basis, group.right_basis, group.mean

    left_basis, right_basis, mean = jax.lax.cond(improves, improved, kept)
    projected = _turned(g, left_basis, right_basis)
    mean = b1 * mean + (1 - b1) * projected
    square = b2 * group.square + (1 - b2) * jnp.square(projected)
    scaled = (mean / bias[0]) / (jnp.sqrt(square / bias[1]) + eps)
    result = _turned(scaled, left_basis.mT, right_basis.mT)
    return result, _Group(left, right, left_basis, right_basis, mean, square)


def _turned(a: jax.Array, left: jax.Array, right: jax.Array) -> jax.Array:
    """left^T a right, for a [K, T, m, n]."""
    turned: jax.Array = jnp.einsum("gtmn,gmk,gnl->gtkl", a, left, right)
    return turned
