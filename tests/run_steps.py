"""Steps of the tiny model on this process's devices, for test_parallel.py; losses as JSON."""

import contextlib
import dataclasses
import json
import sys

import jax
import jax.numpy as jnp
import numpy as np

from sic_jax.model.params import init_params
from sic_jax.training.losses import mean_terms
from sic_jax.training.parallel import local_rows, make_runner
from sic_jax.training.presets import preset
from sic_jax.training.state import create_train_state
from sic_jax.training.step import make_train_step

BATCH, STEPS = 8, 3


def main() -> None:
    """Plain jit on one device, then each set of config fields of the command line, as JSON.

    With "set_mesh" among the fields, the runner is made and used under `jax.set_mesh`.
    """
    base = preset("smoke")
    base = dataclasses.replace(base, batch_size=BATCH, warmup_steps=0)
    rng = np.random.default_rng(0)
    ramp = np.mgrid[:64, :64].sum(0)[None, :, :, None]
    level = rng.uniform(0.5, 1.5, (BATCH, 1, 1, 3))
    batch = np.clip(ramp * level + rng.normal(0, 5, (BATCH, 64, 64, 3)), 0, 255).astype(np.uint8)
    params = init_params(base.model, seed=0)
    results = {}
    compilations: list[str] = []

    def listen(event: str, duration_secs: float, **_: str | int) -> None:
        if event.endswith("backend_compile_duration"):
            compilations.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    step = jax.jit(make_train_step(base))
    state, losses = create_train_state(base, params), []
    for _ in range(STEPS):
        state, metrics = step(state, batch, jnp.arange(BATCH), {})
        losses.append(float(mean_terms(metrics.terms)["loss"]))
    results["one"] = losses
    norms = {"one": _size(state.params)}
    later = {}
    for words in sys.argv[1:]:
        fields = json.loads(words)
        under_mesh = fields.pop("set_mesh", False)
        cfg = dataclasses.replace(base, **fields)
        runner = make_runner(cfg, {})
        # The oldest JAX has no `set_mesh`.
        mesh = jax.set_mesh(runner.mesh) if under_mesh else None  # type: ignore[attr-defined]
        with mesh or contextlib.nullcontext():
            state, losses = runner.place(create_train_state(cfg, params)), []
            for k in range(STEPS):
                state, metrics = runner.step(state, [batch[local_rows(BATCH)]])
                losses.append(float(mean_terms(metrics.terms)["loss"]))
                if k == 0:
                    compilations.clear()
        later[words] = len(compilations)
        results[words] = losses
        whole = runner.whole(state)
        norms[words] = _size(whole.params)
        if cfg.fsdp:
            parts = [a.sharding.is_fully_replicated for a in jax.tree.leaves(whole.params)]
            assert not all(parts)
    print(
        json.dumps(
            {
                "devices": jax.device_count(),
                "losses": results,
                "norms": norms,
                "compiled_later": later,
            }
        )
    )


def _size(tree: object) -> float:
    return float(sum(np.abs(np.asarray(a, np.float64)).sum() for a in jax.tree.leaves(tree)))


if __name__ == "__main__":
    main()
