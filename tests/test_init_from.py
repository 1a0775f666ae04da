import dataclasses

import pytest

from sic_jax.cli.train import _weights
from sic_jax.codec.options import LatentLossConfig
from sic_jax.training.presets import preset


def test_the_default_bundle_starts_the_presets_of_its_architecture() -> None:
    for name in ("lpips", "perceptual"):
        assert "g_s" in _weights("default", preset(name))


def test_fields_that_parameters_do_not_depend_on_may_differ() -> None:
    cfg = preset("perceptual")
    pyramid = dataclasses.replace(cfg.model.pyramid, step=0.5)
    search = LatentLossConfig(dists_weight=2.0)
    model = dataclasses.replace(
        cfg.model, deadzone=0.2, temperature=1.0, pyramid=pyramid, search=search
    )
    assert "g_s" in _weights("default", dataclasses.replace(cfg, model=model))
    model = dataclasses.replace(cfg.model, head_width=cfg.model.head_width + 1)
    with pytest.raises(ValueError, match="--init-from default: its model config differs"):
        _weights("default", dataclasses.replace(cfg, model=model))
