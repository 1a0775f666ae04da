"""The loss of Synonymous Variational Inference (SVI), term by term.

A *synset* is the set of all pictures that are perceptually equal to x; its index is what a file has
to say. With q(y | x) the encoder's distribution of noisy latents and p_s a distribution over
synsets, the partial semantic KL divergence compares the probability of a latent with that of the
whole synset it belongs to:

    D_KL,s[q || p_s] = sum over synsets i_s, sum over u in U_{i_s} of q(u) log(q(u) / p(U_{i_s}))

SVI minimises its expectation over x for p_s = p(y_s | synset of x), which comes apart into three:

    log q(y | x)              0: the noise U(-1/2, 1/2) has density 1
    -log p(y_s)               the rate of the synonymous part (and of z); `bpp`
    -log p(synset of x | y_s) the synonymous likelihood. Lemma 3.2: to minimise it is to minimise
                              lambda_d E[MSE(x, x_hat)] + lambda_p E[KL(p_x || p_x_hat)] over the
                              pictures x_hat of the synset that the decoder can draw; the
                              expectations are means over M draws of the details, and LPIPS (with
                              the adversarial loss in the last stage) stands in for the KL.

Theorem 3.3 reads the sum as a Lagrangian of the synonymous rate-distortion-perception function

    R = min I(X; synset of X_hat)  with  E[distortion] <= D  and  E[KL] <= P;

with one picture a synset it is Blau and Michaeli's rate-distortion-perception function, and with
lambda_p = 0 rate-distortion. So for image x at level l, with M draws x_hat_i:

    L(l) = lambda_r(l) bpp(y_s, z) + mean_i [lambda_d(l) MSE(x, x_hat_i) + lambda_p(l) P_i]
    P_i = LPIPS(x, x_hat_i) + adversarial_weight G_i + dists_weight DISTS(x, x_hat_i)

and, for one model that serves all levels, alpha L(l) + (1 - alpha) L(L) + L_c(l). L_c is latent
consistency: g_a of a reconstruction should give y_s and the drawn details again.

Source: Liang et al. 2025, sections 3 and 4; the paper's constants are in
`sic_jax.training.presets`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sic_jax.fields import require
from sic_jax.metrics.convnet import Array, Features, Weights
from sic_jax.metrics.dists_metric import dists_features, dists_from_features, load_dists_weights
from sic_jax.metrics.lpips_metric import load_alexnet_weights, lpips_features, lpips_from_features
from sic_jax.model.levels import LevelConfig, level_mask


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """Weights of the SVI loss as functions of the level (index 0 is level 1)."""

    lmbda_rate: tuple[float, ...]
    """Weight of bits per pixel at each level, lambda_r."""
    lmbda_dist: tuple[float, ...]
    """Weight of the mean squared error at each level, lambda_d. Images are in [0, 1]."""
    lmbda_perc: tuple[float, ...]
    """Weight of LPIPS (AlexNet) at each level, lambda_p. All 0: LPIPS is not computed."""
    levels: str = "mixed"
    """Levels that a step trains. `mixed`: each image of a batch has a level of its own. `cyclic`
    (the paper's code): every image is decoded at level L and at l = L - step mod L."""
    full_share: float = 0.5
    """Weight of level L (the paper's 1 - alpha). `mixed`: share of a batch's images that are
    decoded at level L; the others draw a level. `cyclic`: weight of the decoding at level L."""
    num_samples: int = 1
    """Samples of the details per image, M. Each is decoded and compared with the image."""
    temperature: float = 0.0
    """Temperature of the sampled details."""
    sampled_share: float = 1.0
    """Share of images whose details are drawn at `temperature`. The others take their mean."""
    rounded_share: float = 0.0
    """Share of images whose rate is that of rounded latents, as in a file, with straight-through
    gradients. The rate of the others is that of noisy latents, an upper bound."""
    grain: bool = False
    """Add grain to decodings before LPIPS and DISTS, as strong as that of the crop, as a decoder
    does (`sic_jax.codec.grain`)."""
    clamp: bool = False
    """Clip decodings to [0, 1] before they are compared; outside, the gradient is 0."""
    lmbda_consistency: float = 0.0
    """Weight of the latent consistency loss ("reverse compress" in the paper)."""
    dists_weight: float = 0.0
    """Weight of DISTS relative to LPIPS: lambda_p(l) * (LPIPS + dists_weight DISTS)."""
    dists_every: int = 4
    """Compute DISTS for every n-th image of a batch only, and count it n times. VGG16 costs five
    times what the model does. It must divide the number of images in a part of a batch (`batch_size
    / accumulate`)."""
    adversarial_weight: float = 0.0
    """Weight of the adversarial loss G relative to LPIPS: lambda_p(l) * (LPIPS + adversarial_weight
    G). 0: there is no discriminator."""
    lmbda_balance: float = 0.0
    """Weight of a warm-up term: the standard deviation minus the minimum, over levels, of the bits
    per pixel that each level adds."""

    def __post_init__(self) -> None:
        """Check the fields."""
        n = len(self.lmbda_rate)
        same = len(self.lmbda_dist) == n and len(self.lmbda_perc) == n
        require(
            same and n > 0,
            self,
            "lmbda_*",
            (n, len(self.lmbda_dist), len(self.lmbda_perc)),
            "of one length",
        )
        require(0 <= self.full_share <= 1, self, "full_share", self.full_share, "in [0, 1]")
        for name in ("sampled_share", "rounded_share"):
            share = getattr(self, name)
            require(0 <= share <= 1, self, name, share, "in [0, 1]")
        require(self.levels in ("mixed", "cyclic"), self, "levels", self.levels, "mixed or cyclic")
        require(self.num_samples > 0, self, "num_samples", self.num_samples, "positive")
        for name in (
            "temperature",
            "lmbda_consistency",
            "dists_weight",
            "adversarial_weight",
            "lmbda_balance",
        ):
            require(getattr(self, name) >= 0, self, name, getattr(self, name), "at least 0")
        ok = any(self.lmbda_perc) or not (self.dists_weight or self.adversarial_weight)
        allowed = "not 0 everywhere where dists_weight or adversarial_weight is not 0"
        require(ok, self, "lmbda_perc", self.lmbda_perc, allowed)
        require(self.dists_every > 0, self, "dists_every", self.dists_every, "positive")


PerceptualWeights = dict[str, Weights]
"""Networks of the perceptual terms that a loss has, by name: `lpips`, `dists`."""

Terms = dict[str, tuple[jax.Array, jax.Array]]
"""Sums over images and what to divide them by: they add up over devices and parts of a batch."""


class Decodings(NamedTuple):
    """Which decodings of each of B images are compared with it."""

    level: jax.Array
    """int32 [R, B], 1 to L."""
    weight: jax.Array
    """float32 [R, B]; the sum over R is 1."""


def draw_levels(key: jax.Array, batch_size: int, num_levels: int, full_share: float) -> jax.Array:
    """Levels of a batch, int32 [B]: first those at level L, then a stratified uniform draw."""
    num_full = round(full_share * batch_size)
    num_drawn = batch_size - num_full
    places = jnp.arange(num_drawn, dtype=jnp.float32)
    u = (places + jax.random.uniform(key, (num_drawn,))) / max(num_drawn, 1)
    drawn = 1 + jnp.floor(u * num_levels).astype(jnp.int32)
    full = jnp.full((num_full,), num_levels, jnp.int32)
    return jnp.concatenate([full, jnp.minimum(drawn, num_levels)])


def plan_decodings(
    key: jax.Array, step: jax.Array, rows: jax.Array, batch_size: int, cfg: LossConfig
) -> Decodings:
    """Levels and weights of the decodings of some images of a batch.

    `mixed` has R = M decodings of an image at its level; `cyclic` one at level L and M at level
    l = L - step mod L (the paper's schedule), weighted as alpha L(l) + (1 - alpha) L(L).

    Args:
        key: Of the step, the same for all parts of its batch.
        step: int scalar.
        rows: int [B], places of the images in the whole batch.
        batch_size: Images of the whole batch.
        cfg: Of the loss.
    """
    num_levels, m = len(cfg.lmbda_rate), cfg.num_samples
    if cfg.levels == "mixed":
        level = draw_levels(key, batch_size, num_levels, cfg.full_share)[rows]
        shape = (m, *rows.shape)
        return Decodings(jnp.broadcast_to(level, shape), jnp.full(shape, 1 / m))
    low = num_levels - step % num_levels
    level = jnp.concatenate([jnp.full((1,), num_levels), jnp.full((m,), low)]).astype(jnp.int32)
    share = jnp.array([cfg.full_share] + [(1 - cfg.full_share) / m] * m, jnp.float32)
    shape = (1 + m, *rows.shape)
    return Decodings(
        jnp.broadcast_to(level[:, None], shape), jnp.broadcast_to(share[:, None], shape)
    )


def rate_terms(bits_z: jax.Array, bits_y: jax.Array, level: jax.Array, pixels: int) -> jax.Array:
    """Estimated bits per pixel of y_s and z: [R, B] for bits [B] and [B, L] and levels [R, B]."""
    coded = jnp.arange(bits_y.shape[-1])[None, None] < level[..., None]
    return (bits_z[None] + jnp.where(coded, bits_y, 0).sum(-1)) / pixels


def balance_term(bits_y: jax.Array, pixels: int) -> jax.Array:
    """Standard deviation minus minimum of the levels' own bpp, [B] for bits [B, L].

    The authors' warm-up takes both of the batch's means; here they are an image's, so that it does
    not matter how a batch is cut. The deviation is theirs, over L - 1.
    """
    bpp = bits_y / pixels
    # std has no derivative where all are equal.
    deviation = jnp.sqrt(jnp.var(bpp, axis=-1, ddof=min(1, bpp.shape[-1] - 1)) + 1e-12)
    return deviation - bpp.min(-1)


def consistency_terms(
    y_again: jax.Array, y_hat: jax.Array, level: jax.Array, levels: LevelConfig
) -> tuple[jax.Array, jax.Array]:
    """Latent consistency of R decodings: (synonymous, details), [R, B] each.

    Args:
        y_again: g_a of the reconstructions, [R, B, h, w, C].
        y_hat: What g_s saw, of the same shape: y_s, and drawn details above the level.
        level: int [R, B].
        levels: Of the model.

    Returns:
        Mean squared differences over the channels up to `level`, and over those above it (0 where
        there are none).
    """
    flat = level.reshape(-1)
    error = jnp.square(y_again - y_hat).reshape(-1, *y_hat.shape[2:])
    known = level_mask(flat, levels)
    positions = error.shape[1] * error.shape[2]

    def mean(mask: jax.Array) -> jax.Array:
        total = jnp.where(mask, error, 0).sum((1, 2, 3))
        count = mask.sum((1, 2, 3), dtype=jnp.float32) * positions
        return (total / jnp.maximum(count, 1)).reshape(level.shape)

    return mean(known), mean(~known)


def load_perceptual_weights(cfg: LossConfig, compute_dtype: str = "float32") -> PerceptualWeights:
    """What the step of a run with this loss needs.

    In `bfloat16` the convolutions compute in it, all but the first: that would round the pictures
    to less than their 8 bits. Distances are taken of float32 features in any case.
    """
    if not any(cfg.lmbda_perc):
        return {}
    weights: PerceptualWeights = {"lpips": load_alexnet_weights()}
    if cfg.dists_weight:
        weights["dists"] = load_dists_weights()

    def cast(name: str, array: Array) -> Array:
        rounds = name.endswith("_kernel") and name != "conv1_kernel"
        return np.asarray(array, compute_dtype) if rounds else array

    return {of: {k: cast(k, a) for k, a in arrays.items()} for of, arrays in weights.items()}


def lpips_terms(x: jax.Array, x_hat: jax.Array, weights: Weights) -> jax.Array:
    """LPIPS (AlexNet) of images [B, H, W, 3] and their decodings [R, B, H, W, 3]: [R, B]."""
    return _compare(lpips_features, lpips_from_features, x, x_hat, weights)


def dists_terms(
    x: jax.Array, x_hat: jax.Array, weights: Weights, offset: jax.Array, every: int
) -> jax.Array:
    """DISTS of every n-th image of [B, H, W, 3] and its decodings [R, B, H, W, 3], times n: [R, B].

    The mean over images is an unbiased estimate of what it would be with all of them.

    Args:
        x: Images.
        x_hat: Their decodings.
        weights: Of `load_dists_weights`.
        offset: int scalar, the first of the images, 0 to n - 1.
        every: n.

    Raises:
        ValueError: If n does not divide B.
    """
    r, b = x_hat.shape[:2]
    if b % every:
        raise ValueError(f"dists_every is {every}; it must divide the {b} images of a part")
    # Not a gather from the whole axis: the images of a device stay there.
    x = x.reshape(b // every, every, *x.shape[1:])[:, offset]
    x_hat = x_hat.reshape(r, b // every, every, *x_hat.shape[2:])[:, :, offset]
    found = _compare(dists_features, dists_from_features, x, x_hat, weights)
    here = jnp.arange(every) == offset
    return jnp.where(here, every * found[..., None], 0).reshape(r, b)


def _compare(
    features_of: Callable[..., Features],
    distance: Callable[..., jax.Array],
    x: jax.Array,
    x_hat: jax.Array,
    weights: Weights,
) -> jax.Array:
    """Distances [R, B] of images and their R decodings; an image's features are computed once."""
    r, b = x_hat.shape[:2]
    features = features_of(x, weights=weights)
    features_hat = features_of(x_hat.reshape(r * b, *x.shape[1:]), weights=weights)
    repeated = tuple(jnp.broadcast_to(f, (r, *f.shape)).reshape(g.shape)
                     for f, g in zip(features, features_hat, strict=True))  # fmt: skip
    return distance(repeated, features_hat, weights=weights).reshape(r, b)


def generator_loss(logits: Sequence[jax.Array]) -> jax.Array:
    """G = -log D(x_hat), non-saturating: the mean over maps of logits [N, h, w, 1], [N]."""
    return _mean_over_maps([jax.nn.softplus(-fake) for fake in logits])


def discriminator_loss(real: Sequence[jax.Array], fake: Sequence[jax.Array]) -> jax.Array:
    """-log D(x) - log(1 - D(x_hat)), the mean over maps of logits [N, h, w, 1]: [N]."""
    both = zip(real, fake, strict=True)
    return _mean_over_maps([jax.nn.softplus(-x) + jax.nn.softplus(x_hat) for x, x_hat in both])


def _mean_over_maps(maps: Sequence[jax.Array]) -> jax.Array:
    return jnp.stack([m.mean((1, 2, 3)) for m in maps]).mean(0)


class Compared(NamedTuple):
    """What the loss of B images with R decodings each is made of."""

    bpp: jax.Array
    """[R, B], `rate_terms`."""
    mse: jax.Array
    """[R, B], of images in [0, 1]."""
    lpips: jax.Array | None = None
    """[R, B]."""
    dists: jax.Array | None = None
    """[R, B]."""
    adv: jax.Array | None = None
    """[R, B], `generator_loss`."""
    adv_share: jax.Array | float = 1.0
    """A scalar that multiplies the weight of `adv`."""
    balance: jax.Array | None = None
    """[B], `balance_term`."""
    consistency: tuple[jax.Array, jax.Array] | None = None
    """[R, B] each, `consistency_terms`."""


def svi_loss(terms: Compared, decodings: Decodings, cfg: LossConfig) -> tuple[jax.Array, Terms]:
    """Mean loss of a batch, and its terms.

    The consistency of details counts as in the authors' code: its sum over the M draws divided by
    all M + 1 decodings where levels are `cyclic`; that of y_s as the mean over all decodings.

    Returns:
        (loss, terms): a scalar; sums and counts named by term, `*_full` over decodings at level L,
        `*_low` over the others.
    """
    level, weight = decodings
    at = level - 1
    value = jnp.asarray(cfg.lmbda_rate, jnp.float32)[at] * terms.bpp
    value += jnp.asarray(cfg.lmbda_dist, jnp.float32)[at] * terms.mse
    named = {"bpp": terms.bpp, "mse": terms.mse}
    if terms.lpips is not None:
        named["lpips"] = terms.lpips
        perception = terms.lpips
        if terms.dists is not None:
            named["dists"] = terms.dists
            perception += cfg.dists_weight * terms.dists
        if terms.adv is not None:
            named["adv"] = terms.adv
            perception += cfg.adversarial_weight * terms.adv_share * terms.adv
        value += jnp.asarray(cfg.lmbda_perc, jnp.float32)[at] * perception
    loss = (weight * value).sum(0)
    if terms.balance is not None:
        loss += cfg.lmbda_balance * terms.balance
    if terms.consistency is not None:
        synonymous, details = terms.consistency
        named |= {"consistency_s": synonymous, "consistency_eps": details}
        loss += cfg.lmbda_consistency * (synonymous + details).mean(0)
    full = (level == len(cfg.lmbda_rate)).astype(jnp.float32)
    images = jnp.float32(loss.shape[0])
    sums: Terms = {"loss": (loss.sum(), images)}
    if terms.balance is not None:
        sums["balance"] = (terms.balance.sum(), images)
    for name, term in named.items():
        sums[f"{name}_full"] = ((term * full).sum(), full.sum())
        sums[f"{name}_low"] = ((term * (1 - full)).sum(), (1 - full).sum())
    return loss.mean(), sums


def mean_terms(terms: Terms) -> dict[str, jax.Array]:
    """Sums divided by their counts, scalars; 0 where nothing was counted."""
    return {k: total / jnp.maximum(count, 1) for k, (total, count) in terms.items()}
