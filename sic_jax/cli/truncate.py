"""The command `sic truncate`."""

import argparse
from typing import Any

from sic_jax.cli.jobs import Done, add_output_flags, read, run_jobs, summary, write
from sic_jax.cli.paths import Job, Plan, UsageError, check_targets
from sic_jax.codec import container


def add_truncate(commands: Any) -> None:
    """Adds the command to the subparsers of `sic`."""
    truncate = commands.add_parser(
        "truncate",
        help="make a smaller .sic file of a .sic file",
        usage="sic truncate IN OUT (--level N | --max-bytes N)",
    )
    truncate.set_defaults(run=_truncate)
    truncate.add_argument("source", metavar="IN", help=".sic file; - is stdin")
    truncate.add_argument("target", metavar="OUT", nargs="?", help="file to write; - is stdout")
    keep = truncate.add_mutually_exclusive_group(required=True)
    keep.add_argument("--level", type=int, metavar="N", help="levels to keep")
    keep.add_argument(
        "--max-bytes", type=int, metavar="N", help="keep as many levels as fit into N bytes"
    )
    add_output_flags(truncate)


def _truncate(args: argparse.Namespace) -> int:
    if (args.target is None) == (args.output is None):
        raise UsageError("truncate takes either OUT or -o OUT")
    target = args.target or args.output
    if not target:
        raise UsageError("the name of OUT is empty")
    if not args.source:
        raise UsageError("the name of a file is empty")

    def cut(job: Job) -> tuple[bytes, bytes]:
        data = read(job.source)
        if args.level is None:
            return data, container.truncate_to(data, args.max_bytes)
        return data, container.truncate(data, args.level)

    def work(job: Job, _line: str) -> Done:
        data, smaller = cut(job)
        write(job, target, smaller, preserve=args.preserve)
        return Done(summary(smaller), f"of {summary(data)}")

    jobs = check_targets([Job(args.source, (target,), derived=False)])
    return run_jobs(Plan(jobs, []), args, work=work, look=cut)
