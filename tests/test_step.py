"""The train step: terms, gradients, and that its numbers do not depend on how a batch is cut."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import assert_equal, flat, quick_compilation
from numpy.typing import NDArray

from sic_jax.metrics.lpips_metric import LAYER_CHANNELS
from sic_jax.model.maps import space_to_depth
from sic_jax.model.sic import SicModel
from sic_jax.training import gradients
from sic_jax.training.discriminator import DiscriminatorConfig
from sic_jax.training.gradients import make_gradients, make_loss
from sic_jax.training.losses import mean_terms
from sic_jax.training.presets import preset
from sic_jax.training.state import TrainState, create_train_state, make_optimiser, state_shapes
from sic_jax.training.step import NEVER, Metrics, add_metrics, make_train_step
from sic_jax.training.train_config import TrainConfig

Arrays = dict[str, Any]
B = 4


@pytest.fixture(scope="module", autouse=True)
def _quick() -> Iterator[None]:
    with quick_compilation():
        yield


@pytest.fixture(scope="module")
def adversarial(tiny_run: TrainConfig) -> TrainConfig:
    """Everything that the loss has, on the tiny model, without LPIPS's network."""
    loss = dataclasses.replace(
        tiny_run.loss, levels="cyclic", num_samples=2, temperature=1.0, clamp=True, grain=True,
        lmbda_consistency=1.0, lmbda_balance=1.0,
    )  # fmt: skip
    small = DiscriminatorConfig(features=(4, 4, 4, 4), condition_features=2, learning_rate=5e-3)
    return dataclasses.replace(
        tiny_run, batch_size=B, loss=loss, discriminator=small, warmup_steps=0
    )


@pytest.fixture(scope="module")
def crops(pictures: NDArray[Any]) -> NDArray[Any]:
    images = np.concatenate([pictures, pictures[:1, ::-1]])
    out: NDArray[Any] = np.round(images * 255).astype(np.uint8)
    return out


def run(
    cfg: TrainConfig, params: Arrays, batch: NDArray[Any], steps: int
) -> tuple[TrainState, list[dict[str, float]]]:
    step = jax.jit(make_train_step(cfg))
    state, records = create_train_state(cfg, params), []
    for _ in range(steps):
        state, metrics = step(state, batch, jnp.arange(len(batch)), {})
        records.append({k: float(v) for k, v in mean_terms(metrics.terms).items()})
    return state, records


@pytest.mark.thorough
def test_accumulated_steps_are_the_same(
    adversarial: TrainConfig, params: Arrays, crops: NDArray[Any]
) -> None:
    state, records = run(adversarial, params, crops, 3)
    expected = {"loss", "bpp_full", "bpp_low", "bpp_z", "mse_full", "mse_low", "balance"}
    expected |= {f"consistency_{a}_{b}" for a in ("s", "eps") for b in ("full", "low")}
    expected |= {"grad_norm", "update_norm", "param_norm"}
    assert set(records[0]) == expected
    other, again = run(dataclasses.replace(adversarial, accumulate=2), params, crops, 3)
    for a, b in zip(records, again, strict=True):
        assert b == pytest.approx(a, rel=1e-5)
    left, right = flat(state.params), flat(other.params)
    assert left.keys() == right.keys()
    for name in left:
        # Adam turns rounding errors of gradients that are nearly zero into steps.
        np.testing.assert_allclose(left[name], right[name], atol=2e-4, err_msg=name)


def test_metrics_of_steps_with_other_terms_add_up() -> None:
    one, two = jnp.float32(1), jnp.float32(2)
    a = Metrics({"loss": (two, one)}, jnp.int32(7))
    b = Metrics({"loss": (one, one), "skipped": (one, two)}, jnp.int32(5))
    for total in (add_metrics(a, b), add_metrics(b, a)):
        terms = {k: (float(x), float(n)) for k, (x, n) in total.terms.items()}
        assert terms == {"loss": (3, 2), "skipped": (1, 2)}
        assert int(total.first_bad) == 5


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """LPIPS's and its layers' places, without the compilation of AlexNet."""

    def terms(x: jax.Array, x_hat: jax.Array, weights: Any) -> jax.Array:
        return jnp.abs(x[None] - x_hat).mean((2, 3, 4))

    def layers(x: jax.Array, *, weights: Any) -> tuple[jax.Array, ...]:
        cells = [space_to_depth(x, 16)[..., :n] for n in LAYER_CHANNELS]
        return tuple(h / jnp.linalg.norm(h, axis=-1, keepdims=True) for h in cells)

    monkeypatch.setattr(gradients, "lpips_terms", terms)
    monkeypatch.setattr(gradients, "lpips_features", layers)


@pytest.mark.thorough
@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize("network", ["patch", "alexnet"])
def test_adversarial_step(
    adversarial: TrainConfig, params: Arrays, crops: NDArray[Any], network: str
) -> None:
    loss = dataclasses.replace(adversarial.loss, lmbda_perc=(1.0,) * 3, adversarial_weight=1.0)
    judge = dataclasses.replace(adversarial.discriminator, network=network, head_width=4)
    cfg = dataclasses.replace(adversarial, loss=loss, discriminator=judge)
    state = create_train_state(cfg, params)
    step: Any = jax.jit(make_train_step(cfg))
    before = state.discriminator
    assert before is not None
    losses = []
    for _ in range(30):
        state, metrics = step(state, crops, jnp.arange(B), {"lpips": {}})
        losses.append({k: float(v) for k, v in mean_terms(metrics.terms).items()})
    assert step._cache_size() == 1
    # -log 1/2 twice where D knows nothing.
    assert losses[0]["loss_d"] == pytest.approx(2 * np.log(2), abs=0.3)
    assert losses[-1]["loss_d"] < losses[0]["loss_d"] - 0.05
    assert losses[0]["grad_norm_d"] > 0
    after = state.discriminator
    assert after is not None
    for name in flat(before.params):
        assert np.any(flat(before.params)[name] != flat(after.params)[name]), name
    assert np.any(
        flat(before.batch_stats["SpectralNorm_0"])["['Conv_0/kernel/u']"]
        != flat(after.batch_stats["SpectralNorm_0"])["['Conv_0/kernel/u']"]
    )


@pytest.mark.usefixtures("no_network")
def test_adversarial_weight_rises_from_0(
    tiny_run: TrainConfig, params: Arrays, crops: NDArray[Any]
) -> None:
    loss = dataclasses.replace(tiny_run.loss, lmbda_perc=(1.0,) * 3, adversarial_weight=1.0)
    judge = DiscriminatorConfig(features=(2, 2, 2, 2), condition_features=1, ramp_steps=10)
    cfg = dataclasses.replace(tiny_run, batch_size=B, loss=loss, discriminator=judge)
    state = create_train_state(cfg, params)
    loss_fn = jax.jit(make_loss(cfg))
    before = state.discriminator
    assert before is not None

    def after(steps: int) -> tuple[float, float]:
        """Loss, and the mean over images of G."""
        opt_state = optax.tree_utils.tree_set(before.opt_state, count=jnp.int32(steps))
        now = state._replace(discriminator=before._replace(opt_state=opt_state))
        value, (terms, _) = loss_fn(params, now, crops, jnp.arange(B), {"lpips": {}})
        return float(value), float(terms["adv_full"][0] + terms["adv_low"][0]) / B

    (first, adv), (half, _), (whole, _), (later, _) = map(after, (0, 5, 10, 25))
    assert half - first == pytest.approx(adv / 2, rel=1e-3)
    assert whole - first == pytest.approx(adv, rel=1e-3)
    assert later == whole


def test_rematerialised_transforms_are_the_same(
    tiny_run: TrainConfig, params: Arrays, pictures: NDArray[Any]
) -> None:
    def gradient(remat: bool) -> Any:
        model: Any = SicModel(tiny_run.model, remat=remat)
        level = jnp.array([3])

        def loss(params: Arrays) -> jax.Array:
            variables = {"params": params}
            y = model.apply(variables, pictures[:1], method="latents")
            return jnp.square(model.apply(variables, y, level, method="synthesise")).sum()

        return jax.jit(jax.grad(loss))({k: params[k] for k in ("g_a", "g_s")})

    plain, again = flat(gradient(False)), flat(gradient(True))
    assert plain.keys() == again.keys()
    for name in plain:
        np.testing.assert_allclose(again[name], plain[name], rtol=1e-3, atol=1e-4, err_msg=name)


def test_a_step_gives_a_state_of_the_types_that_it_takes(adversarial: TrainConfig) -> None:
    # Otherwise `jit` would compile a second program for the second step.
    cfg = adversarial
    state = state_shapes(cfg)
    side = cfg.crop_size
    images = jax.ShapeDtypeStruct((cfg.batch_size, side, side, 3), jnp.uint8)
    rows = jax.ShapeDtypeStruct((cfg.batch_size,), jnp.int32)
    after, _ = jax.eval_shape(make_train_step(cfg), state, images, rows, {})
    structure: Any = jax.tree.structure(state)
    assert structure == jax.tree.structure(after)
    for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(after), strict=True):
        assert (a.shape, a.dtype, a.weak_type) == (b.shape, b.dtype, b.weak_type)


def test_a_bad_step_changes_nothing(tiny_run: TrainConfig, params: Arrays) -> None:
    cfg = dataclasses.replace(tiny_run, batch_size=1, non_finite="skip")
    step = jax.jit(make_train_step(cfg))
    good = np.full((1, 64, 64, 3), 100, np.float32)
    rows = jnp.arange(1)
    state = create_train_state(cfg, params)
    state, first = step(state, good, rows, {})
    after, bad = step(state, good * np.nan, rows, {})
    assert int(after.step) == 2
    assert_equal(after.params, state.params)
    assert_equal(after.ema, state.ema)
    assert_equal(jax.tree.leaves(after.opt_state), jax.tree.leaves(state.opt_state))
    assert (int(first.first_bad), int(bad.first_bad)) == (NEVER, 2)
    both = add_metrics(first, bad)
    assert int(both.first_bad) == 2
    means = mean_terms(both.terms)
    # The bad step is counted, and counts for nothing else.
    assert float(means["skipped"]) == 1
    assert float(means["loss"]) == pytest.approx(float(mean_terms(first.terms)["loss"]))


@pytest.mark.thorough
def test_images_keep_their_noise(
    adversarial: TrainConfig, params: Arrays, crops: NDArray[Any]
) -> None:
    # An image alone, at its place in the batch, has the loss that it has among the others.
    step = jax.jit(make_train_step(adversarial))
    state = create_train_state(adversarial, params)
    alone = [
        float(mean_terms(step(state, crops[k : k + 1], jnp.array([k]), {})[1].terms)["loss"])
        for k in range(B)
    ]
    together = mean_terms(step(state, crops, jnp.arange(B), {})[1].terms)["loss"]
    assert np.mean(alone) == pytest.approx(float(together), rel=1e-5)
    assert len(set(alone)) == B


def test_linear_branches_learn_ten_times_slower(tiny_run: TrainConfig) -> None:
    cfg = dataclasses.replace(tiny_run, steps=100, warmup_steps=2, clip_norm=1e9)
    leaf = jnp.full((2, 3), 0.5)
    params: Arrays = {
        "g_a": {"linear": leaf, "Conv_0": {"kernel": leaf}},
        "g_s": {"linear": leaf},
        "context": {"linear": leaf},
    }
    optimiser = make_optimiser(cfg)
    state = optimiser.init(params)
    grads = jax.tree.map(lambda a: -jnp.ones_like(a), params)
    for step, rate in enumerate((0.0, 0.5, 1.0)):
        updates, state = optimiser.update(grads, state, params)
        # Adam's update of a constant gradient is its sign; the rate warms up over two steps.
        full = rate * cfg.learning_rate
        expected = {"g_a": full / 10, "g_s": full / 10, "context": full}
        for module, value in expected.items():
            np.testing.assert_allclose(
                updates[module]["linear"], value, rtol=1e-4, err_msg=str(step)
            )
        np.testing.assert_allclose(updates["g_a"]["Conv_0"]["kernel"], full, rtol=1e-4)


def test_quantiles_have_an_optimiser_of_their_own() -> None:
    cfg = dataclasses.replace(
        preset("paper"), decay="constant", warmup_steps=0, learning_rate=1e-4, weight_decay=0.1,
        auxiliary_learning_rate=1e-2, clip_norm=1.0,
    )  # fmt: skip
    params: Arrays = {"prior_z": {"quantiles": jnp.zeros(3)}, "h_a": {"kernel": jnp.ones(2)}}
    optimiser = make_optimiser(cfg)
    # A huge gradient of the quantiles does not clip the others'.
    grads = {"prior_z": {"quantiles": jnp.full(3, 1e6)}, "h_a": {"kernel": jnp.full(2, 0.1)}}
    updates, _ = optimiser.update(grads, optimiser.init(params), params)
    np.testing.assert_allclose(updates["prior_z"]["quantiles"], -1e-2, rtol=1e-4)
    np.testing.assert_allclose(updates["h_a"]["kernel"], -1e-4 * 1.1, rtol=1e-4)


@pytest.mark.thorough
def test_only_what_train_only_names_learns(
    tiny_run: TrainConfig, params: Arrays, crops: NDArray[Any]
) -> None:
    cfg = dataclasses.replace(
        tiny_run, batch_size=B, warmup_steps=0, weight_decay=0.1,
        train_only=("g_s/ResidualBlock_0", "prior_z/"),
    )  # fmt: skip
    everything = dataclasses.replace(cfg, train_only=())
    state = create_train_state(cfg, params)

    def gradient(cfg: TrainConfig) -> dict[str, NDArray[Any]]:
        return flat(jax.jit(make_gradients(cfg))(state, crops, jnp.arange(B), {}).params)

    some, all_of_them = gradient(cfg), gradient(everything)
    after, records = run(cfg, params, crops, 2)
    learning = {n for n in some if n.startswith(("['g_s']['ResidualBlock_0']", "['prior_z']"))}
    assert 0 < len(learning) < len(some)
    assert {n for n in some if "ResidualBlock_0" in n} - learning
    for name, before in flat(params).items():
        if name in learning:
            np.testing.assert_allclose(some[name], all_of_them[name], rtol=1e-5, atol=1e-7)
            assert np.any(flat(after.params)[name] != before), name
        else:
            assert not some[name].any(), name
            np.testing.assert_array_equal(flat(after.params)[name], before, err_msg=name)
            np.testing.assert_array_equal(flat(after.ema)[name], before, err_msg=name)
    norm = np.sqrt(sum(np.square(some[name]).sum() for name in learning))
    assert records[0]["grad_norm"] == pytest.approx(norm, rel=1e-5)
    # Two moments of what learns, and nothing else: vectors, of multiples of 1024.
    moments = [a for a in jax.tree.leaves(after.opt_state) if a.ndim]
    count = sum(some[name].size for name in learning)
    assert [a.size for a in moments] == [-(-count // 1024) * 1024] * 2
    assert np.count_nonzero(moments[0]) <= count


def test_train_only_must_name_parameters(tiny_run: TrainConfig, params: Arrays) -> None:
    cfg = dataclasses.replace(tiny_run, train_only=("g_s", "h_s/Conv"))
    message = r"train_only: no parameter 'h_s/Conv'; the networks are \['context', 'g_a', "
    with pytest.raises(ValueError, match=message):
        create_train_state(cfg, params)
