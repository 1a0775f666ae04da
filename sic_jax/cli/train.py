"""Command line of train.py: a preset, overridden field by field."""

import argparse
import dataclasses
import json
import logging
import os
import sys
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sic_jax.codec.options import LatentLossConfig
from sic_jax.fields import from_dict, to_dict
from sic_jax.model.config import ModelConfig
from sic_jax.training.config import TrainConfig
from sic_jax.training.presets import PRESETS, preset

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
            parser.add_argument(flag, dest=dest, type=typing.get_args(hint)[0], nargs="*")
        elif hint is bool:
            parser.add_argument(flag, dest=dest, type=_boolean, nargs="?", const=True)
        else:
            parser.add_argument(flag, dest=dest, type=hint)


def _boolean(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"{text!r} is neither true nor false")
    return text.lower() == "true"


_NOT_FIELDS = frozenset(
    {"preset", "data", "eval_data", "workdir", "init_from", "export", "tensorboard", "dry_run"}
    | {"profile_steps", "coordinator", "num_processes", "process_id", "distributed"}
)


def parse(argv: Sequence[str] | None = None) -> tuple[TrainConfig, argparse.Namespace]:
    """The run's config and the other arguments."""
    parser = argparse.ArgumentParser(prog="train.py", description=__doc__, allow_abbrev=False)
    parser.add_argument("preset", choices=PRESETS)
    parser.add_argument(
        "--data",
        help="training images: FOLDER, memory:FOLDER (decoded once, cropped on the device) or "
        "tfds:NAME/SPLIT[@DATA_DIR]",
    )
    parser.add_argument("--workdir", help="receives checkpoints and metrics.jsonl")
    parser.add_argument("--eval-data", help="held-out images, as --data: evaluated on the way")
    parser.add_argument(
        "--init-from",
        help="workdir of another run (its EMA weights, the best where it has been evaluated) or "
        "bundle: start from its weights",
    )
    parser.add_argument("--export", help="write the result as a bundle into this folder")
    parser.add_argument("--tensorboard", action="store_true", help="records for TensorBoard too")
    parser.add_argument(
        "--profile-steps",
        type=int,
        nargs=2,
        metavar=("FIRST", "LAST"),
        help="write a trace of these steps into WORKDIR/profile",
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="print config, parameters, work and memory as JSON, and exit",
    )
    hosts = parser.add_argument_group("several processes")
    hosts.add_argument("--coordinator", metavar="HOST:PORT", help="address of process 0")
    hosts.add_argument("--num-processes", type=int)
    hosts.add_argument("--process-id", type=int)
    hosts.add_argument(
        "--distributed",
        action="store_true",
        help="let the cluster tell these (TPU pod, SLURM, Open MPI)",
    )
    _add_fields(parser.add_argument_group("config fields (default: the preset's)"), TrainConfig)
    args = parser.parse_args(argv)
    if not args.dry_run:
        for name in ("data", "workdir"):
            if getattr(args, name) is None:
                parser.error(f"the following arguments are required: --{name}")
    config: dict[str, Any] = to_dict(preset(args.preset))
    for dest, value in vars(args).items():
        if value is None or dest in _NOT_FIELDS:
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
    for noisy in ("absl", "jax", "orbax"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    try:
        cfg, args = parse(argv)
        if args.dry_run:
            from sic_jax.training.dry_run import describe_run

            print(json.dumps(describe_run(cfg), indent=1))  # noqa: T201
        else:
            _run(cfg, args)
    except KeyboardInterrupt:
        sys.exit("train.py: interrupted; the same command goes on from the last checkpoint")
    except (ValueError, OSError, FloatingPointError, RuntimeError) as e:
        sys.exit(f"train.py: error: {str(e).strip().splitlines()[0]}")


def _run(cfg: TrainConfig, args: argparse.Namespace) -> None:
    from sic_jax.training.parallel import initialize_distributed

    several = args.distributed or args.coordinator or "JAX_COORDINATOR_ADDRESS" in os.environ
    if several or args.num_processes is not None or args.process_id is not None:
        initialize_distributed(args.coordinator, args.num_processes, args.process_id)
    import jax

    from sic_jax.data.sources import open_source
    from sic_jax.model.params import num_params
    from sic_jax.training.loop import train
    from sic_jax.training.validation_images import HeldOutImages

    first = jax.process_index() == 0
    if not first:
        logging.getLogger().setLevel(logging.WARNING)
    source = open_source(args.data, crop_size=cfg.crop_size)
    logging.info("%d images, %d devices", len(source), jax.device_count())
    params = None if args.init_from is None else _weights(args.init_from, cfg)
    state = train(
        cfg,
        args.workdir,
        source,
        params=params,
        held_out=None if args.eval_data is None else HeldOutImages(cfg, args.eval_data),
        tensorboard=args.tensorboard,
        profile_steps=None if args.profile_steps is None else tuple(args.profile_steps),
    )
    if int(state.step) < cfg.steps:
        return
    logging.info("%d parameters, %d steps done", num_params(state.params), int(state.step))
    if args.export:
        from jax.experimental.multihost_utils import process_allgather

        from sic_jax.codec.bundle import export_bundle

        # With `fsdp` no process has all of them.
        ema = process_allgather(state.ema, tiled=True)
        if first:
            export_bundle(args.export, cfg.model, ema)
            logging.info("bundle written to %s", args.export)


def _shape(cfg: ModelConfig) -> ModelConfig:
    """A model's config without what parameters do not depend on."""
    pyramid = dataclasses.replace(cfg.pyramid, step=1.0, coarse_step=1.0)
    return dataclasses.replace(
        cfg, temperature=0.0, deadzone=0.0, pyramid=pyramid, search=LatentLossConfig()
    )


def _weights(name: str, cfg: TrainConfig) -> "Params":
    """Parameters of another run (EMA) or of a bundle, checked to fit `cfg`."""
    from sic_jax.codec.bundle import load_bundle
    from sic_jax.training.checkpoints import load_run_params

    if not (Path(name) / "checkpoints").is_dir():
        bundle = load_bundle(name)
        if _shape(bundle.cfg) != _shape(cfg.model):
            raise ValueError(f"--init-from {name}: its model config differs")
        return bundle.params
    theirs = from_dict(TrainConfig, json.loads((Path(name) / "config.json").read_text()))
    if _shape(theirs.model) != _shape(cfg.model):
        raise ValueError(f"--init-from {name}: its model config differs")
    return load_run_params(name, theirs)
