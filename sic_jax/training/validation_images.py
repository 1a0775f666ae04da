"""Validation of a run on images: values at some levels, and fixed pictures to look at."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from sic_jax.data.samples import validation_crops
from sic_jax.model.sic import SicModel
from sic_jax.model.tree import Params
from sic_jax.training.parallel import check_same_everywhere, device_mesh, replicate
from sic_jax.training.train_config import TrainConfig
from sic_jax.training.validation import make_validate, mean_loss

_BATCH = 8
_NUM_PICTURES = 2


class ValidationImages:
    """Centre crops of a data source, of the size that is trained on.

    They are decoded as the exported model would: details at its default temperature.
    """

    def __init__(self, cfg: TrainConfig, spec: str) -> None:
        """Read the images.

        Args:
            cfg: Of the run: `validation_images`, `validation_levels`, `crop_size`.
            spec: Data source, as `sic_jax.data.open_source.open_source` takes it.

        Raises:
            ValueError: If the source holds no usable image.
        """
        self._images = validation_crops(spec, cfg.crop_size, cfg.validation_images)
        top = cfg.model.num_levels
        self._levels = tuple(sorted({*cfg.validation_levels} or {1, (top + 1) // 2, top}))
        self._loss_cfg = cfg.loss
        self._mesh = device_mesh()
        devices = self._mesh.devices.size
        batch_size = -(-min(_BATCH, len(self._images)) // devices) * devices
        check_same_everywhere(len(self._images), "validation images")
        self.identity = f"{len(self._images)} images of {spec} at levels {self._levels}"
        metrics = ("psnr", "ms_ssim", "lpips") + (("dists",) if cfg.loss.dists_weight else ())
        self._validate = make_validate(
            cfg.model,
            levels=self._levels,
            metrics=metrics,
            batch_size=batch_size,
            mesh=self._mesh,
            temperature=cfg.model.temperature,
            grain=cfg.loss.grain,
        )
        self._decode = jax.jit(partial(_decode, SicModel(cfg.model)))

    def measure(self, params: Params) -> dict[str, float]:
        """See `sic_jax.training.loop.Validation`."""
        values = self._validate(params, self._images)
        return values | {"loss": mean_loss(values, self._levels, self._loss_cfg)}

    def pictures(self, params: Params) -> dict[str, NDArray[np.uint8]]:
        """See `sic_jax.training.loop.Validation`."""
        params = replicate(params, self._mesh)
        found = {}
        for n, image in enumerate(self._images[:_NUM_PICTURES]):
            found[f"image_{n}/original"] = image
            for level in self._levels:
                picture = self._decode(params, image[None], jnp.array([level]))
                found[f"image_{n}/level_{level}"] = np.asarray(picture)[0]
        return found


def _decode(model: Any, params: Params, image: jax.Array, level: jax.Array) -> jax.Array:
    x = image.astype(jnp.float32) / 255
    # With a key, only the rates would be other ones.
    out = model.apply(
        {"params": params},
        x,
        level,
        temperature=jnp.full(1, model.cfg.temperature),
        key=jax.random.key(0),
    )
    return jnp.round(jnp.clip(out.x_hat, 0, 1) * 255).astype(jnp.uint8)
