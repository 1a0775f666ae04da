"""The command `sic info`."""

import argparse
import sys
from typing import Any

from sic_jax.cli.jobs import read
from sic_jax.cli.paths import UsageError
from sic_jax.cli.stderr import fail, shown
from sic_jax.codec import container
from sic_jax.metrics.rate import bpp


def add_info(commands: Any) -> None:
    """Adds the command to the subparsers of `sic`."""
    info = commands.add_parser(
        "info",
        help="describe a .sic file or a bundle",
        usage="sic info (FILE | --bundle B) [--json]",
    )
    info.set_defaults(run=_info)
    info.add_argument("file", metavar="FILE", nargs="?", help=".sic file; - is stdin")
    info.add_argument("--bundle", metavar="B", help="name or path of a bundle")
    info.add_argument("--json", action="store_true", help="print JSON")


def _info(args: argparse.Namespace) -> int:
    if (args.file is None) == (args.bundle is None):
        raise UsageError("info takes either FILE or --bundle B")
    if args.file == "":
        raise UsageError("the name of a file is empty")
    if args.bundle is not None:
        from sic_jax.codec import bundle

        facts = bundle.describe(args.bundle)
        text = "".join(f"{key:24} {value}\n" for key, value in facts.items())
    else:
        try:
            facts, text = _describe_file(args.file, read(args.file))
        except Exception as error:
            fail(error, args.file)
            return 1
    if args.json:
        import json

        text = json.dumps(facts, indent=2, default=str) + "\n"
    sys.stdout.write(text)
    return 0


def _describe_file(path: str, data: bytes) -> tuple[dict[str, object], str]:
    """Facts about the .sic file `data` as data and as text.

    Raises:
        BitstreamError: If it is damaged.
    """
    file = container.unpack(data, max_pixels=None)
    header, metadata = file.header, file.metadata
    side = (header.height, header.width)
    payloads = [len(segment.payload) for segment in file.segments]
    # An exact picture has one segment and no levels of its own.
    sizes = [] if header.exact else container.level_sizes(data)
    blocks = {"ICC profile": metadata.icc_profile, "EXIF": metadata.exif, "XMP": metadata.xmp}
    told = [f"{name} {len(block)} bytes" for name, block in blocks.items() if block is not None]
    if metadata.dpi is not None:
        told.append("resolution {:g} x {:g} dpi".format(*metadata.dpi))
    if file.metadata_damaged:
        told.append("damaged")
    alpha = 0 if file.alpha is None else len(file.alpha.payload)
    picture = 0 if file.truncated else len(container.pack(header, file.segments, alpha=file.alpha))
    stored = 0 if file.truncated else len(data) - picture
    facts: dict[str, object] = {
        "file": path,
        "bytes": len(data),
        "bpp": bpp(len(data), *side),
        "version": header.version,
        "model_id": header.model_id.hex(),
        "width": header.width,
        "height": header.height,
        "mode": header.mode,
        "seed": header.seed,
        "grain": header.grain / container.GRAIN_UNITS,
        "float_entropy": header.float_entropy,
        "exact": header.exact,
        "num_levels": header.num_levels,
        "level": file.level,
        "icc_profile_bytes": len(metadata.icc_profile or b""),
        "exif_bytes": len(metadata.exif or b""),
        "xmp_bytes": len(metadata.xmp or b""),
        "dpi": metadata.dpi,
        "metadata_bytes": stored,
        "metadata_damaged": file.metadata_damaged,
        "alpha": header.alpha,
        "alpha_bytes": alpha,
        "exact_bytes": payloads[0] if header.exact else 0,
        "z_bytes": 0 if header.exact else payloads[0],
        "levels": [
            {
                "level": level,
                "bytes": payloads[level],
                "file_bytes": size,
                "bpp": bpp(size, *side),
            }
            for level, size in enumerate(sizes, 1)
        ],
    }
    lines = [
        f"{shown(path)}: {len(data)} bytes, {bpp(len(data), *side):.4f} bpp",
        f"picture   {header.width} x {header.height} {header.mode}",
        f"model     {header.model_id.hex()}, format version {header.version}",
        f"pixels    exact, {payloads[0]} bytes"
        if header.exact
        else f"levels    {file.level}"
        + (f", cut off of {header.num_levels}" if file.truncated else ""),
        f"alpha     {f'{alpha} bytes' if header.alpha else 'none'}",
        f"seed      {header.seed}",
        f"grain     {header.grain / container.GRAIN_UNITS:g} of 255",
        f"metadata  {', '.join(told) or 'none'}"
        + (f"; {stored} bytes of the file" if stored else ""),
    ]
    if header.exact:
        return facts, "\n".join(lines) + "\n"
    lines += [
        "",
        "segment       bytes   file bytes up to here      bpp",
        f"{'z':8}{payloads[0]:11}",
    ]
    for level, size in enumerate(sizes, 1):
        lines.append(f"level {level:<2}{payloads[level]:11}{size:24}{bpp(size, *side):9.4f}")
    return facts, "\n".join(lines) + "\n"
