import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sic_jax.model.levels import LevelConfig
from sic_jax.training import losses
from sic_jax.training.losses import (
    Compared,
    Decodings,
    LossConfig,
    balance_term,
    consistency_terms,
    discriminator_loss,
    draw_levels,
    generator_loss,
    mean_terms,
    plan_decodings,
    rate_terms,
    svi_loss,
)


def key(seed: int) -> jax.Array:
    return jax.random.key(seed, impl="rbg")


LOSS = LossConfig(
    lmbda_rate=(7.0, 3.0, 2.0), lmbda_dist=(100.0, 10.0, 30.0), lmbda_perc=(9.0, 0.5, 4.0)
)


def test_loss_by_hand() -> None:
    # Image 0 at level 2 of 3, image 1 at level 3.
    level = jnp.array([[2, 3]])
    plan = Decodings(level, jnp.ones((1, 2)))
    terms = Compared(bpp=jnp.array([[7.0, 2.5]]), mse=jnp.array([[0.01, 0.09]]))
    low, full = 3 * 7 + 10 * 0.01, 2 * 2.5 + 30 * 0.09
    loss, sums = svi_loss(terms, plan, LOSS)
    assert float(loss) == pytest.approx((low + full) / 2)
    expected = {"loss": (low + full) / 2, "bpp_full": 2.5, "bpp_low": 7.0}
    expected |= {"mse_full": 0.09, "mse_low": 0.01}
    means = {k: float(v) for k, v in mean_terms(sums).items()}
    assert means == pytest.approx(expected, rel=1e-6)

    terms = terms._replace(lpips=jnp.array([[0.1, 0.3]]), adv=jnp.array([[2.0, 5.0]]))
    terms = terms._replace(dists=jnp.array([[0.6, 0.7]]))
    cfg = LossConfig(**{**vars(LOSS), "adversarial_weight": 0.5, "dists_weight": 3})
    loss, sums = svi_loss(terms, plan, cfg)
    low, full = low + 0.5 * (0.1 + 0.5 * 2 + 3 * 0.6), full + 4 * (0.3 + 0.5 * 5 + 3 * 0.7)
    assert float(loss) == pytest.approx((low + full) / 2)
    ramped, _ = svi_loss(terms._replace(adv_share=0.25), plan, cfg)
    less = 0.75 * (0.5 * 0.5 * 2 + 4 * 0.5 * 5) / 2
    assert float(ramped) == pytest.approx((low + full) / 2 - less)
    found = mean_terms(sums)
    assert float(found["lpips_full"]) == pytest.approx(0.3)
    assert float(found["adv_low"]) == pytest.approx(2.0)
    assert float(found["dists_full"]) == pytest.approx(0.7)


def test_expectations_are_means_over_samples() -> None:
    # alpha = 3/4: the paper's alpha L(l) + (1 - alpha) L(L) with M = 2.
    cfg = LossConfig(**{**vars(LOSS), "levels": "cyclic", "num_samples": 2, "full_share": 0.25})
    plan = plan_decodings(key(0), jnp.int32(2), jnp.arange(1), 1, cfg)
    assert plan.level.tolist() == [[3], [1], [1]]
    np.testing.assert_allclose(plan.weight, [[0.25], [0.375], [0.375]])
    terms = Compared(
        bpp=jnp.array([[4.0], [1.0], [1.0]]),
        mse=jnp.array([[0.1], [0.2], [0.4]]),
        lpips=jnp.array([[0.1], [0.5], [0.7]]),
    )
    full = 2 * 4 + 30 * 0.1 + 4 * 0.1
    synset = 7 * 1 + 100 * (0.2 + 0.4) / 2 + 9 * (0.5 + 0.7) / 2
    loss, _ = svi_loss(terms, plan, cfg)
    assert float(loss) == pytest.approx(0.75 * synset + 0.25 * full)


def test_consistency_and_balance_in_the_loss() -> None:
    cfg = LossConfig(**{**vars(LOSS), "lmbda_consistency": 2.0, "lmbda_balance": 3.0})
    plan = Decodings(jnp.array([[3], [1]]), jnp.full((2, 1), 0.5))
    zero = jnp.zeros((2, 1))
    terms = Compared(
        bpp=zero,
        mse=zero,
        balance=jnp.array([0.7]),
        consistency=(jnp.array([[0.2], [0.4]]), jnp.array([[0.0], [0.5]])),
    )
    loss, sums = svi_loss(terms, plan, cfg)
    # The zero of the decoding at level L is averaged in, as in the authors' code.
    assert float(loss) == pytest.approx(2 * ((0.2 + 0.4) / 2 + (0 + 0.5) / 2) + 3 * 0.7)
    assert float(mean_terms(sums)["consistency_eps_low"]) == pytest.approx(0.5)


def test_levels_go_down_in_turn() -> None:
    cfg = LossConfig(
        lmbda_rate=(1.0,) * 16, lmbda_dist=(0.0,) * 16, lmbda_perc=(0.0,) * 16, levels="cyclic"
    )
    seen = [
        int(plan_decodings(key(0), jnp.int32(s), jnp.arange(2), 2, cfg).level[1, 0])
        for s in range(17)
    ]
    assert seen == [*range(16, 0, -1), 16]


def test_drawn_levels_are_stratified() -> None:
    for seed in range(20):
        levels = np.asarray(draw_levels(key(seed), 12, 4, 1 / 3))
        assert levels.dtype == np.int32
        # Four at level L, then two of each quarter.
        assert levels.tolist() == [4] * 4 + [1, 1, 2, 2, 3, 3, 4, 4]
    assert np.asarray(draw_levels(key(0), 3, 16, 1.0)).tolist() == [16] * 3
    firsts = [int(draw_levels(key(s), 2, 16, 0.5)[1]) for s in range(200)]
    assert (min(firsts), max(firsts)) == (1, 16)
    assert np.mean(firsts) == pytest.approx(8.5, abs=4 * 4.6 / 200**0.5)


def test_parts_of_a_batch_plan_what_the_whole_does() -> None:
    cfg = LossConfig(**{**vars(LOSS), "num_samples": 2})
    whole = plan_decodings(key(3), jnp.int32(0), jnp.arange(8), 8, cfg).level
    rows = jnp.array([6, 1, 3])
    part = plan_decodings(key(3), jnp.int32(0), rows, 8, cfg).level
    np.testing.assert_array_equal(part, whole[:, rows])


def test_rate_counts_levels_up_to_the_decoding_s() -> None:
    bits_z, bits_y = jnp.array([32.0, 16.0]), jnp.array([[64.0, 128.0, 1e6], [16.0, 16.0, 32.0]])
    bpp = rate_terms(bits_z, bits_y, jnp.array([[2, 3], [1, 1]]), pixels=32)
    np.testing.assert_allclose(bpp, [[7.0, 2.5], [3.0, 1.0]])


def test_balance_by_hand() -> None:
    bits = jnp.array([[10.0, 20.0, 60.0], [5.0, 5.0, 5.0]])
    deviation = math.sqrt(((1 - 3) ** 2 + (2 - 3) ** 2 + (6 - 3) ** 2) / 2)
    np.testing.assert_allclose(balance_term(bits, 10), [deviation - 1, -0.5], atol=2e-6)
    gradient = jax.grad(lambda b: balance_term(b, 10).sum())(bits)
    assert np.isfinite(gradient).all()


def test_consistency_by_hand() -> None:
    cfg = LevelConfig(channels=(1, 2), refinements=(0, 0))
    y_hat = jnp.zeros((2, 1, 2, 1, 3))
    again = jnp.broadcast_to(jnp.array([1.0, 2.0, 4.0]), y_hat.shape)
    synonymous, details = consistency_terms(again, y_hat, jnp.array([[2], [1]]), cfg)
    np.testing.assert_allclose(synonymous, [[(1 + 4 + 16) / 3], [1.0]], rtol=1e-6)
    np.testing.assert_allclose(details, [[0.0], [(4 + 16) / 2]], rtol=1e-6)


def test_adversarial_losses_by_hand() -> None:
    logits = jnp.array([[0.0, 2.0], [-1.0, -3.0]])[:, :, None, None]
    other = jnp.array([[1.0], [4.0]])[:, :, None, None]

    def bce(value: float, real: bool) -> float:
        p = 1 / (1 + math.exp(-value))
        return -math.log(p if real else 1 - p)

    expected = [(bce(0, True) + bce(2, True)) / 2, (bce(-1, True) + bce(-3, True)) / 2]
    np.testing.assert_allclose(generator_loss([logits]), expected, rtol=1e-6)
    # A map counts as much as another, whatever its size.
    both = [(expected[0] + bce(1, True)) / 2, (expected[1] + bce(4, True)) / 2]
    np.testing.assert_allclose(generator_loss([logits, other]), both, rtol=1e-6)
    real, fake = logits[:1], logits[1:]
    total = bce(0, True) + bce(2, True) + bce(-1, False) + bce(-3, False)
    np.testing.assert_allclose(discriminator_loss([real], [fake]), [total / 2], rtol=1e-6)
    of_other = bce(1, True) + bce(4, False)
    found = discriminator_loss([real, other[:1]], [fake, other[1:]])
    np.testing.assert_allclose(found, [(total / 2 + of_other) / 2], rtol=1e-6)


def test_lpips_of_each_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    def features(x: jax.Array, *, weights: object) -> tuple[jax.Array, ...]:
        return (x,)

    def distance(
        a: tuple[jax.Array, ...], b: tuple[jax.Array, ...], *, weights: object
    ) -> jax.Array:
        return jnp.abs(a[0] - b[0]).mean((1, 2, 3))

    monkeypatch.setattr(losses, "lpips_features", features)
    monkeypatch.setattr(losses, "lpips_from_features", distance)
    x = jnp.arange(2.0)[:, None, None, None] * jnp.ones((2, 4, 4, 3))
    shift = jnp.array([[0.1, 0.2], [0.3, 0.4], [0.5, 0.6]])
    x_hat = x[None] + shift[..., None, None, None]
    result = losses.lpips_terms(x, x_hat, weights={})
    np.testing.assert_allclose(result, shift, rtol=1e-5)


@pytest.mark.parametrize(("every", "offset"), [(1, 0), (2, 0), (2, 1), (4, 3)])
def test_dists_of_every_nth_image(monkeypatch: pytest.MonkeyPatch, every: int, offset: int) -> None:
    def distance(
        a: tuple[jax.Array, ...], b: tuple[jax.Array, ...], *, weights: object
    ) -> jax.Array:
        # Which image was compared, and with which decoding.
        return a[0][:, 0, 0, 0] + 1000 * (b[0] - a[0])[:, 1, 2, 0]

    monkeypatch.setattr(losses, "dists_features", lambda x, *, weights: (x,))
    monkeypatch.setattr(losses, "dists_from_features", distance)
    x = jnp.arange(1.0, 5)[:, None, None, None] * jnp.ones((4, 2, 3, 3))
    shift = jnp.arange(1.0, 13).reshape(3, 4)
    x_hat = x[None] + shift[..., None, None, None]
    result = losses.dists_terms(x, x_hat, {}, jnp.int32(offset), every)
    expected = np.zeros((3, 4))
    for at in range(offset, 4, every):
        expected[:, at] = every * (at + 1 + 1000 * shift[:, at])
    np.testing.assert_allclose(result, expected, rtol=1e-5)


def test_dists_of_a_batch_that_cannot_be_cut() -> None:
    x = jnp.zeros((4, 16, 16, 3))
    with pytest.raises(ValueError, match="dists_every is 3; it must divide the 4 images"):
        losses.dists_terms(x, x[None], {}, jnp.int32(0), 3)


def test_perceptual_weights_are_those_that_the_loss_needs() -> None:
    cfg = LossConfig(**{**vars(LOSS), "dists_weight": 1})
    none = LossConfig(**{**vars(LOSS), "lmbda_perc": (0.0,) * 3})
    found = [set(losses.load_perceptual_weights(c)) for c in (none, LOSS, cfg)]
    assert found == [set(), {"lpips"}, {"lpips", "dists"}]
    with pytest.raises(ValueError, match=r"lmbda_perc is \(0\.0, 0\.0, 0\.0\)"):
        LossConfig(**{**vars(none), "dists_weight": 1})
    with pytest.raises(ValueError, match="dists_every is 0; it must be positive"):
        LossConfig(**{**vars(LOSS), "dists_every": 0})


def test_loss_without_images_at_full_level() -> None:
    terms = Compared(bpp=jnp.array([[2.0]]), mse=jnp.zeros((1, 1)))
    _, sums = svi_loss(terms, Decodings(jnp.array([[1]]), jnp.ones((1, 1))), LOSS)
    means = mean_terms(sums)
    assert (float(means["bpp_low"]), float(means["bpp_full"])) == (2.0, 0.0)
