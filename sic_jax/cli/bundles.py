"""The commands `sic bundle list`, `add`, `remove` and `sic import-official`."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

from sic_jax.codec import library


def add_bundles(commands: Any) -> None:
    """Adds the commands to the subparsers of `sic`."""
    bundle = commands.add_parser(
        "bundle", help="list, add or remove trained models", usage="sic bundle COMMAND ..."
    )
    _add_bundle_commands(bundle.add_subparsers(prog="sic bundle", metavar="COMMAND", required=True))

    importing = commands.add_parser(
        "import-official",
        help="make a bundle of a checkpoint of the paper's authors",
        usage="sic import-official CHECKPOINT --out BUNDLE",
    )
    importing.set_defaults(run=_import_official)
    importing.add_argument(
        "checkpoint", metavar="CHECKPOINT", help="PyTorch file, safetensors or .npz"
    )
    importing.add_argument(
        "--out", metavar="BUNDLE", required=True, help="folder to write, which must not be there"
    )


def _add_bundle_commands(commands: Any) -> None:
    listing = commands.add_parser("list", help="show the bundles of this machine")
    listing.set_defaults(run=_list)
    listing.add_argument("--json", action="store_true", help="print JSON")
    adding = commands.add_parser("add", help="check a bundle and copy it to the user's own")
    adding.set_defaults(run=_add)
    adding.add_argument("path", metavar="PATH", help="folder of the bundle")
    adding.add_argument("--name", metavar="NAME", help="its name from now on (default: PATH's)")
    removing = commands.add_parser("remove", help="delete one of the user's own bundles")
    removing.set_defaults(run=_remove)
    removing.add_argument("name", metavar="NAME")


def _list(args: argparse.Namespace) -> int:
    found = library.installed()
    default = library.default_bundle()
    rows = [
        {
            "name": bundle.name,
            "id": bundle.model_id.hex(),
            "place": str(bundle.place),
            "default": bundle == default,
        }
        for bundle in found
    ]
    if args.json:
        import json

        sys.stdout.write(json.dumps(rows, indent=2) + "\n")
        return 0
    width = max((len(bundle.name) for bundle in found), default=0)
    for row in rows:
        mark = "default" if row["default"] else ""
        sys.stdout.write(f"{row['name']:{width}}  {row['id']}  {mark:7}  {row['place']}\n")
    return 0


def _add(args: argparse.Namespace) -> int:
    def check(folder: Path) -> None:
        from sic_jax.codec.bundle import load_bundle

        load_bundle(folder)

    bundle = library.add(args.path, args.name, check)
    sys.stdout.write(f"{args.path} -> {bundle.folder}: bundle {bundle.model_id.hex()}\n")
    return 0


def _remove(args: argparse.Namespace) -> int:
    sys.stdout.write(f"{library.remove(args.name)}: removed\n")
    return 0


def _import_official(args: argparse.Namespace) -> int:
    if os.path.exists(args.out):
        raise FileExistsError(f"{args.out} is already there")
    from sic_jax.importers.paper_bundle import import_checkpoint

    bundle = import_checkpoint(args.checkpoint, args.out)
    facts = f"bundle {bundle.model_id.hex()}, {bundle.cfg.num_levels} levels"
    sys.stdout.write(f"{args.checkpoint} -> {args.out}: {facts}\n")
    return 0
