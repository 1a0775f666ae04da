"""Train a model: ``python train.py PRESET --data FOLDER --workdir DIR [--FIELD VALUE ...]``."""

from sic_jax.cli.train import main

if __name__ == "__main__":
    main()
