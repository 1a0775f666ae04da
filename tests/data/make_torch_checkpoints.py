"""Writes tests/data/torch/*: small checkpoints by torch.save itself.

Run `python tests/data/make_torch_checkpoints.py` where PyTorch is installed (2.13 was used).
tests/test_torch_checkpoint.py says what the tensors are.
"""

from collections import OrderedDict
from pathlib import Path

import torch

FOLDER = Path(__file__).resolve().parent / "torch"


def state_dict() -> "OrderedDict[str, torch.Tensor]":
    """Tensors of every kind that state dicts have."""
    base = torch.arange(24, dtype=torch.float32) / 8
    shared = torch.arange(6, dtype=torch.float32).reshape(2, 3)
    tensors = OrderedDict(
        [
            ("weight", torch.nn.Parameter(base.reshape(2, 3, 4))),
            ("transposed", base.reshape(4, 6).T),
            ("part", base[5:11]),
            ("shared", shared),
            ("shared_row", shared[1]),
            ("half", (base[:4] - 1).half()),
            ("bfloat16", (base[:4] - 1).bfloat16()),
            ("double", base[:3].double() * 1e-3),
            ("index", torch.tensor([[3, -1], [2**40, 0]])),
            ("mask", torch.tensor([True, False])),
            ("bytes", torch.tensor([0, 255], dtype=torch.uint8)),
            ("scalar", torch.tensor(2.5)),
            ("empty", torch.zeros(0, 3)),
        ]
    )
    tensors._metadata = OrderedDict([("", {"version": 1})])
    return tensors


def main() -> None:
    """Write the files."""
    FOLDER.mkdir(exist_ok=True)
    tensors = state_dict()
    torch.save(tensors, FOLDER / "plain.pt")
    torch.save(tensors, FOLDER / "legacy.pt", _use_new_zipfile_serialization=False)
    module = torch.nn.Conv2d(1, 2, 3)
    with torch.no_grad():
        module.weight.copy_(torch.arange(18.0).reshape(2, 1, 3, 3))
        module.bias.copy_(torch.tensor([1.0, -1.0]))
    optimiser = torch.optim.AdamW(module.parameters())
    module(torch.ones(1, 1, 3, 3)).sum().backward()
    optimiser.step()
    with torch.no_grad():
        module.weight.copy_(torch.arange(18.0).reshape(2, 1, 3, 3))
        module.bias.copy_(torch.tensor([1.0, -1.0]))
    parallel = OrderedDict((f"module.{k}", v) for k, v in module.state_dict().items())
    run = {"epoch": 3, "loss": 0.5, "state_dict": parallel, "optimizer": optimiser.state_dict()}
    torch.save(run, FOLDER / "run.pth")
    torch.save(
        {**run, "best": True}, FOLDER / "run_legacy.pth", _use_new_zipfile_serialization=False
    )
    torch.save(module, FOLDER / "module.pt")


if __name__ == "__main__":
    main()
