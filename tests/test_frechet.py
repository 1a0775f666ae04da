"""FID, KID and patches against closed forms."""

from collections.abc import Callable
from itertools import combinations
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from sic_jax.metrics.frechet import fid, kid, patches


def with_moments(
    mean: NDArray[Any], covariance: NDArray[Any], count: int, *, seed: int = 0
) -> NDArray[Any]:
    """Samples [count, D] with exactly this mean and covariance (N - 1)."""
    x = np.random.default_rng(seed).standard_normal((count, len(mean)))
    x -= x.mean(axis=0)
    x = x @ np.linalg.inv(np.linalg.cholesky(np.cov(x, rowvar=False))).T
    out: NDArray[Any] = x @ np.linalg.cholesky(covariance).T + mean
    return out


@pytest.mark.parametrize("counts", [(50, 70), (5, 9), (50, 5)])
def test_fid_of_gaussians_with_diagonal_covariances(counts: tuple[int, int]) -> None:
    mean_a, mean_b = np.array([1.0, 2.0, -1.0]), np.array([0.0, 2.5, 1.0])
    a = with_moments(mean_a, np.diag([1.0, 4.0, 9.0]), counts[0])
    b = with_moments(mean_b, np.diag([4.0, 1.0, 0.25]), counts[1], seed=1)
    # |m_a - m_b|^2 + sum (s_a - s_b)^2 = 5.25 + 1 + 1 + 6.25
    assert fid(a, b) == pytest.approx(13.5, rel=1e-10)
    assert fid(b, a) == pytest.approx(13.5, rel=1e-10)


def test_fid_of_gaussians_with_covariances_that_do_not_commute() -> None:
    rng = np.random.default_rng(2)
    cov_a, cov_b = (m @ m.T + np.eye(4) for m in rng.standard_normal((2, 4, 4)))
    assert np.abs(cov_a @ cov_b - cov_b @ cov_a).max() > 0.1
    a, b = with_moments(np.zeros(4), cov_a, 30), with_moments(np.ones(4), cov_b, 30, seed=1)
    root = np.sqrt(np.linalg.eigvals(cov_a @ cov_b).real).sum()
    wanted = 4.0 + np.trace(cov_a) + np.trace(cov_b) - 2.0 * root
    assert fid(a, b) == pytest.approx(wanted, rel=1e-10)


def test_fid_with_fewer_samples_than_features() -> None:
    # Both sets lie on one line, as 1-d Gaussians do: variances 2 and 8, means 0 and 3.
    line = np.full(100, 0.1)
    a, b = np.array([-1.0, 1.0])[:, None] * line, np.array([1.0, 5.0])[:, None] * line
    assert fid(a, b) == pytest.approx(9.0 + (np.sqrt(8.0) - np.sqrt(2.0)) ** 2, rel=1e-10)


def test_distances_of_a_set_to_itself() -> None:
    x = np.random.default_rng(3).standard_normal((40, 6))
    assert fid(x, x[::-1]) == pytest.approx(0.0, abs=1e-10)
    assert fid(np.ones((3, 2)), np.ones((4, 2))) == 0.0
    # The unbiased estimate counts no point against itself, so it is below 0 here.
    assert -1.0 < kid(x, x) < 0.0


@pytest.mark.parametrize("counts", [(7, 5), (2, 1500)])
def test_kid_is_the_unbiased_estimate(counts: tuple[int, int]) -> None:
    rng = np.random.default_rng(4)
    a, b = rng.standard_normal((counts[0], 3)), 1.0 + rng.standard_normal((counts[1], 3))

    def mean_kernel(x: NDArray[Any], y: NDArray[Any], *, same: bool) -> float:
        kernel = (x @ y.T / 3.0 + 1.0) ** 3
        out: float = kernel[~np.eye(len(x), dtype=bool)].mean() if same else kernel.mean()
        return out

    wanted = mean_kernel(a, a, same=True) + mean_kernel(b, b, same=True)
    wanted -= 2.0 * mean_kernel(a, b, same=False)
    assert kid(a, b) == pytest.approx(wanted, rel=1e-10)


def test_kid_of_four_numbers() -> None:
    # k(0, 0) = 1, k(0, 1) = 1, k(1, 1) = 8, k(0, 2) = 1, k(1, 2) = 27: 1 + 27 - 2 (1+1+8+27)/4
    assert kid([[0.0], [1.0]], [[1.0], [2.0]]) == pytest.approx(9.5)


def test_kid_is_the_mean_over_subsets_that_packages_sample() -> None:
    rng = np.random.default_rng(5)
    a, b = rng.standard_normal((6, 3)), 0.5 + rng.standard_normal((5, 3))
    subsets = [
        kid(a[list(i)], b[list(j)])
        for i in combinations(range(6), 3)
        for j in combinations(range(5), 3)
    ]
    assert len(subsets) == 20 * 10
    assert np.std(subsets) > 0.1  # A few of them, drawn at random, are no such mean.
    assert kid(a, b) == pytest.approx(np.mean(subsets), rel=1e-10)


@pytest.mark.parametrize("measure", [fid, kid])
@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        (np.zeros((3, 4)), np.zeros((3, 5)), r"got \(3, 4\) and \(3, 5\)"),
        (np.zeros((1, 4)), np.zeros((3, 4)), r"at least 2, got \(1, 4\)"),
        (np.zeros(4), np.zeros(4), r"got \(4,\) and \(4,\)"),
        (np.full((2, 4), np.nan), np.zeros((2, 4)), "not finite"),
    ],
)
def test_unusable_features_are_refused(
    measure: Callable[..., float], a: NDArray[Any], b: NDArray[Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        measure(a, b)


def test_patches_are_two_grids() -> None:
    image = np.arange(9 * 13 * 2).reshape(9, 13, 2)
    cut = patches(image, size=4)
    corners = [(0, 0), (0, 4), (0, 8), (4, 0), (4, 4), (4, 8), (2, 2), (2, 6)]
    assert cut.shape == (8, 4, 4, 2)
    for patch, (i, j) in zip(cut, corners, strict=True):
        np.testing.assert_array_equal(patch, image[i : i + 4, j : j + 4])


@pytest.mark.parametrize(
    ("shape", "size", "count"),
    [
        ((512, 768), 256, 2 * 3 + 1 * 2),
        ((768, 512), 256, 3 * 2 + 2 * 1),
        ((512, 768), 64, 8 * 12 + 7 * 11),
        ((256, 256), 256, 1),
        ((384, 384), 256, 1 + 1),
        ((383, 900), 256, 3),
        ((900, 383), 256, 3),
        ((255, 900), 256, 0),
        ((100, 90), 256, 0),
    ],
)
def test_number_of_patches(shape: tuple[int, int], size: int, count: int) -> None:
    cut = patches(np.zeros((*shape, 3), np.uint8), size=size)
    assert cut.shape == (count, size, size, 3)
    assert cut.dtype == np.uint8


def test_patches_of_a_kodak_picture_are_its_pixels() -> None:
    """24 pictures have 192 patches of 256 pixels and 4152 of 64."""
    image = np.random.default_rng(6).integers(0, 256, (512, 768, 3), dtype=np.uint8)
    cut = patches(image)
    corners = [(0, 0), (0, 256), (0, 512), (256, 0), (256, 256), (256, 512), (128, 128), (128, 384)]
    assert 24 * len(cut) == 192
    for patch, (i, j) in zip(cut, corners, strict=True):
        np.testing.assert_array_equal(patch, image[i : i + 256, j : j + 256])
    small = patches(image, size=64)
    assert 24 * len(small) == 4152
    first = small[:96].reshape(8, 12, 64, 64, 3).swapaxes(1, 2).reshape(512, 768, 3)
    np.testing.assert_array_equal(first, image)
    shifted = small[96:].reshape(7, 11, 64, 64, 3).swapaxes(1, 2).reshape(448, 704, 3)
    np.testing.assert_array_equal(shifted, image[32:480, 32:736])


@given(height=st.integers(1, 40), width=st.integers(1, 40), half=st.integers(1, 9))
def test_the_second_grid_is_there_where_both_sides_are_one_and_a_half_patches(
    height: int, width: int, half: int
) -> None:
    size = 2 * half
    image = np.arange(height * width).reshape(height, width, 1)
    corners = [(i, j) for i in range(0, height - size + 1, size)
               for j in range(0, width - size + 1, size)]  # fmt: skip
    if height >= 1.5 * size and width >= 1.5 * size:  # MS-ILLM's condition.
        corners += [(i, j) for i in range(half, height - size + 1, size)
                    for j in range(half, width - size + 1, size)]  # fmt: skip
    cut = patches(image, size=size)
    assert [patch[0, 0, 0] for patch in cut] == [i * width + j for i, j in corners]


def test_patches_name_what_they_cannot_cut() -> None:
    with pytest.raises(ValueError, match=r"got \(8, 8\), size 4"):
        patches(np.zeros((8, 8)), size=4)
    with pytest.raises(ValueError, match="size 1"):
        patches(np.zeros((8, 8, 3)), size=1)
