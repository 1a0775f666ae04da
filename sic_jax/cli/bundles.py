"""The commands `sic bundle list`, `add` and `remove`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from sic_jax.codec import library


def add_bundle_commands(commands: Any) -> None:
    """Adds the three commands to the subparsers of `sic bundle`."""
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
