"""Commands: `sic`, train.py, eval.py, the demonstration and the export of parameters."""
