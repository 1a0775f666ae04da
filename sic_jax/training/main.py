"""Command line of train.py: a preset, overridden field by field."""

import argparse
import dataclasses
import json
import logging
import sys
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sic_jax.config import TrainConfig, from_dict, to_dict
from sic_jax.presets import PRESETS, preset

if typing.TYPE_CHECKING:
    from sic_jax.model.params import Params


def _add_fields(parser: argparse._ActionsContainer, cls: type, prefix: str = "") -> None:
    """One flag a config field, ``--loss.temperature 1``; tuples take several values."""
    for name, hint in typing.get_type_hints(cls).items():
        flag = f"--{prefix}{name}".replace("_", "-")
        dest = f"{prefix}{name}"
        if dataclasses.is_dataclass(hint):
            _add_fields(parser, typing.cast(type, hint), f"{prefix}{name}.")
        elif typing.get_origin(hint) is tuple:
            parser.add_argument(flag, dest=dest, type=typing.get_args(hint)[0], nargs="+")
        else:
            parser.add_argument(flag, dest=dest, type=hint)


def parse(argv: Sequence[str] | None = None) -> tuple[TrainConfig, argparse.Namespace]:
    """The run's config and the other arguments."""
    parser = argparse.ArgumentParser(prog="train.py", description=__doc__, allow_abbrev=False)
    parser.add_argument("preset", choices=PRESETS)
    parser.add_argument("--data", required=True, help="folder of training images")
    parser.add_argument("--workdir", required=True, help="receives checkpoints and metrics.jsonl")
    parser.add_argument(
        "--init-from",
        help="workdir of another run (its EMA weights) or bundle: start from its weights",
    )
    parser.add_argument("--export", help="write the result as a bundle into this folder")
    _add_fields(parser.add_argument_group("config fields (default: the preset's)"), TrainConfig)
    args = parser.parse_args(argv)
    config: dict[str, Any] = to_dict(preset(args.preset))
    for dest, value in vars(args).items():
        if value is None or dest in ("preset", "data", "workdir", "init_from", "export"):
            continue
        *parents, name = dest.split(".")
        node = config
        for parent in parents:
            node = node[parent]
        node[name] = value
    return from_dict(TrainConfig, config), args


def main(argv: Sequence[str] | None = None) -> None:
    """Run training; errors are one line and exit code 1."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    for noisy in ("absl", "jax"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    try:
        cfg, args = parse(argv)
        _run(cfg, args)
    except (ValueError, OSError, FloatingPointError) as e:
        sys.exit(f"train.py: error: {e}")


def _run(cfg: TrainConfig, args: argparse.Namespace) -> None:
    from sic_jax.model.params import num_params
    from sic_jax.training.data import load_folder
    from sic_jax.training.loop import train

    source = load_folder(args.data, crop_size=cfg.crop_size, seed=cfg.seed)
    logging.info("%d images", len(source.images))
    params = None if args.init_from is None else _weights(args.init_from, cfg)
    state = train(cfg, args.workdir, source, params=params)
    logging.info("%d parameters, %d steps done", num_params(state.params), int(state.step))
    if args.export:
        from sic_jax.codec.bundle import export_bundle

        export_bundle(args.export, cfg.model, state.ema)
        logging.info("bundle written to %s", args.export)


def _weights(name: str, cfg: TrainConfig) -> "Params":
    """Parameters of another run (EMA) or of a bundle, checked to fit `cfg`."""
    from sic_jax.codec.bundle import load_bundle
    from sic_jax.training.loop import load_run_params

    if not (Path(name) / "checkpoints").is_dir():
        bundle = load_bundle(name)
        # The default temperature of decoding is no part of the architecture.
        if dataclasses.replace(bundle.cfg, temperature=cfg.model.temperature) != cfg.model:
            raise ValueError(f"--init-from {name}: its model config differs")
        return bundle.params
    theirs = from_dict(TrainConfig, json.loads((Path(name) / "config.json").read_text()))
    if theirs.model != cfg.model:
        raise ValueError(f"--init-from {name}: its model config differs")
    return load_run_params(name, theirs)
