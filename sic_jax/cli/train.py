"""Command line of train.py: a preset, overridden field by field."""

import argparse
import dataclasses
import json
import logging
import os
import sys
import time
import typing
from collections.abc import Sequence
from pathlib import Path

from sic_jax.cli.config_flags import add_flags, config_of, flag_groups
from sic_jax.devices import check_devices
from sic_jax.fields import Kinds, changed
from sic_jax.model.families import FAMILIES
from sic_jax.model.model_config import ModelConfig
from sic_jax.training.presets import PRESETS, preset
from sic_jax.training.train_config import TrainConfig, load_config, used_kinds

if typing.TYPE_CHECKING:
    from sic_jax.model.tree import Params


def parse(
    argv: Sequence[str] | None = None, kinds: Kinds = FAMILIES
) -> tuple[TrainConfig, argparse.Namespace]:
    """The run's config and the other arguments.

    Args:
        argv: Words of the command line; default: the process's.
        kinds: Families that flags may choose, besides those of the preset.

    Raises:
        ValueError: If the config does not allow a value. What is no command line at all ends the
            process with exit code 2.
    """
    words = sys.argv[1:] if argv is None else argv
    # The flags are those of the preset's config, so it is looked for before they are known.
    name = next((word for word in words if word in PRESETS), next(iter(PRESETS)))
    start = preset(name)
    kinds = {**kinds, **used_kinds(start)}
    parser = argparse.ArgumentParser(
        prog="train.py",
        usage="%(prog)s PRESET --data SOURCE --workdir FOLDER [--FLAG VALUE ...]",
        description=__doc__,
        epilog=f"The defaults of the config are those of the preset, here {name}.",
        allow_abbrev=False,
    )
    parser.add_argument("preset", choices=PRESETS, help="the run whose config the flags change")
    parser.add_argument(
        "--data",
        metavar="SOURCE",
        help="training images: FOLDER, memory:FOLDER (decoded once, cropped on the device) or "
        "tfds:NAME/SPLIT[@DATA_DIR]",
    )
    parser.add_argument(
        "--workdir", metavar="FOLDER", help="receives checkpoints and metrics.jsonl"
    )
    parser.add_argument(
        "--validation-data", metavar="SOURCE", help="other images, as --data: measured on the way"
    )
    parser.add_argument(
        "--init-from",
        metavar="FOLDER",
        help="workdir of another run (its EMA weights, the best where it has been validated) or "
        "bundle: start from its weights, with the loss of the last stage alone",
    )
    parser.add_argument(
        "--export",
        metavar="FOLDER",
        help="write the result (the best where it has been validated) as a bundle",
    )
    parser.add_argument("--tensorboard", action="store_true", help="records for TensorBoard too")
    parser.add_argument(
        "--profile-steps",
        type=int,
        nargs=2,
        metavar=("FIRST", "LAST"),
        help="write a trace of these steps, and of those done with them, into WORKDIR/profile",
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="print config, parameters, work and memory as JSON, and exit",
    )
    parser.add_argument(
        "--cost",
        action="store_true",
        help="time the parts of a step on this device, print them, and exit",
    )
    hosts = parser.add_argument_group("several processes")
    hosts.add_argument("--coordinator", metavar="HOST:PORT", help="address of process 0")
    hosts.add_argument("--num-processes", type=int, metavar="INT", help="how many there are")
    hosts.add_argument("--process-id", type=int, metavar="INT", help="of this one, from 0 on")
    hosts.add_argument(
        "--distributed",
        action="store_true",
        help="let the cluster tell these (TPU pod, SLURM, Open MPI)",
    )
    hosts.add_argument(
        "--connect-timeout",
        type=float,
        default=300.0,
        metavar="SECONDS",
        help="end if the processes have not found each other by then (default: 300)",
    )
    add_flags(parser, tuple(flag_groups(start, words, kinds)))
    args = parser.parse_args(words)
    if args.preset != name:
        parser.error(f"{name} is a preset's name too: give the preset {args.preset} before it")
    if not (args.dry_run or args.cost):
        for needed in ("data", "workdir"):
            if getattr(args, needed) is None:
                parser.error(f"the following arguments are required: --{needed}")
    cfg = config_of(TrainConfig, args, kinds)
    if args.init_from is not None:
        cfg = dataclasses.replace(cfg, stages=())
    return cfg, args


def main(argv: Sequence[str] | None = None, kinds: Kinds = FAMILIES) -> None:
    """Run training; errors are one line and exit code 1. Arguments are as for `parse`."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    for noisy in ("absl", "jax", "orbax"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    try:
        cfg, args = parse(argv, kinds)
        if args.dry_run:
            from sic_jax.training.dry_run import describe_run

            print(json.dumps(describe_run(cfg), indent=1))  # noqa: T201
        elif args.cost:
            from sic_jax.training.step_cost import describe_costs, step_costs

            for line in describe_costs(step_costs(cfg)):
                print(line, flush=True)  # noqa: T201
        else:
            _run(cfg, args)
    except KeyboardInterrupt:
        sys.exit("train.py: interrupted; the same command goes on from the last checkpoint")
    except (ValueError, OSError, FloatingPointError, RuntimeError) as e:
        sys.exit(f"train.py: error: {str(e).strip().splitlines()[0]}")


def _run(cfg: TrainConfig, args: argparse.Namespace) -> None:
    began = time.monotonic()
    from sic_jax.training.parallel import initialise_distributed

    several = args.distributed or args.coordinator or "JAX_COORDINATOR_ADDRESS" in os.environ
    if several or args.num_processes is not None or args.process_id is not None:
        initialise_distributed(
            args.coordinator, args.num_processes, args.process_id, args.connect_timeout
        )
    import jax

    from sic_jax.compilation_cache import enable_compilation_cache
    from sic_jax.data.open_source import open_source
    from sic_jax.model.tree import num_params
    from sic_jax.training.checkpoints import has_checkpoint, load_run_params
    from sic_jax.training.loop import train
    from sic_jax.training.stages import Programs
    from sic_jax.training.validation_images import ValidationImages

    check_devices()
    enable_compilation_cache()
    first = jax.process_index() == 0
    if not first:
        logging.getLogger().setLevel(logging.WARNING)
    programs = Programs(cfg)

    def listed() -> None:
        # While the images are decoded. A run that goes on may be in another stage.
        if not has_checkpoint(args.workdir):
            programs.begin(0)

    source = open_source(args.data, crop_size=cfg.crop_size, listed=listed)
    logging.info("%d images, %d devices", len(source), jax.device_count())
    params = None if args.init_from is None else _weights(args.init_from, cfg)
    spec = args.validation_data
    validation = None if spec is None else ValidationImages(cfg, spec)
    state, complete = train(
        cfg,
        args.workdir,
        source,
        params=params,
        validation=validation,
        tensorboard=args.tensorboard,
        profile_steps=None if args.profile_steps is None else tuple(args.profile_steps),
        programs=programs,
        began=began,
    )
    if not complete:
        return
    logging.info("%d parameters, %d steps done", num_params(state.params), int(state.step))
    if args.export:
        from jax.experimental.multihost_utils import process_allgather

        from sic_jax.codec.bundle import export_bundle

        if validation is None:
            # With `fsdp` no process has all of them.
            ema = process_allgather(state.ema, tiled=True)
        else:
            ema = load_run_params(args.workdir, cfg)
        if first:
            export_bundle(args.export, cfg.model, ema)
            logging.info("bundle written to %s", args.export)


def _weights(name: str, cfg: TrainConfig) -> "Params":
    """Parameters of another run (EMA) or of a bundle, checked to fit `cfg`."""
    from sic_jax.codec.bundle import load_bundle
    from sic_jax.training.checkpoints import load_run_params

    if (Path(name) / "checkpoints").is_dir():
        run = load_config(Path(name) / "config.json", like=cfg)
        _check_fits(name, run.model, cfg.model)
        return load_run_params(name, run)
    bundle = load_bundle(name, kinds={**FAMILIES, **used_kinds(cfg)})
    _check_fits(name, bundle.cfg, cfg.model)
    return bundle.params


def _check_fits(name: str, theirs: ModelConfig, mine: ModelConfig) -> None:
    differing = ", ".join(changed(theirs, mine, on="init_from"))
    if differing:
        raise ValueError(f"--init-from {name}: its model config differs in {differing}")
