"""The authors' PyTorch checkpoints, read without PyTorch and without running anything in them.

`convert_state_dict` makes a config and parameters of their arrays, `reference_forward` runs the
network by their conventions, for verification; `sic import-official` makes a bundle.
"""

from sic_jax.official.convert import convert_state_dict, infer_config, reference_forward

__all__ = ["convert_state_dict", "infer_config", "reference_forward"]
