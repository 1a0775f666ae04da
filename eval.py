"""Measure codecs on images: ``python eval.py --images FOLDER --out DIR`` (see ``--help``)."""

import sys

from sic_jax.compilation_cache import enable_compilation_cache
from sic_jax.evaluation.main import main

if __name__ == "__main__":
    enable_compilation_cache()
    sys.exit(main())
