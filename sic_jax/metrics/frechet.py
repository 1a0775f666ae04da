"""Distances between two sets of images: FID and KID.

Sets of images are cut into patches as in HiFiC (Mentzer et al., NeurIPS 2020, "FID/256") and
MS-ILLM (Muckley et al., ICML 2023; ``update_patch_fid`` of its code); a network turns every patch
into one vector; `fid` and `kid` compare the two arrays of vectors. Only with the features of the
Inception network of Heusel et al. (its 2048-channel pooled layer) are they the FID and KID of
publications. Its weights are not part of this package: `sic_jax.metrics.inception` reads them from
a file.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["fid", "kid", "patches"]

_BLOCK = 1024


def patches(image: NDArray[Any], *, size: int = 256) -> NDArray[Any]:
    """Non-overlapping patches of an image, and those of the grid shifted by half a patch.

    The second grid starts at ``(size // 2, size // 2)``. Incomplete patches are left out: an image
    smaller than a patch gives none, and the second grid has one where both sides are at least one
    and a half patches (384 pixels of 256), which is MS-ILLM's condition for it. A 512x768 image
    gives 6 + 2 patches of 256 pixels, and 96 + 77 of 64, as GenCodec cuts Kodak.

    Args:
        image: ``[H, W, C]``.
        size: Height and width of a patch.

    Returns:
        ``[N, size, size, C]``, row by row, of the type of `image`.

    Raises:
        ValueError: `image` does not have three axes or `size` is less than 2.
    """
    if image.ndim != 3 or size < 2:
        raise ValueError(f"need an image [H, W, C] and size >= 2, got {image.shape}, size {size}")
    grids = []
    for start in (0, size // 2):
        rows, columns = (max(n - start, 0) // size for n in image.shape[:2])
        part = image[start : start + rows * size, start : start + columns * size]
        part = part.reshape(rows, size, columns, size, image.shape[2]).swapaxes(1, 2)
        grids.append(part.reshape(rows * columns, size, size, image.shape[2]))
    return np.concatenate(grids)


def fid(features_a: ArrayLike, features_b: ArrayLike) -> float:
    """Frechet distance of the Gaussians with the means and covariances of two sets of features.

    Heusel et al., "GANs Trained by a Two Time-Scale Update Rule Converge to a Local Nash
    Equilibrium" (NeurIPS 2017): |m_a - m_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2)), covariances
    with N - 1. It is biased: compare only values of equally many patches.

    Args:
        features_a: ``[N, D]``, N at least 2.
        features_b: ``[M, D]``, M at least 2.

    Returns:
        The distance, 0 for equal sets up to rounding in float64.

    Raises:
        ValueError: The shapes do not fit, or a feature is not finite.
    """
    a, b = _feature_pair(features_a, features_b)
    mean_a, mean_b = a.mean(axis=0), b.mean(axis=0)
    root_a, root_b = _covariance_root(a - mean_a), _covariance_root(b - mean_b)
    # With C = R^T R the eigenvalues of C_a C_b are the squared singular values of R_a R_b^T.
    cross = np.linalg.svd(root_a @ root_b.T, compute_uv=False).sum()
    traces = np.square(root_a).sum() + np.square(root_b).sum()
    return float(np.square(mean_a - mean_b).sum() + traces - 2.0 * cross)


def kid(features_a: ArrayLike, features_b: ArrayLike) -> float:
    """Squared maximum mean discrepancy of two sets of features, kernel (x.y / D + 1)^3.

    Binkowski et al., "Demystifying MMD GANs" (ICLR 2018). The unbiased estimate from all pairs. It
    may be negative. torch-fidelity, and so MS-ILLM's code, takes the mean over 100 random subsets
    of 1000 patches, and has no value of fewer than 1000: over all subsets that mean is this value.

    Args:
        features_a: ``[N, D]``, N at least 2.
        features_b: ``[M, D]``, M at least 2.

    Returns:
        The estimate; many publications multiply it by 1000.

    Raises:
        ValueError: The shapes do not fit, or a feature is not finite.
    """
    a, b = _feature_pair(features_a, features_b)
    within = 0.0
    for x in (a, b):
        self_pairs = np.power(np.square(x).sum(axis=1) / x.shape[1] + 1.0, 3).sum()
        within += (_kernel_sum(x, x) - self_pairs) / (len(x) * (len(x) - 1))
    return float(within - 2.0 * _kernel_sum(a, b) / (len(a) * len(b)))


def _feature_pair(
    features_a: ArrayLike, features_b: ArrayLike
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    a, b = np.asarray(features_a, np.float64), np.asarray(features_b, np.float64)
    if a.ndim != 2 or b.ndim != 2 or a.shape[1:] != b.shape[1:] or min(len(a), len(b)) < 2:
        raise ValueError(
            f"need features [N, D] and [M, D] with N and M at least 2, got {a.shape} and {b.shape}"
        )
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise ValueError("features to compare are not finite")
    return a, b


def _covariance_root(centred: NDArray[np.float64]) -> NDArray[np.float64]:
    """A matrix R with at most D rows whose R^T R is the covariance."""
    root: NDArray[np.float64] = centred / np.sqrt(len(centred) - 1)
    if len(root) > root.shape[1]:
        root = np.linalg.qr(root).R
    return root


def _kernel_sum(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """Sum of the kernel over all pairs, in blocks that bound the memory."""
    total = 0.0
    for start in range(0, len(a), _BLOCK):
        products = a[start : start + _BLOCK] @ b.T
        total += float(np.power(products / a.shape[1] + 1.0, 3).sum())
    return total
