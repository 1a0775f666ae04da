"""Small trials on a CPU: a sixteenth of the default model, from scratch, the same pictures each.

python docs/notebook/trials.py crops PHOTOS... --out crops
python docs/notebook/trials.py run base soap_0.01 --crops crops --out results.jsonl
python docs/notebook/trials.py table results.jsonl --of base

`crops` cuts training crops and pieces of 24 held-out photographs once; a trial reads no photograph.
`run` trains one of `trials()` and measures what its average of the parameters makes of the held-out
pictures, at every level. `table` compares. Pages of the notebook have the results.
"""

import argparse
import contextlib
import dataclasses
import functools
import json
import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
from decoder_shapes import ShapedTransforms
from numpy.typing import NDArray

from sic_jax.data.crops import CropSampler, DataConfig, cut
from sic_jax.data.folder import open_folder
from sic_jax.evaluation.bd import bd_rate
from sic_jax.evaluation.fid import vgg16_of_package
from sic_jax.metrics.dists_metric import dists_features, dists_from_features, load_dists_weights
from sic_jax.metrics.frechet import fid, patches
from sic_jax.metrics.lpips_metric import lpips_features, lpips_from_features
from sic_jax.metrics.vgg import load_vgg16_weights
from sic_jax.metrics.wasserstein_metric import wasserstein_features, wasserstein_from_features
from sic_jax.model.entropy_models.checkerboard.checkerboard import CheckerboardEntropy
from sic_jax.model.levels import LevelConfig
from sic_jax.model.model_config import ModelConfig
from sic_jax.model.params import init_params
from sic_jax.model.sic import SicModel
from sic_jax.model.transforms.pyramid import PyramidTransforms
from sic_jax.model.tree import Params, flatten_params, unflatten_params
from sic_jax.training import losses
from sic_jax.training.discriminator import DiscriminatorConfig
from sic_jax.training.gradients import make_gradients
from sic_jax.training.losses import LossConfig, load_perceptual_weights, mean_terms
from sic_jax.training.presets import geometric_loss
from sic_jax.training.soap import scale_by_soap
from sic_jax.training.state import TrainState, create_train_state
from sic_jax.training.step import make_train_step
from sic_jax.training.train_config import TrainConfig
from sic_jax.training.validation import make_validate, mean_loss

SIDE = 96
"""Of the training crops."""
LARGE = 144
"""Of the crops in the file; a trial takes the middle of them."""
VALIDATION = 192
HELD_OUT = 24
PIECES = 12
"""Largest number of pieces of a held-out photograph that the Frechet distance is measured with."""
IMAGES = 7200
"""That every trial trains with: 900 batches of 8."""
EMA = (0.99, 0.999, 0.0)
"""Decays that a trial keeps averages for; the first is compared between trials."""
METRICS = ("psnr", "lpips")
TEXTURE_METRICS = ("lpips_vgg", "dists", "wd")
"""Of trials with `Trial.judged_by_texture`: minutes of VGG16, so of smaller pictures, and"""
TEXTURE_LEVELS = (1, 3, 5)
"""at these levels only."""


def cut_crops(folders: list[str], out: Path) -> None:
    """Write train.npy, held_out.npy and pieces.npy."""
    sources = [open_folder(folder, crop_size=VALIDATION) for folder in folders]
    images = [(source, k) for source in sources for k in range(len(source))]
    held = set(np.linspace(0, len(images) - 1, HELD_OUT).round().astype(int).tolist())
    train = [image for k, image in enumerate(images) if k not in held]
    out.mkdir(parents=True, exist_ok=True)
    middles, pieces = [], []
    for number, k in enumerate(sorted(held)):
        image, side = images[k][0][images[k][1]], VALIDATION
        top, left = ((n - side) // 2 for n in image.shape[:2])
        middles.append(image[top : top + side, left : left + side])
        rows, columns = (range(0, n - side + 1, side) for n in image.shape[:2])
        grid = [image[i : i + side, j : j + side] for i in rows for j in columns]
        some = np.random.default_rng(number).permutation(len(grid))[:PIECES]
        pieces += [grid[i] for i in some]
    np.save(out / "held_out.npy", np.stack(middles))
    np.save(out / "pieces.npy", np.stack(pieces))
    data = DataConfig(scale_jitter=0.3, transpose=0.3)
    sampler = CropSampler(len(train), LARGE, 0, data)
    crops = np.zeros((IMAGES, LARGE, LARGE, 3), np.uint8)
    # Four crops of each photograph that is read.
    order = np.random.default_rng(0).permutation(IMAGES)
    for first in range(0, IMAGES, 4):
        source, index = train[sampler.image(first // 4)]
        image = source[index]
        for position in range(first, first + 4):
            crops[order[position]] = cut(image, sampler.crop(position, *image.shape[:2]), LARGE)
    np.save(out / "train.npy", crops)


# Trials.


@dataclasses.dataclass(frozen=True)
class Trial:
    """What differs from the base."""

    optimiser: str = "adam"
    learning_rate: float = 3e-3
    schedule: str = "cosine"
    batch_size: int = 8
    side: int = SIDE
    seed: int = 0
    images: int = IMAGES
    model: ModelConfig = dataclasses.field(default_factory=lambda: small_model())
    loss: LossConfig = dataclasses.field(default_factory=lambda: perceptual_loss())
    first_loss: LossConfig | None = None
    """Of the first third."""
    texture: str = "dists"
    """What stands where DISTS does, if the loss has a weight for it."""
    start: str = ""
    """Trial whose result it goes on from."""
    adversarial_weight: float | None = None
    """Of a trial that the library's step makes, with `discriminator`."""
    discriminator: DiscriminatorConfig = DiscriminatorConfig()
    judged_by_texture: bool = False
    """Whether `TEXTURE_METRICS` are measured."""


LEVELS = LevelConfig(channels=(6, 10, 14, 18, 24, 32), refinements=(0, 0, 0, 8, 8, 8), deadzone=0.1)


NARROW_CONTEXT: dict[str, Any] = {"context_width": 6, "anchor_width": 6, "head_width": 16}
"""Half of the widths of the context model of `small_model`."""


def small_model(transforms: PyramidTransforms | None = None, **entropy: int) -> ModelConfig:
    """A sixteenth of the default model: a quarter of all widths, six levels."""
    sizes: dict[str, Any] = {
        "hyper_channels": 12,
        "hyper_width": 32,
        "context_width": 12,
        "anchor_width": 12,
        "head_width": 32,
    }
    return ModelConfig(
        levels=LEVELS,
        transforms=transforms or PyramidTransforms(widths=(16, 24, 40, 64)),
        entropy=CheckerboardEntropy(**(sizes | entropy)),
    )


def fast_models() -> dict[str, ModelConfig]:
    """Decoders of 18 kMAC a pixel; g_a has half of the default's widths."""
    even, even_depths = (28, 40, 72, 112), (3, 4, 4, 3)
    dense: dict[str, Any] = {
        "even": (even, even_depths),
        "half": ((36, 48, 64, 96), (1, 1, 2, 3)),
        "half_wide": ((48, 40, 48, 96), (1, 1, 1, 2)),
        "quarter": ((16, 60, 96, 128), (2, 3, 4, 0)),
        "coarse": ((16, 36, 96, 192), (4, 4, 4, 0)),
    }
    shaped: dict[str, Any] = {
        "haar": (even, even_depths),
        "depthwise": ((40, 60, 112, 168), even_depths),
        "renderer": ((1, 96, 76, 128), (2, 2, 0, 6)),
    }
    half = (32, 48, 80, 128)

    def sizes(widths: Any, depths: Any) -> dict[str, Any]:
        return {"widths": half, "synthesis_widths": widths, "synthesis_depths": depths}

    transforms = {name: PyramidTransforms(**sizes(*shape)) for name, shape in dense.items()}
    transforms |= {
        name: ShapedTransforms(shape=name, **sizes(*shape)) for name, shape in shaped.items()
    }
    models = {f"fast_{name}": small_model(t) for name, t in transforms.items()}
    models["fast_context_narrow"] = small_model(transforms["half_wide"], **NARROW_CONTEXT)
    small = PyramidTransforms(**sizes((36, 32, 40, 80), (1, 1, 1, 2)))
    models["fast_synthesis_narrow"] = small_model(small)
    return models


def perceptual_loss(dist: float = 1.0, perc: float = 1.0, dists_weight: float = 0.0) -> LossConfig:
    """The loss of the default's last stage, without grain, and without DISTS unless it is given."""
    loss = geometric_loss(
        (8, 1.25),
        (20 * dist, 500 * dist),
        (0.32 * perc, 6.6 * perc),
        LEVELS.num_levels,
        dists_weight,
    )
    return dataclasses.replace(
        loss, full_share=0.0, temperature=0.35, sampled_share=0.5, rounded_share=0.75
    )


def trials() -> dict[str, Trial]:
    """All trials by name."""
    out = {"base": Trial(), "base_seed1": Trial(seed=1), "muon_0.003": Trial(optimiser="muon")}
    rates = {
        "adam": (6e-3, 1.2e-2),
        "soap": (3e-3, 6e-3, 1e-2),
        "soap_50": (6e-3,),
        "soap_taps": (3e-3, 6e-3),
    }
    for optimiser, some in rates.items():
        for rate in some:
            out[f"{optimiser}_{rate:g}"] = Trial(optimiser=optimiser, learning_rate=rate)
    out["wsd"] = Trial(schedule="wsd")
    out["wsd_0.006"] = Trial(schedule="wsd", learning_rate=6e-3)
    out["wsd_soap_0.006"] = Trial(schedule="wsd", optimiser="soap", learning_rate=6e-3)
    out["batch_16_lr"] = Trial(batch_size=16, learning_rate=4.5e-3)
    out["crop_144"] = Trial(side=144, batch_size=4, images=4 * 800)
    out["hyper_wide"] = Trial(model=small_model(hyper_channels=24, hyper_width=64))
    out["context_narrow"] = Trial(model=small_model(**NARROW_CONTEXT))
    for name, model in fast_models().items():
        out[name] = Trial(model=model)
    weights = {"none": 0.0, "dists": 1.0, "lpips_vgg": 0.5, "wd": 0.025, "both": 1.0}
    for kind, weight in weights.items():
        out[f"texture_{kind}"] = Trial(
            texture=kind,
            loss=perceptual_loss(dists_weight=weight),
            images=2400,
            learning_rate=1e-3,
            start="base",
            judged_by_texture=True,
        )
    kinds = {
        "none": (0.0, "patch", 0.0),
        "patch": (0.03, "patch", 0.0),
        "alexnet": (0.03, "alexnet", 0.0),
        "alexnet_more": (0.1, "alexnet", 0.0),
        "alexnet_most": (0.3, "alexnet", 0.0),
        "dists": (0.0, "patch", 1.0),
        "dists_alexnet": (0.1, "alexnet", 1.0),
    }
    for name, (weight, network, dists) in kinds.items():
        out[f"adversarial_{name}"] = Trial(
            adversarial_weight=weight,
            loss=perceptual_loss(dists_weight=dists),
            discriminator=DiscriminatorConfig(
                network=network,
                features=(16, 32, 64, 128),
                head_width=32,
                condition_features=4,
                learning_rate=3e-4,
                ramp_steps=500,
            ),
            batch_size=4,
            images=8000,
            learning_rate=1e-3,
            start="base",
            judged_by_texture=True,
        )
    out["mse_first"] = Trial(first_loss=perceptual_loss(2.0, 0.5))
    return out


# Optimisers.


def schedule(trial: Trial, steps: int) -> optax.Schedule:
    """Warm-up of a twentieth, then cosine to 1 %; or constant, with a linear fall of 30 %."""
    peak, warmup = trial.learning_rate, steps // 20
    if trial.schedule == "cosine":
        return optax.warmup_cosine_decay_schedule(0.0, peak, warmup, steps, 0.01 * peak)
    fall = round(0.3 * steps)
    return optax.join_schedules(
        [
            optax.linear_schedule(0.0, peak, warmup),
            optax.constant_schedule(peak),
            optax.linear_schedule(peak, 0.0, fall),
        ],
        [warmup, steps - fall],
    )


def is_kernel(path: tuple[Any, ...], leaf: jax.Array) -> bool:
    """Whether a parameter is a matrix that maps features to features."""
    return path[-1].key == "kernel" and leaf.ndim >= 2


def make_optimiser(trial: Trial) -> optax.GradientTransformation:
    """With the default's clipping, its tenth of the rate for the linear branches, and no rate."""
    adam = optax.scale_by_adam(b2=0.995)
    if trial.optimiser == "adam":
        scaled: optax.GradientTransformation = adam
    else:
        soap = functools.partial(
            scale_by_soap, is_stacked=lambda name: name in trial.model.entropy.stacked_networks
        )
        kinds: dict[str, Any] = {
            "muon": muon,
            "soap": soap,
            "soap_50": functools.partial(soap, every=50),
            "soap_taps": functools.partial(soap, max_rows=0),
        }
        kernels = kinds[trial.optimiser]()

        def labels(params: Any) -> Any:
            return jax.tree_util.tree_map_with_path(
                lambda path, leaf: "kernels" if is_kernel(path, leaf) else "others", params
            )

        scaled = optax.multi_transform({"kernels": kernels, "others": adam}, labels)

    def slower(updates: Any, _: Any = None) -> Any:
        return jax.tree_util.tree_map_with_path(
            lambda path, u: 0.1 * u if path[-1].key == "linear" else u, updates
        )

    return optax.chain(
        optax.clip_by_global_norm(1.0),
        scaled,
        optax.stateless(slower),
    )


def as_matrices(leaf: jax.Array, path: tuple[Any, ...]) -> jax.Array:
    """A kernel as matrices [groups, inputs, outputs]; only the context model has several."""
    groups = leaf.shape[0] if path[0].key == "context" else 1
    return leaf.reshape(groups, -1, leaf.shape[-1])


def muon() -> optax.GradientTransformation:
    """Orthogonalised momentum, as large as Adam's update (root mean square of 0.2)."""

    def axes(params: Any) -> Any:
        def of(path: tuple[Any, ...], p: jax.Array) -> Any:
            first = 1 if path[0].key == "context" else 0
            return optax.contrib.MuonDimensionNumbers(tuple(range(first, p.ndim - 1)), p.ndim - 1)

        return jax.tree_util.tree_map_with_path(of, params)

    def scaled(updates: Any, _: Any = None) -> Any:
        def scale(path: tuple[Any, ...], u: jax.Array) -> jax.Array:
            side: int = max(as_matrices(u, path).shape[1:])
            return 0.2 * math.sqrt(side) * u

        return jax.tree_util.tree_map_with_path(scale, updates)

    orthogonal = optax.contrib.scale_by_muon(weight_dimension_numbers=axes)
    return optax.chain(orthogonal, optax.stateless(scaled))


# A run.


def config(trial: Trial, loss: LossConfig, steps: int) -> TrainConfig:
    """What the library's loss needs."""
    return TrainConfig(
        model=trial.model,
        loss=loss,
        steps=steps,
        batch_size=trial.batch_size,
        crop_size=trial.side,
        seed=trial.seed,
        warmup_steps=0,
    )


def texture(kind: str) -> tuple[Any, Any]:
    """A patch of the library's loss, so that `kind` stands where DISTS does; and its weights."""
    if kind == "dists":
        return contextlib.nullcontext(), load_dists_weights()
    if kind == "lpips_vgg":
        features: Any = functools.partial(lpips_features, net="vgg")
        distance: Any = functools.partial(lpips_from_features, net="vgg")
    elif kind == "both":
        features, distance = features_of_both, distance_of_both
    else:
        features = wasserstein_features

        def distance(a: Any, b: Any, *, weights: Any) -> jax.Array:
            return wasserstein_from_features(a, b)

    patch = mock.patch.multiple(losses, dists_features=features, dists_from_features=distance)
    vgg = load_vgg16_weights()
    return patch, {"dists": load_dists_weights(), "vgg": vgg} if kind == "both" else vgg


def features_of_both(x: jax.Array, *, weights: Any) -> Any:
    """The six arrays of DISTS and the five of LPIPS with VGG16."""
    of_dists = dists_features(x, weights=weights["dists"])
    return of_dists + lpips_features(x, weights=weights["vgg"], net="vgg")


def distance_of_both(a: Any, b: Any, *, weights: Any) -> jax.Array:
    """DISTS and half of LPIPS with VGG16, [B], of `features_of_both`."""
    of_dists = dists_from_features(a[:6], b[:6], weights=weights["dists"])
    of_lpips = lpips_from_features(a[6:], b[6:], weights=weights["vgg"], net="vgg")
    return of_dists + 0.5 * of_lpips


def batch_of(trial: Trial, data: NDArray[np.uint8], step: int) -> NDArray[np.uint8]:
    """The crops of a step, uint8 [B, P, P, 3]."""
    edge = (LARGE - trial.side) // 2
    at = np.arange(step * trial.batch_size, (step + 1) * trial.batch_size) % IMAGES
    return np.asarray(data[at, edge : edge + trial.side, edge : edge + trial.side])


def run(name: str, trial: Trial, crops: Path, out: Path) -> tuple[dict[str, Any], Params]:
    """Train and measure; the result, and the average of the parameters."""
    steps = trial.images // trial.batch_size
    data = np.load(crops / "train.npy", mmap_mode="r")
    optimiser = make_optimiser(trial)
    params = init_params(trial.model, seed=trial.seed)
    levels = trial.model.levels

    def patches(size: int) -> NDArray[np.float32]:
        some: NDArray[np.float32] = data[:600, :96, :96].astype(np.float32)
        cells: NDArray[np.float32] = some.reshape(
            600, 96 // size, size, 96 // size, size, 3
        ).swapaxes(2, 3)
        return cells.reshape(-1, 3 * size**2) / np.float32(255) - np.float32(0.5)

    params = trial.model.transforms.start(params, levels, patches)
    if trial.start:
        params = read_params(out.with_name(f"{trial.start}.npz"))
    carry = (params, optimiser.init(params), (params,) * len(EMA))
    # A copy each, as a step overwrites what it is given.
    carry = jax.tree.map(lambda a: jnp.array(a, copy=True), carry)
    rate_at = schedule(trial, steps)
    weights = load_perceptual_weights(trial.loss, "float32")
    patch: Any = contextlib.nullcontext()
    if trial.loss.dists_weight:
        patch, weights["dists"] = texture(trial.texture)
    weights = jax.device_put(weights)

    def step_of(loss: LossConfig) -> Any:
        gradients = make_gradients(config(trial, loss, steps))

        def step(
            carry: Any, number: jax.Array, rate: jax.Array, batch: jax.Array, weights: Any
        ) -> Any:
            params, opt_state, averages = carry
            state = TrainState(number, params, {}, None, None)
            found = gradients(state, batch, jnp.arange(len(batch)), weights)
            updates, opt_state = optimiser.update(found.params, opt_state, params)
            params = jax.tree.map(lambda p, u: p - rate * u, params, updates)
            decays = [jnp.minimum(d, (1.0 + number) / (10.0 + number)) for d in EMA]
            averages = tuple(
                jax.tree.map(lambda e, p, d=d: e + (1 - d) * (p - e), average, params)
                for d, average in zip(decays, averages, strict=True)
            )
            return (params, opt_state, averages), found.terms["loss"]

        return jax.jit(step, donate_argnums=0)

    began = time.monotonic()
    programs = {id(loss): step_of(loss) for loss in (trial.loss, trial.first_loss or trial.loss)}
    started, compiled = None, 0.0
    with patch:
        for k in range(steps):
            first = trial.first_loss is not None and k < steps // 3
            batch = batch_of(trial, data, k)
            step = programs[id(trial.first_loss if first else trial.loss)]
            carry, (loss_sum, n) = step(carry, jnp.int32(k), rate_at(k), batch, weights)
            if k == 1:
                jax.block_until_ready(carry)
                compiled, started = time.monotonic() - began, time.monotonic()
            if k % 50 == 49:
                say(f"{name} {k + 1} {float(loss_sum) / float(n):.4f}")
    jax.block_until_ready(carry)
    assert started is not None
    seconds = (time.monotonic() - started) / (steps - 2)
    result = {"steps": steps, "compile_s": round(compiled, 1), "step_ms": 1e3 * seconds}
    averages = dict(zip(EMA, carry[2], strict=True))
    result |= measure(trial, averages[EMA[0]], crops)
    if name.startswith("base"):
        for decay in EMA[1:]:
            result[f"loss_{decay:g}"] = measure(trial, averages[decay], crops)["loss"]
    return result, averages[EMA[0]]


def run_adversarial(
    name: str, trial: Trial, crops: Path, out: Path
) -> tuple[dict[str, Any], Params]:
    """As `run`, by the library's step."""
    steps = trial.images // trial.batch_size
    loss = dataclasses.replace(trial.loss, adversarial_weight=trial.adversarial_weight or 0.0)
    cfg = dataclasses.replace(
        config(trial, loss, steps),
        discriminator=trial.discriminator,
        learning_rate=trial.learning_rate,
        warmup_steps=steps // 20,
        beta2=0.995,
        ema_decay=EMA[0],
    )
    state = create_train_state(cfg, read_params(out.with_name(f"{trial.start}.npz")))
    step = jax.jit(make_train_step(cfg), donate_argnums=0)
    weights = jax.device_put(load_perceptual_weights(loss, "float32"))
    data = np.load(crops / "train.npy", mmap_mode="r")
    log: list[dict[str, float]] = []
    compiled, began = 0.0, time.monotonic()
    for k in range(steps):
        batch = batch_of(trial, data, k)
        state, metrics = step(state, batch, jnp.arange(trial.batch_size), weights)
        if k == 0:
            jax.block_until_ready(state)
            compiled, began = time.monotonic() - began, time.monotonic()
        if k % 100 == 99:
            log.append({term: float(v) for term, v in mean_terms(metrics.terms).items()})
            say(f"{name} {k + 1} {log[-1]}")
    jax.block_until_ready(state)
    seconds = (time.monotonic() - began) / (steps - 1)
    result = {"steps": steps, "compile_s": round(compiled, 1), "step_ms": 1e3 * seconds}
    return result | {"log": log} | measure(trial, state.ema, crops), state.ema


def read_params(path: Path) -> Params:
    """What a trial left."""
    with np.load(path) as file:
        return unflatten_params({k: jnp.asarray(a) for k, a in file.items()})


def measure(trial: Trial, params: Params, crops: Path) -> dict[str, Any]:
    """Rates, distances and the base's loss on held-out pictures."""
    held_out = np.load(crops / "held_out.npy")
    levels = range(1, trial.model.num_levels + 1)
    validate = make_validate(trial.model, levels=levels, metrics=METRICS, batch_size=6)
    measured = validate(params, held_out)
    result: dict[str, Any] = {"measured": measured}
    result["loss"] = mean_loss(measured, levels, perceptual_loss())
    if trial.judged_by_texture:
        middles = held_out[:, 32:-32, 32:-32]
        validate = make_validate(
            trial.model, levels=TEXTURE_LEVELS, metrics=TEXTURE_METRICS, batch_size=6
        )
        result["texture"] = validate(params, middles)
        pieces = np.load(crops / "pieces.npy")
        result["texture"] |= frechet(trial.model, params, pieces, TEXTURE_LEVELS[1:])
    return result


def frechet(
    model: ModelConfig, params: Params, images: NDArray[np.uint8], levels: Sequence[int]
) -> dict[str, float]:
    """The stand-in for FID on patches of 64 pixels of decodings with drawn details."""
    features = vgg16_of_package()
    network: Any = SicModel(model)

    @jax.jit
    def decode(params: Params, x: jax.Array, level: jax.Array, key: jax.Array) -> jax.Array:
        keys = jax.random.split(key, len(x))
        variables = {"params": params}
        y, z = network.apply(variables, x.astype(jnp.float32) / 255, method="analyse")
        rated = network.apply(variables, y, z, method="rate")
        y_hat = network.apply(
            variables,
            rated.y_hat,
            rated.hyper,
            level,
            temperature=jnp.full(len(x), 0.35),
            key=keys,
            method="complete",
        )
        x_hat = network.apply(variables, y_hat, level, method="synthesise")
        return jnp.round(jnp.clip(x_hat, 0, 1) * 255).astype(jnp.uint8)

    def of(pictures: Any) -> Any:
        return features(np.concatenate([patches(np.asarray(x), size=64) for x in pictures]))

    batches = [images[i : i + HELD_OUT] for i in range(0, len(images), HELD_OUT)]
    real, found = np.concatenate([of(x) for x in batches]), {}
    for level in levels:
        decoded = [
            of(decode(params, x, jnp.full(len(x), level), jax.random.key(k)))
            for k, x in enumerate(batches)
        ]
        found[f"frechet/{level}"] = fid(real, np.concatenate(decoded))
    return found


def table(path: Path, of: str) -> None:
    """One line a trial: loss, and rates at equal quality against one of them."""
    results = {r["name"]: r for r in map(json.loads, path.read_text().splitlines())}

    def points(result: dict[str, Any], metric: str) -> list[tuple[float, float]]:
        found = result["texture" if metric in TEXTURE_METRICS else "measured"]
        levels = [k for k in range(1, 7) if f"{metric}/{k}" in found]
        return [(found[f"bpp_est/{k}"], found[f"{metric}/{k}"]) for k in levels]

    metrics = METRICS + TEXTURE_METRICS * ("texture" in results[of])
    say(f"{'trial':20}{'loss':>8}{'ms':>7}" + "".join(f"{m:>11}" for m in metrics))
    for name, result in results.items():
        line = f"{name:20}{result['loss']:8.4f}{result['step_ms']:7.0f}"
        for metric in metrics if "texture" in result else METRICS:
            before, after = points(results[of], metric), points(result, metric)
            bd = bd_rate(before, after, higher_is_better=metric == "psnr")
            line += f"{'-' if bd.value is None else f'{bd.value:.1f} %':>11}"
        distances = [f"{v:.1f}" for k, v in result.get("texture", {}).items() if "frechet" in k]
        say(line + (f"  Frechet {', '.join(distances)}" if distances else ""))


def say(line: str) -> None:
    """Print a line now."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    make = commands.add_parser("crops")
    make.add_argument("photos", nargs="+")
    make.add_argument("--out", type=Path, required=True)
    one = commands.add_parser("run")
    one.add_argument("names", nargs="+", choices=trials())
    one.add_argument("--crops", type=Path, required=True)
    one.add_argument("--out", type=Path, required=True)
    one.add_argument("--images", type=int)
    compare = commands.add_parser("table")
    compare.add_argument("results", type=Path)
    compare.add_argument("--of", default="base")
    args = parser.parse_args()
    if args.command == "crops":
        cut_crops(args.photos, args.out)
    elif args.command == "table":
        table(args.results, args.of)
    else:
        for name in args.names:
            trial = trials()[name]
            if args.images:
                trial = dataclasses.replace(trial, images=args.images)
            runner = run if trial.adversarial_weight is None else run_adversarial
            result, params = runner(name, trial, args.crops, args.out)
            result = {"name": name, **result}
            np.savez(args.out.with_name(f"{name}.npz"), **flatten_params(params))
            with args.out.open("a") as file:
                file.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    main()
