"""Measure codecs on images: ``python eval.py --images FOLDER --out DIR`` (see ``--help``)."""

import sys

from sic_jax.cli.evaluate import main
from sic_jax.compilation_cache import enable_compilation_cache

if __name__ == "__main__":
    enable_compilation_cache()
    sys.exit(main())
