"""One step, however its batch is cut: devices, pmap, processes, parts."""

import dataclasses
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import write_images
from numpy.typing import NDArray

from sic_jax.cli.train import main
from sic_jax.codec.bundle import load_bundle
from sic_jax.training.parallel import (
    check_batch,
    device_mesh,
    initialise_distributed,
    local_rows,
    state_shardings,
)
from sic_jax.training.train_config import TrainConfig

ROOT = Path(__file__).resolve().parent.parent
Images = list[NDArray[Any]]


def environment(devices: int) -> dict[str, str]:
    env = {**os.environ, "JAX_PLATFORMS": "cpu", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    env["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={devices}"
    env["PYTHONPATH"] = str(ROOT)
    return env


def run_steps(devices: int, *configs: dict[str, Any]) -> dict[str, Any]:
    command = [sys.executable, str(ROOT / "tests" / "run_steps.py"), *map(json.dumps, configs)]
    done = subprocess.run(
        command, env=environment(devices), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def check_same(result: dict[str, Any]) -> None:
    one = result["losses"]["one"]
    assert one[0] != one[1] != one[2]
    assert set(result["compiled_later"].values()) == {0}
    for words, losses in result["losses"].items():
        assert losses == pytest.approx(one, rel=1e-5), words
        assert result["norms"][words] == pytest.approx(result["norms"]["one"], rel=1e-6), words


@pytest.mark.thorough
def test_eight_devices_by_jit_and_pmap() -> None:
    result = run_steps(8, {}, {"parallel": "pmap"})
    assert result["devices"] == 8
    check_same(result)


@pytest.mark.slow
def test_eight_devices_in_parts_and_with_spread_parameters() -> None:
    fsdp = {"fsdp": True}
    both = {"accumulate": 2, "parallel": "pmap"}
    check_same(run_steps(4, fsdp, {"accumulate": 2}, both, {"remat": True}))


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(jax, "set_mesh"), reason="this JAX has no jax.set_mesh")
def test_steps_under_a_mesh_of_the_callers() -> None:
    check_same(run_steps(2, {"set_mesh": True}, {"set_mesh": True, "parallel": "pmap"}))


@pytest.mark.slow
def test_a_run_goes_on_with_other_devices(source: Images, tmp_path: Path) -> None:
    data = tmp_path / "images"
    write_images(data, source)

    def run(devices: int, workdir: Path, *words: str) -> None:
        words = (*words, "--steps", "8", "--save-every", "4", "--keep-last", "2")
        env = environment(devices)
        subprocess.run(command(data, workdir, *words), env=env, check=True)

    run(4, tmp_path / "whole", "--fsdp")
    pmap = ("--parallel", "pmap")
    for devices, words in ((1, ()), (2, ("--fsdp",)), (8, pmap)):
        parts = tmp_path / str(devices)
        shutil.copytree(tmp_path / "whole", parts)
        shutil.rmtree(parts / "checkpoints" / "8")
        run(devices, parts, *words)
        assert (parts / "checkpoints" / "8").is_dir()
        assert losses(parts) == pytest.approx(losses(tmp_path / "whole"), rel=1e-5)


def command(data: Path, workdir: Path, *words: str) -> list[str]:
    start = [sys.executable, str(ROOT / "train.py"), "smoke", "--data", str(data)]
    return [*start, "--workdir", str(workdir), "--batch-size", "8", "--log-every", "1", *words]


def losses(workdir: Path) -> list[float]:
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(s) for s in lines]
    assert [r["step"] for r in records] == list(range(1, len(records) + 1))
    return [r["loss"] for r in records]


def two_processes(
    devices: int, *argv: str, data: Path, workdir: Path
) -> list[subprocess.Popen[bytes]]:
    with socket.socket() as s:
        s.bind(("localhost", 0))
        port = s.getsockname()[1]
    return [
        subprocess.Popen(
            command(
                data, workdir, "--coordinator", f"localhost:{port}", "--num-processes", "2",
                "--process-id", str(k), *argv,
            ),
            env=environment(devices),
        )
        for k in range(2)
    ]  # fmt: skip


@pytest.mark.slow
def test_the_same_twenty_steps(source: Images, tmp_path: Path) -> None:
    data = tmp_path / "images"
    write_images(data, source)
    runs = {
        "one": (1, ()),
        "jit": (8, ()),
        "pmap": (8, ("--parallel", "pmap")),
        "parts": (1, ("--accumulate", "4")),
    }
    for name, (devices, words) in runs.items():
        done = subprocess.run(
            command(data, tmp_path / name, *words), env=environment(devices), check=False
        )
        assert done.returncode == 0, name
    pairs = {"jit_2": (), "pmap_2": ("--parallel", "pmap"), "fsdp_2": ("--fsdp",)}
    for name, words in pairs.items():
        export = ("--export", str(tmp_path / f"{name}_bundle"))
        processes = two_processes(4, *words, *export, data=data, workdir=tmp_path / name)
        for p in processes:
            assert p.wait(600) == 0
    bundles = [load_bundle(tmp_path / f"{name}_bundle").params for name in pairs]
    for other in bundles[1:]:
        for a, b in zip(jax.tree.leaves(bundles[0]), jax.tree.leaves(other), strict=True):
            np.testing.assert_allclose(a, b, rtol=2e-3, atol=1e-3)
    expected = losses(tmp_path / "one")
    assert len(expected) == 20
    for name in ("jit", "pmap", "parts", *pairs):
        assert losses(tmp_path / name) == pytest.approx(expected, rel=1e-5), name


@pytest.mark.slow
def test_killed_and_restarted(source: Images, tmp_path: Path) -> None:
    data = tmp_path / "images"
    write_images(data, source)
    words = ("--steps", "60", "--save-every", "7")
    subprocess.run(command(data, tmp_path / "whole", *words), env=environment(1), check=True)
    killed = tmp_path / "killed"
    for seed in range(3):
        process = subprocess.Popen(command(data, killed, *words), env=environment(1))
        limit = len(losses(killed)) if (killed / "metrics.jsonl").exists() else 0
        limit = min(limit + 5 + 4 * seed, 55)
        while process.poll() is None:
            path = killed / "metrics.jsonl"
            if path.exists() and len(path.read_text().splitlines()) > limit:
                process.send_signal(signal.SIGKILL)
                break
            time.sleep(0.002)
        process.wait()
    subprocess.run(command(data, killed, *words), env=environment(1), check=True)
    assert losses(killed) == losses(tmp_path / "whole")


@pytest.mark.slow
def test_two_processes_end_together(source: Images, tmp_path: Path) -> None:
    data, run = tmp_path / "images", tmp_path / "run"
    write_images(data, source)
    # Every step is saved: what they agree on is one that is saved anyway.
    words = ("--steps", "400", "--save-every", "1", "--keep-last", "1")
    processes = two_processes(1, *words, data=data, workdir=run)
    while len(processes) == 2 and not (run / "metrics.jsonl").exists():
        assert all(p.poll() is None for p in processes)
        time.sleep(0.1)
    processes[1].send_signal(signal.SIGTERM)
    for p in processes:
        assert p.wait(600) == 0
    saved = [int(p.name) for p in (run / "checkpoints").iterdir() if p.name.isdigit()]
    assert len(saved) == 1
    assert 0 < saved[0] < 400


@pytest.mark.slow
def test_two_processes_by_the_clock(source: Images, tmp_path: Path) -> None:
    data, run, bundle = tmp_path / "images", tmp_path / "run", tmp_path / "bundle"
    write_images(data, source)
    began = time.monotonic()
    words = ("--minutes", "2", "--log-every", "10", "--export", str(bundle))
    for p in two_processes(1, *words, data=data, workdir=run):
        assert p.wait(600) == 0
    assert time.monotonic() - began < 140
    last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["progress"] == 1
    assert last["step"] > 20
    assert (run / "checkpoints" / str(last["step"])).is_dir()
    load_bundle(bundle)


def test_rows_and_batches(tiny_run: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    assert local_rows(8) == slice(0, 8)
    monkeypatch.setattr(jax, "process_count", lambda: 4)
    monkeypatch.setattr(jax, "process_index", lambda: 2)
    assert local_rows(8) == slice(4, 6)
    monkeypatch.setattr(jax, "device_count", lambda: 3)
    check_batch(dataclasses.replace(tiny_run, batch_size=6, accumulate=2))
    with pytest.raises(ValueError, match="batch_size is 8; it must be a multiple of the 3 devices"):
        check_batch(dataclasses.replace(tiny_run, batch_size=8))


def test_where_a_state_lies() -> None:
    mesh = device_mesh()
    state = {"long": jnp.zeros((3, 4096)), "short": jnp.zeros(7), "scalar": jnp.zeros(())}
    for fsdp in (False, True):
        found = state_shardings(state, mesh, fsdp=fsdp)
        axes = {name: tuple(s.spec) for name, s in found.items()}
        expected = (None, "data") if fsdp else ()
        assert axes == {"long": expected, "short": (), "scalar": ()}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--num-processes", "2"], "--num-processes and --process-id need --coordinator HOST:PORT"),
        (["--coordinator", "localhost:1"], "needs --num-processes and --process-id"),
        (
            ["--coordinator", "localhost:1", "--num-processes", "2", "--process-id", "2"],
            "--process-id must be 0 to 1, got 2",
        ),
        (["--distributed", "--connect-timeout", "0"], "--connect-timeout must be positive, got 0"),
    ],
)
def test_wrong_processes(words: list[str], message: str, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=f"train.py: error: .*{message}"):
        main(["smoke", "--data", str(tmp_path), "--workdir", str(tmp_path), *words])


def test_processes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda *args, **_: seen.append(args))
    initialise_distributed("host:1", 4, 3)
    for name, value in {
        "COORDINATOR_ADDRESS": "other:2", "NUM_PROCESSES": "3", "PROCESS_ID": "1"
    }.items():  # fmt: skip
        monkeypatch.setenv(f"JAX_{name}", value)
    initialise_distributed()
    assert seen == [("host:1", 4, 3), ("other:2", 3, 1)]


@pytest.mark.parametrize("process", [0, 1])
def test_a_process_alone_ends_with_a_sentence(process: int, tmp_path: Path) -> None:
    with socket.socket() as s:
        s.bind(("localhost", 0))
        address = f"localhost:{s.getsockname()[1]}"
    words = ["--coordinator", address, "--num-processes", "2", "--process-id", str(process)]
    done = subprocess.run(
        command(tmp_path, tmp_path, *words, "--connect-timeout", "1.5"),
        env=environment(1), capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr == (
        f"train.py: error: not all of the 2 processes with the coordinator {address} are there "
        "after 1.5 s\n"
    )
    assert list(tmp_path.iterdir()) == []
