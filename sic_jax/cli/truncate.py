"""The command `sic truncate`."""

import argparse
from typing import Any

from sic_jax.cli.jobs import read, report, summary, write
from sic_jax.cli.paths import Job, check_targets
from sic_jax.cli.stderr import fail
from sic_jax.codec import container


def add_truncate(commands: Any) -> None:
    """Adds the command to the subparsers of `sic`."""
    truncate = commands.add_parser(
        "truncate",
        help="make a smaller .sic file of a .sic file",
        usage="sic truncate IN OUT (--level N | --max-bytes N)",
    )
    truncate.set_defaults(run=_truncate)
    truncate.add_argument("source", metavar="IN")
    truncate.add_argument("target", metavar="OUT")
    keep = truncate.add_mutually_exclusive_group(required=True)
    keep.add_argument("--level", type=int, metavar="N", help="levels to keep")
    keep.add_argument(
        "--max-bytes", type=int, metavar="N", help="keep as many levels as fit into N bytes"
    )


def _truncate(args: argparse.Namespace) -> int:
    job = Job(args.source, (args.target,), derived=False)
    check_targets([job])
    try:
        data = read(args.source)
        if args.level is None:
            data = container.truncate_to(data, args.max_bytes)
        else:
            data = container.truncate(data, args.level)
    except Exception as error:
        fail(error, args.source)
        return 1
    write(job, args.target, data)
    report(job, summary(data))
    return 0
