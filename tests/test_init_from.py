import dataclasses

import pytest

from sic_jax.cli.train import _weights
from sic_jax.model.entropy_models.checkerboard.checkerboard import CheckerboardEntropy
from sic_jax.model.transforms.pyramid import PyramidTransforms
from sic_jax.training.presets import preset


def test_the_default_bundle_starts_its_preset() -> None:
    assert "g_s" in _weights("default", preset("default"))


def test_fields_that_parameters_do_not_depend_on_may_differ() -> None:
    cfg = preset("default")
    levels = dataclasses.replace(cfg.model.levels, deadzone=0.2)
    assert isinstance(cfg.model.transforms, PyramidTransforms)
    assert isinstance(cfg.model.entropy, CheckerboardEntropy)
    pyramid = dataclasses.replace(cfg.model.transforms, start_step=0.5)
    model = dataclasses.replace(cfg.model, levels=levels, temperature=1.0, transforms=pyramid)
    assert "g_s" in _weights("default", dataclasses.replace(cfg, model=model))
    model = dataclasses.replace(
        cfg.model,
        levels=dataclasses.replace(levels, refinements=(0,) * 16),
        entropy=dataclasses.replace(cfg.model.entropy, head_width=129),
    )
    with pytest.raises(ValueError, match="--init-from default: its model config differs") as info:
        _weights("default", dataclasses.replace(cfg, model=model))
    assert str(info.value).endswith(" differs in levels.refinements, entropy.head_width")
