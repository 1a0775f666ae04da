"""Checkpoints of torch.save (tests/data/torch, written by PyTorch itself), safetensors and .npz."""

import io
import json
import os
import pickle
import re
import struct
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sic_jax.importers import restricted_pickle
from sic_jax.importers.torch_checkpoint import _LEGACY_MAGIC, _LEGACY_PROTOCOL, read_state_dict

DATA = Path(__file__).parent / "data" / "torch"
BASE = np.arange(24, dtype=np.float32) / 8
EXPECTED = {
    "weight": BASE.reshape(2, 3, 4),
    "transposed": BASE.reshape(4, 6).T,
    "part": BASE[5:11],
    "shared": np.arange(6, dtype=np.float32).reshape(2, 3),
    "shared_row": np.array([3, 4, 5], np.float32),
    "half": BASE[:4] - 1,
    "bfloat16": BASE[:4] - 1,
    "double": BASE[:3].astype(np.float64) * 1e-3,
    "index": np.array([[3, -1], [2**40, 0]]),
    "mask": np.array([True, False]),
    "bytes": np.array([0, 255], np.uint8),
    "scalar": np.float32(2.5),
    "empty": np.zeros((0, 3), np.float32),
}


def assert_arrays(arrays: dict[str, Any], expected: dict[str, Any]) -> None:
    assert list(arrays) == list(expected)
    for name, array in expected.items():
        assert arrays[name].dtype == array.dtype, name
        np.testing.assert_array_equal(arrays[name], array, err_msg=name)


@pytest.mark.parametrize("name", ["plain.pt", "legacy.pt"])
def test_every_kind_of_tensor(name: str) -> None:
    assert_arrays(read_state_dict(DATA / name), EXPECTED)


@pytest.mark.parametrize("name", ["run.pth", "run_legacy.pth"])
def test_state_dict_of_a_training_run(name: str) -> None:
    """{"state_dict": {"module.weight": ...}, "optimizer": ...}: wrapper and prefix go."""
    weight = np.arange(18, dtype=np.float32).reshape(2, 1, 3, 3)
    assert_arrays(
        read_state_dict(DATA / name), {"weight": weight, "bias": np.array([1, -1], np.float32)}
    )


def test_whole_modules_are_refused() -> None:
    with pytest.raises(ValueError, match=r"names torch.nn.modules.conv.Conv2d.*nothing was run"):
        read_state_dict(DATA / "module.pt")


def safetensors(header: dict[str, Any], data: bytes) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def entry(dtype: str, shape: list[int], begin: int, end: int) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def test_safetensors(tmp_path: Path) -> None:
    values = np.array([1, -2.5, 3, 0.125], np.float32)
    header = {
        "__metadata__": {"format": "pt"},
        "model.a": entry("F32", [2, 2], 0, 16),
        "model.b": entry("BF16", [4], 16, 24),
        "model.c": entry("F16", [2], 24, 28),
        "model.d": entry("I64", [], 28, 36),
    }
    upper = values.view(np.uint32) >> 16
    data = values.tobytes() + upper.astype("<u2").tobytes() + values[:2].astype("<f2").tobytes()
    (tmp_path / "x").write_bytes(safetensors(header, data + struct.pack("<q", -5)))
    expected = {
        "model.a": values.reshape(2, 2),
        "model.b": values,
        "model.c": values[:2],
        "model.d": np.int64(-5),
    }
    assert_arrays(read_state_dict(tmp_path / "x"), expected)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        # Two texts of the library: that of 0.8 and that of 0.4.5.
        (entry("F32", [2], 0, 4), "invalid shape|TensorInvalidInfo"),
        (entry("F32", [2], 4, 12), "invalid offset|InvalidOffset"),
        (entry("F32", [-1], 0, 0), "invalid JSON|InvalidHeader"),
        (entry("F32", [2**40, 2**40], 0, 8), "overflow|ValidationOverflow"),
        (entry("F32", [2], 0, 8) | {"shape": [2.0]}, "invalid JSON|InvalidHeader"),
        (entry("F32", [0] * 40, 0, 0), "file not fully covered|MetadataIncompleteBuffer"),
        (entry("F32", [1], 0, 4), "file not fully covered|MetadataIncompleteBuffer"),
        (
            entry("F32", [[2], 1], 0, 8),  # type: ignore[list-item]
            "invalid JSON|InvalidHeader",
        ),
        (entry("Q4", [2], 0, 8), "invalid JSON|InvalidHeader"),
        ({"dtype": "F32", "shape": 2}, "invalid JSON|InvalidHeader"),
        (7, "invalid JSON|InvalidHeader"),
    ],
)
def test_safetensors_with_a_wrong_entry(tmp_path: Path, bad: Any, message: str) -> None:
    (tmp_path / "x").write_bytes(safetensors({"a": bad}, bytes(8)))
    start = f"{tmp_path / 'x'} is not a readable checkpoint: the safetensors file is damaged: "
    with pytest.raises(ValueError, match=f"^{re.escape(start)}.*({message})"):
        read_state_dict(tmp_path / "x")


@pytest.mark.parametrize(
    ("name", "bad", "message"),
    [
        ("a", entry("U16", [2], 0, 4), "tensor a is of type U16; types that are read: F64, F32, F"),
        ("a", entry("F8_E4M3", [4], 0, 4), "tensor a is of type F8_E4M3; types that are read: F64"),
        ("a\nb", entry("U64", [0], 0, 0), "tensor a b is of type U64; types that are read: F64"),
        ("a", entry("F32", [0] * 17, 0, 0), f"tensor a has shape {(0,) * 17}"),
        ("a", entry("F32", [0, 2**63], 0, 0), f"tensor a has shape (0, {2**63})"),
        ("a", entry("BF16", [0, 2**40, 2**40], 0, 0), ""),  # NumPy's text.
    ],
)
def test_safetensors_that_the_library_reads_and_this_does_not(
    tmp_path: Path, name: str, bad: dict[str, Any], message: str
) -> None:
    size = bad["data_offsets"][1]
    (tmp_path / "x").write_bytes(safetensors({name: bad}, bytes(size)))
    start = f"{tmp_path / 'x'} is not a readable checkpoint: {message}"
    with pytest.raises(ValueError, match=f"^{re.escape(start)}") as error:
        read_state_dict(tmp_path / "x")
    assert "\n" not in str(error.value)


def test_safetensors_that_share_bytes(tmp_path: Path) -> None:
    """A thousand tensors of the same megabyte would be a gigabyte of copies."""
    header = {f"a{k}": entry("BF16", [2**19], 0, 2**20) for k in range(1000)}
    (tmp_path / "x").write_bytes(safetensors(header, bytes(2**20)))
    with pytest.raises(ValueError, match=r"invalid offset|InvalidOffset"):
        read_state_dict(tmp_path / "x")


def test_npz(tmp_path: Path) -> None:
    stored: dict[str, Any] = {"module.a": BASE, "module.b": BASE[:3].astype(np.float16)}
    np.savez(tmp_path / "x.npz", **stored)
    assert_arrays(read_state_dict(tmp_path / "x.npz"), {"a": BASE, "b": BASE[:3]})
    np.savez(tmp_path / "y.npz", a=np.array([print], object))
    with pytest.raises(ValueError, match="Object arrays"):
        read_state_dict(tmp_path / "y.npz")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "no file of torch.save"),
        (b"\x93SIC\x01" + bytes(20), "no file of torch.save"),
        (b"PK\x03\x04" + bytes(60), "archive is damaged"),
        (b"\x89PNG\r\n\x1a\n" + bytes(20), "no file of torch.save"),
        (struct.pack("<Q", 2**40) + b"{}", "header too large|HeaderTooLarge"),
        (struct.pack("<Q", 99) + b"{}", "is damaged: Error while deserializing"),
        (struct.pack("<Q", 3) + b"{x}", "invalid JSON in header|InvalidHeader"),
        (pickle.dumps({"a": 1}, 2), "not one of torch.save"),
    ],
)
def test_other_files(tmp_path: Path, data: bytes, message: str) -> None:
    (tmp_path / "x").write_bytes(data)
    with pytest.raises(ValueError, match=message):
        read_state_dict(tmp_path / "x")


def test_other_archives(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x", "w") as archive:
        archive.writestr("hello.txt", "hello")
    with pytest.raises(ValueError, match=r"neither of torch.save nor of NumPy"):
        read_state_dict(tmp_path / "x")


class Runs:
    """Unpickling this creates a file."""

    def __init__(self, path: Path, call: Callable[..., Any] = os.mkdir) -> None:
        self.path, self.call = path, call

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call, (str(self.path),)


def torch_zip(path: Path, content: bytes, *, compression: int = 0, **members: bytes) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("x/data.pkl", content)
        for name, data in members.items():
            archive.writestr(f"x/{name}".replace("data_", "data/"), data)
    return path


@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize("legacy", [False, True])
def test_code_is_not_run(tmp_path: Path, protocol: int, legacy: bool) -> None:
    trace = tmp_path / "trace"
    program = pickle.dumps({"state_dict": Runs(trace)}, protocol)
    if legacy:
        head = (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})
        path = tmp_path / "x"
        path.write_bytes(b"".join(pickle.dumps(part, 2) for part in head) + program)
    else:
        path = torch_zip(tmp_path / "x", program)
    module = os.mkdir.__module__
    with pytest.raises(ValueError, match=rf"names {module}.mkdir.*nothing was run"):
        read_state_dict(path)
    assert not trace.exists()
    pickle.loads(program)  # The same bytes do run where pickles are trusted.
    assert trace.is_dir()


@pytest.mark.parametrize(
    ("program", "message"),
    [
        (b"\x80\x02cbuiltins\neval\nX\x01\x00\x00\x001\x85R.", "names builtins.eval"),
        (b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n(tR.", "damaged"),
        (b"\x80\x02ctorch\nFloatStorage\n)R.", "calls torch.FloatStorage"),
        (b"\x80\x02ctorch\nFloatStorage\n.", "a value is missing"),
        (b"\x80\x02ccollections\nOrderedDict\n}b.", "a dict|is no dict|missing"),
        (b"\x80\x02ccollections\nOrderedDict\n)\x81.", "instruction NEWOBJ"),
        (b"\x80\x02(ccollections\nOrderedDict\no.", "instruction OBJ"),
        (b"(icollections\nOrderedDict\n.", "instruction INST"),
        (b"\x80\x02\x82\x01.", "instruction EXT1"),
        (b"\x80\x04\x8c\x02osK\x01\x93.", "not a string"),
        (b"\x80\x02}))s.", "key of type tuple"),
        (b"\x80\x02](K\x01K\x02u.", "no dict"),
        (b"\x80\x02}K\x01a.", "no list"),
        (b"\x80\x02K\x01)R.", "no function"),
        (b"\x80\x02h\x07.", "KeyError"),
        (b"\x80\x02t.", "mark is missing"),
        (b"\x80\x02.", "IndexError"),
        (b"\x80\x02K\x01Q.", "not described by 5 values"),
        (b"\x80\x02r\xff\xff\xff\xff.", "IndexError"),
        (b"\x80\x02T\xff\xff\xff\x7fabc.", "expected 2147483647 bytes"),
        (b"\x80\x02}", "no end|pickle exhausted"),
        (b"\xff", "unknown"),
    ],
)
def test_pickles_that_build_no_state_dict(program: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        restricted_pickle.load(io.BytesIO(program))


class Call:
    """Pickles as a call of a name that need not exist here."""

    def __init__(self, name: str, *arguments: Any) -> None:
        self.name, self.arguments = name, arguments


class Persistent(tuple[Any, ...]):
    """Pickles as a persistent id."""


class StorageType:
    """Pickles as a name in the module torch."""

    def __init__(self, name: str) -> None:
        self.name = name


def torch_pickle(value: Any) -> bytes:
    """A pickle with the names that PyTorch uses, without PyTorch (protocol 2)."""
    out = io.BytesIO()

    class Pickler(pickle._Pickler):  # type: ignore[name-defined]
        write: Callable[[bytes], object]

        def persistent_id(self, obj: Any) -> Any:
            return tuple(obj) if type(obj) is Persistent else None

        def save(self, obj: Any, save_persistent_id: bool = True) -> None:
            if isinstance(obj, StorageType):
                self.write(f"ctorch\n{obj.name}\n".encode())
            elif isinstance(obj, Call):
                self.write(f"ctorch._utils\n{obj.name}\n".encode())
                self.save(obj.arguments)
                self.write(b"R")
            else:
                super().save(obj, save_persistent_id)  # type: ignore[misc]

    Pickler(out, 2).dump(value)
    return out.getvalue()


def tensor(
    shape: Any = (2,),
    strides: Any = (1,),
    offset: Any = 0,
    *,
    count: Any = 4,
    kind: str = "FloatStorage",
) -> Call:
    storage = Persistent(("storage", StorageType(kind), "0", "cpu", count))
    return Call("_rebuild_tensor_v2", storage, offset, shape, strides, False, None)


def test_handmade_checkpoint(tmp_path: Path) -> None:
    """The helper below makes what PyTorch would read; so its damaged variants are to the point."""
    values = np.arange(4, dtype="<f4")
    tensors = {
        "a": tensor(),
        "b": tensor((2, 2), (1, 2)),
        "any_stride": tensor((1, 2), (2**62, 1)),
    }
    program = torch_pickle(tensors)
    path = torch_zip(tmp_path / "x", program, data_0=values.tobytes(), byteorder=b"little")
    expected = {"a": values[:2], "b": values.reshape(2, 2).T, "any_stride": values[None, :2]}
    assert_arrays(read_state_dict(path), expected)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (tensor((5,)), "does not fit"),
        (tensor((2,), (1,), 3), "does not fit"),
        (tensor((2,), (4,)), "does not fit"),
        (tensor((2,), (-1,), 1), "strides"),
        (tensor((2,), (1,), -1), "offset -1"),
        (tensor((-2,)), "shape"),
        (tensor((2, 2)), "strides"),
        (tensor((2**62, 2**62), (0, 0)), "does not fit"),
        (tensor((10**6, 1), (0, 1)), "does not fit"),
        (tensor((1,) * 40, (1,) * 40), "no tuple of 16"),
        (tensor([2]), "no tuple"),
        (tensor((2.0,)), "wrong types"),
        (tensor((True,)), "wrong types"),
        (tensor((1,), (2**70,)), "more than 63 bits"),
        (tensor(offset="0"), "wrong types"),
        (tensor(count=5), "truncated or damaged"),
        (tensor(count=-1), "truncated or damaged"),
        (tensor(count=2**62), "truncated or damaged"),
        (tensor(kind="ComplexFloatStorage"), "names torch.ComplexFloatStorage"),
        (tensor(kind="DoubleStorage"), "truncated or damaged"),
        (Call("_rebuild_tensor_v2", 1, 0, (), (), False, None), "wrong types"),
        (Call("_rebuild_parameter", 1, True, None), "no tensor"),
        (Call("_rebuild_qtensor", 1), "names torch._utils._rebuild_qtensor"),
    ],
)
def test_tensors_that_are_not_there(tmp_path: Path, bad: Call, message: str) -> None:
    path = torch_zip(tmp_path / "x", torch_pickle({"a": bad}), data_0=bytes(16))
    with pytest.raises(ValueError, match=message):
        read_state_dict(path)


def test_storage_described_in_two_ways(tmp_path: Path) -> None:
    program = torch_pickle({"a": tensor(), "b": tensor(kind="IntStorage")})
    with pytest.raises(ValueError, match="two ways"):
        read_state_dict(torch_zip(tmp_path / "x", program, data_0=bytes(16)))


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({}, "storage '0' is missing"),
        ({"data_0": bytes(16), "byteorder": b"big"}, "little-endian"),
    ],
)
def test_damaged_archives(tmp_path: Path, members: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_state_dict(torch_zip(tmp_path / "x", torch_pickle({"a": tensor()}), **members))


def test_compressed_archives_are_refused(tmp_path: Path) -> None:
    """PyTorch stores; a small archive that unpacks to gigabytes is not read."""
    program = torch_pickle({"a": tensor(count=2**20)})
    path = torch_zip(tmp_path / "x", program, compression=8, data_0=bytes(2**22))
    with pytest.raises(ValueError, match="compressed"):
        read_state_dict(path)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([1, 2], "holds a list"),
        ({"epoch": 3, "weights": {"a": 1}}, "there are: epoch, weights"),
        ({"state_dict": {}}, "no tensors are where"),
    ],
)
def test_no_state_dict(tmp_path: Path, value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_state_dict(torch_zip(tmp_path / "x", torch_pickle(value)))


def shared_twice(depth: int) -> Any:
    """Tuples that are small in memory and in a file, and print as 2^depth values."""
    value: Any = ()
    for _ in range(depth):
        value = (value, value)
    return value


@pytest.mark.parametrize(
    "value",
    [pickle.dumps(shared_twice(60), 2), b"\x80\x02)" + b"\x85" * 100_000 + b"."],
    ids=["shared", "deep"],
)
def test_values_that_cannot_be_printed(tmp_path: Path, value: bytes) -> None:
    """As the protocol, in the list of storages, and as a key: refused by their type."""
    magic, system = (pickle.dumps(part, 2) for part in (_LEGACY_MAGIC, {"little_endian": True}))
    path = tmp_path / "x"
    path.write_bytes(magic + value + system)
    with pytest.raises(ValueError, match="protocol a value of type tuple, not 1001"):
        read_state_dict(path)
    head = magic + pickle.dumps(_LEGACY_PROTOCOL, 2) + system + torch_pickle({"a": tensor()})
    path.write_bytes(head + b"\x80\x02]" + value[2:-1] + b"a.")
    with pytest.raises(ValueError, match="storages is damaged at a value of type tuple"):
        read_state_dict(path)
    with pytest.raises(ValueError, match="key of type tuple"):
        restricted_pickle.load(io.BytesIO(b"\x80\x02}" + value[2:-1] + b"Ns."))


def test_keys_of_equal_hashes() -> None:
    """Numbers can be chosen so that a dict of n takes n^2 steps; they are left out."""
    keys = [k * (2**61 - 1) for k in range(30_000)]
    assert len({hash(key) for key in keys}) == 1
    items = b"".join(b"\x8a\x0a" + key.to_bytes(10, "little") + b"N" for key in keys)
    begin = time.process_time()
    value = restricted_pickle.load(io.BytesIO(b"\x80\x02}(" + items + b"X\x01\0\0\0aK\x05u."))
    assert value == {"a": 5}
    assert time.process_time() - begin < 4


def test_long_shapes() -> None:
    """One tuple for all tensors of a file would be looked at for each."""
    shape = tuple(range(17))
    program = torch_pickle({"a": tensor(shape, shape)})
    with pytest.raises(ValueError, match="no tuple of 16 numbers at most"):
        restricted_pickle.load(io.BytesIO(program))


def test_wrappers_without_end(tmp_path: Path) -> None:
    """A dict that is its own state dict, and two that are each other's; eight are read."""
    itself: dict[str, Any] = {}
    itself["state_dict"] = itself
    first: dict[str, Any] = {}
    first["model"] = {"net": first}
    for value in (itself, first):
        path = torch_zip(tmp_path / "x", torch_pickle(value))
        with pytest.raises(ValueError, match="wrapped in more than 8 dicts"):
            read_state_dict(path)
    value = {"a": tensor((1,))}
    for _ in range(8):
        value = {"module": value}
    path = torch_zip(tmp_path / "y", torch_pickle(value), data_0=bytes(16))
    assert_arrays(read_state_dict(path), {"a": np.array([0], np.float32)})


@pytest.mark.parametrize("name", ["plain.pt", "legacy.pt"])
def test_every_truncation_is_refused(tmp_path: Path, name: str) -> None:
    data = (DATA / name).read_bytes()
    for size in range(0, len(data) - 1, 7):
        (tmp_path / "x").write_bytes(data[:size])
        with pytest.raises(ValueError, match="not a readable checkpoint"):
            read_state_dict(tmp_path / "x")


@pytest.mark.parametrize("name", ["plain.pt", "legacy.pt"])
def test_damaged_bytes_are_refused_or_read(tmp_path: Path, name: str) -> None:
    """Nothing but ValueError comes out, and the result has as many values as the file at most."""
    data = (DATA / name).read_bytes()
    rng = np.random.default_rng(0)
    refused = 0
    for position in rng.permutation(len(data))[:400]:
        damaged = bytearray(data)
        damaged[position] ^= int(rng.integers(1, 256))
        (tmp_path / "x").write_bytes(damaged)
        try:
            arrays = read_state_dict(tmp_path / "x")
        except ValueError:
            refused += 1
        else:
            assert sum(a.size for a in arrays.values()) <= len(data)
    assert refused > 100


def test_damaged_safetensors_are_refused_or_read(tmp_path: Path) -> None:
    """Every byte of the header once; nothing but ValueError comes out, in one line."""
    header = {"a": entry("F32", [2, 2], 0, 16), "b\n": entry("BF16", [4], 16, 24)}
    data = safetensors(header, bytes(24))
    rng = np.random.default_rng(0)
    refused: list[str] = []
    for position in range(len(data) - 24):
        damaged = bytearray(data)
        damaged[position] ^= int(rng.integers(1, 256))
        (tmp_path / "x").write_bytes(damaged)
        try:
            arrays = read_state_dict(tmp_path / "x")
        except ValueError as error:
            refused.append(str(error))
        else:
            assert sum(a.size for a in arrays.values()) <= 8
    assert len(refused) > 100
    assert not [text for text in refused if "\n" in text]
    assert {text.partition(":")[0] for text in refused} == {
        f"{tmp_path / 'x'} is not a readable checkpoint"
    }
