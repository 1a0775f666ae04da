"""The authors' PyTorch checkpoints, read without PyTorch and without running anything in them.

`convert_state_dict` makes a config and parameters of their arrays, `sic import-official` a bundle.
"""

from sic_jax.importers.paper_parameters import convert_state_dict, infer_config

__all__ = ["convert_state_dict", "infer_config"]
