"""What a run would be, without running it: config, parameters, work and memory."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sic_jax.fields import to_dict
from sic_jax.model.macs import count_macs
from sic_jax.training.gradients import make_gradients, make_loss
from sic_jax.training.losses import load_perceptual_weights
from sic_jax.training.state import state_shapes
from sic_jax.training.train_config import TrainConfig


def describe_run(cfg: TrainConfig) -> dict[str, Any]:
    """Config and costs of a run, by tracing alone.

    Returns:
        `config`; `parameters` of each network and in all; `gmac_per_step` and `kmac_per_pixel` of
        forward and backward passes of the model, LPIPS, DISTS and discriminator for the whole
        batch; `memory_gb`, in 10^9 bytes: of the state (parameters, average, optimiser), of the
        discriminator's state, and of what the backward pass keeps of the forward pass for one part
        of a batch on one device, before XLA fuses or frees anything.
    """
    state = state_shapes(cfg)
    networks = {name: _scalars(tree) for name, tree in state.params.items()}
    if state.discriminator is not None:
        networks["discriminator"] = _scalars(state.discriminator.params)
    devices = jax.device_count()
    images = cfg.batch_size // (devices * cfg.accumulate)
    weights = jax.eval_shape(lambda: load_perceptual_weights(cfg.loss, cfg.compute_dtype))
    crops = jax.ShapeDtypeStruct((max(images, 1), cfg.crop_size, cfg.crop_size, 3), jnp.uint8)
    rows = jax.ShapeDtypeStruct(crops.shape[:1], jnp.int32)
    gradients = make_gradients(cfg)
    macs = count_macs(gradients, state, crops, rows, weights) / crops.shape[0] * cfg.batch_size
    return {
        "config": to_dict(cfg),
        "parameters": networks | {"total": sum(networks.values())},
        "gmac_per_step": round(macs / 1e9, 3),
        "kmac_per_pixel": round(macs / 1e3 / cfg.batch_size / cfg.crop_size**2, 1),
        "memory_gb": {
            "state": round(_bytes(state) / 1e9, 3),
            "activations": round(_kept_bytes(cfg, state, crops, rows, weights) / 1e9, 3),
            "devices": devices,
        },
    }


def _kept_bytes(cfg: TrainConfig, state: Any, crops: Any, rows: Any, weights: Any) -> int:
    """Bytes of the arrays that the linearised loss holds on to, parameters left out."""
    loss = make_loss(cfg)

    def residuals(state: Any, crops: Any, rows: Any, weights: Any) -> Any:
        def of_params(params: Any) -> Any:
            return loss(params, state, crops, rows, weights)

        return jax.vjp(of_params, state.params, has_aux=True)[1]

    kept = jax.eval_shape(residuals, state, crops, rows, weights)
    return max(_bytes(kept) - _bytes(state.params), 0)


def _scalars(tree: Any) -> int:
    return sum(math.prod(a.shape) for a in jax.tree.leaves(tree))


def _bytes(tree: Any) -> int:
    return sum(math.prod(a.shape) * np.dtype(a.dtype).itemsize for a in jax.tree.leaves(tree))
