"""How devices and hosts share a step: `jit` over a mesh of all devices, or `pmap`.

Each process loads its own rows of the global batch. The step's numbers do not depend on the cut
(`sic_jax.training.step`), so both ways, any number of devices and any number of processes train the
same model, up to the order of float sums.
"""

import contextlib
import os
import sys
import threading
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from numpy.typing import NDArray

from sic_jax.training.losses import PerceptualWeights
from sic_jax.training.state import TrainState
from sic_jax.training.step import Metrics, make_train_steps
from sic_jax.training.train_config import TrainConfig

AXIS = "data"
_MIN_SHARDED = 2**12
"""Scalars from which on an array is spread with `fsdp`."""


def initialise_distributed(
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    timeout: float = 300.0,
) -> None:
    """Connect the processes of a run; to be called before anything touches a device.

    With a coordinator (``HOST:PORT``, or the variable JAX_COORDINATOR_ADDRESS, with
    JAX_NUM_PROCESSES and JAX_PROCESS_ID) the other two are needed; without, the cluster (TPU pod,
    SLURM, Open MPI) must tell.

    If the processes do not find each other within `timeout` seconds, this one says so and ends
    with exit code 1: it waits inside JAX, which no exception reaches. A process whose partner dies
    later is ended by JAX within two minutes.

    Raises:
        ValueError: If the three do not fit together.
        RuntimeError: If there is no cluster.
    """
    if not timeout > 0:
        raise ValueError(f"--connect-timeout must be positive, got {timeout:g}")
    env = os.environ
    coordinator = coordinator or env.get("JAX_COORDINATOR_ADDRESS")
    if coordinator is None:
        if num_processes is not None or process_id is not None:
            raise ValueError("--num-processes and --process-id need --coordinator HOST:PORT")
        with _ends_after(timeout, f"the cluster's processes are not there after {timeout:g} s"):
            jax.distributed.initialize(initialization_timeout=_longer(timeout))
        return
    if num_processes is None and "JAX_NUM_PROCESSES" in env:
        num_processes = int(env["JAX_NUM_PROCESSES"])
    if process_id is None and "JAX_PROCESS_ID" in env:
        process_id = int(env["JAX_PROCESS_ID"])
    if num_processes is None or process_id is None:
        raise ValueError(f"--coordinator {coordinator} needs --num-processes and --process-id")
    if not 0 <= process_id < num_processes:
        raise ValueError(f"--process-id must be 0 to {num_processes - 1}, got {process_id}")
    # What lets processes on CPUs talk to each other; other backends do not read it.
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    all_of_them = f"{num_processes} processes with the coordinator {coordinator}"
    with _ends_after(timeout, f"not all of the {all_of_them} are there after {timeout:g} s"):
        jax.distributed.initialize(
            coordinator, num_processes, process_id, initialization_timeout=_longer(timeout)
        )


def _longer(timeout: float) -> int:
    """JAX's own limit: at it, the process would be aborted with pages of addresses."""
    return int(timeout) + 60


@contextlib.contextmanager
def _ends_after(seconds: float, sentence: str) -> Iterator[None]:
    """Ends the process, with a sentence, if the block takes longer."""

    def end() -> None:
        sys.stderr.write(f"train.py: error: {sentence}\n")
        sys.stderr.flush()
        os._exit(1)

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def device_mesh() -> Mesh:
    """All devices of all processes in a row; XLA's partitioner decides how arrays are cut."""
    return Mesh(np.array(jax.devices()), (AXIS,), axis_types=(AxisType.Auto,))


def local_rows(batch_size: int) -> slice:
    """The rows of a global batch that this process loads."""
    share = batch_size // jax.process_count()
    first = jax.process_index() * share
    return slice(first, first + share)


def check_batch(cfg: TrainConfig) -> None:
    """Check that every part of a batch can be spread over the devices.

    Raises:
        ValueError: If not.
    """
    parts = jax.device_count() * cfg.accumulate
    if cfg.batch_size % parts:
        raise ValueError(
            f"batch_size is {cfg.batch_size}; it must be a multiple of the {jax.device_count()} "
            f"devices times accumulate = {cfg.accumulate}"
        )


def check_same_everywhere(count: int, what: str) -> None:
    """Check that all processes have the same number of something.

    Raises:
        ValueError: If not; on every process.
    """
    counts = np.asarray(multihost_utils.process_allgather(np.int32(count))).tolist()
    if len(set(counts)) > 1:
        raise ValueError(f"all processes must see the same {what}, but they see {counts}")


def replicate(tree: Any, mesh: Mesh) -> Any:
    """Host arrays, the same on every process, as global arrays with a copy on each device."""
    return jax.tree.map(partial(_put, sharding=NamedSharding(mesh, PartitionSpec())), tree)


def shard_rows(rows: Any, mesh: Mesh, axis: int = 0) -> jax.Array:
    """This process's rows of a global batch, spread over the devices.

    Args:
        rows: [b, ...], or with b as another axis.
        mesh: The devices.
        axis: The one that counts rows.

    Returns:
        [B, ...]: the rows of all processes.
    """
    sharding = NamedSharding(mesh, PartitionSpec(*(None,) * axis, AXIS))
    if jax.process_count() == 1:
        placed: jax.Array = jax.device_put(rows, sharding)
    else:
        placed = jax.make_array_from_process_local_data(sharding, np.asarray(rows))
    return placed


def state_shardings(state: Any, mesh: Mesh, *, fsdp: bool) -> Any:
    """Where the arrays of a state lie: everywhere, or with `fsdp` cut along their longest axis."""

    def of(a: Any) -> NamedSharding:
        n = mesh.devices.size
        axes = [i for i, length in enumerate(a.shape) if length % n == 0]
        if not fsdp or not axes or np.prod(a.shape) < _MIN_SHARDED:
            return NamedSharding(mesh, PartitionSpec())
        longest = max(axes, key=lambda i: a.shape[i])
        return NamedSharding(mesh, PartitionSpec(*(None,) * longest, AXIS))

    return jax.tree.map(of, state)


class Runner(Protocol):
    """A compiled step and where its arguments lie."""

    mesh: Mesh
    flops: float | None
    """Floating-point operations of a step on all devices; None before the first, or not known."""

    def shapes(self, like: TrainState) -> TrainState:
        """Shapes as they are, with the sharding in which a checkpoint is read."""

    def place(self, state: TrainState) -> Any:
        """A state of host or global arrays, as `step` wants it."""

    def whole(self, state: Any) -> TrainState:
        """The inverse of `place`: global arrays, to save or to evaluate."""

    def compile(self, like: TrainState, count: int) -> None:
        """Make the program of `count` steps now, from shapes of a state, unless it is there."""

    def step(
        self, state: Any, batches: Sequence[Any], progress: float | None = None
    ) -> tuple[Any, Metrics]:
        """A step with each of some batches; donates the state.

        Args:
            state: Of `place`.
            batches: This process's rows of each, uint8 [b, P, P, 3].
            progress: Part of the run that is over, where the clock decides (`TrainConfig.minutes`).
        """


def make_runner(cfg: TrainConfig, perceptual: PerceptualWeights) -> Runner:
    """The runner that `cfg.parallel` names.

    Raises:
        ValueError: If the batch cannot be spread over the devices.
    """
    check_batch(cfg)
    kind = PmapRunner if cfg.parallel == "pmap" else JitRunner
    return kind(cfg, perceptual)


class JitRunner:
    """One program over the mesh, cut by XLA's partitioner."""

    def __init__(self, cfg: TrainConfig, perceptual: PerceptualWeights) -> None:
        """Put the perceptual weights on the devices."""
        self.mesh = device_mesh()
        self.flops: float | None = None
        self._cfg = cfg
        self._weights = replicate(perceptual, self.mesh)
        rows = local_rows(cfg.batch_size)
        self._rows = shard_rows(np.arange(rows.start, rows.stop, dtype=np.int32), self.mesh)
        self._programs: dict[int, Any] = {}

    def shapes(self, like: TrainState) -> TrainState:
        """See `Runner`."""
        return _with_shardings(like, state_shardings(like, self.mesh, fsdp=self._cfg.fsdp))

    def place(self, state: TrainState) -> TrainState:
        """See `Runner`."""
        shardings = state_shardings(state, self.mesh, fsdp=self._cfg.fsdp)
        placed: TrainState = jax.tree.map(lambda a, s: _put(a, sharding=s), state, shardings)
        return placed

    def whole(self, state: TrainState) -> TrainState:
        """See `Runner`."""
        return state

    def step(
        self, state: TrainState, batches: Sequence[Any], progress: float | None = None
    ) -> tuple[TrainState, Metrics]:
        """See `Runner`."""
        self.compile(state, len(batches))
        batch = shard_rows(_stack(batches), self.mesh, axis=1)
        at = None if progress is None else replicate(np.float32(progress), self.mesh)
        program = self._programs[len(batches)]
        result: tuple[TrainState, Metrics] = program(state, batch, self._rows, self._weights, at)
        return result

    def compile(self, like: TrainState, count: int) -> None:
        """See `Runner`."""
        if count in self._programs:
            return
        cfg = self._cfg
        shardings = state_shardings(like, self.mesh, fsdp=cfg.fsdp)
        everywhere = NamedSharding(self.mesh, PartitionSpec())
        shape = (count, cfg.batch_size, cfg.crop_size, cfg.crop_size, 3)
        spread = NamedSharding(self.mesh, PartitionSpec(None, AXIS))
        batch = jax.ShapeDtypeStruct(shape, jnp.uint8, sharding=spread)
        at = jax.ShapeDtypeStruct((), jnp.float32, sharding=everywhere) if cfg.minutes else None
        steps = jax.jit(
            make_train_steps(cfg), donate_argnums=0, out_shardings=(shardings, everywhere)
        )
        state = _with_shardings(like, shardings)
        program = steps.lower(state, batch, self._rows, self._weights, at).compile()
        self._programs[count] = program
        # XLA counts what one device does, and loops over steps and parts once.
        parts = self.mesh.devices.size * self._cfg.accumulate
        flops = cost_of(program).get("flops", 0.0) * parts
        self.flops = flops or None


class PmapRunner:
    """One program a device; a state has a copy for each of this process's devices."""

    flops: float | None = None

    def __init__(self, cfg: TrainConfig, perceptual: PerceptualWeights) -> None:
        """Put the perceptual weights on the devices."""
        self.mesh = device_mesh()
        self._devices = jax.local_devices()
        self._weights = self._stack(perceptual)
        rows = local_rows(cfg.batch_size)
        self._rows = self._split(np.arange(rows.start, rows.stop, dtype=np.int32))
        step = make_train_steps(cfg, axis_name=AXIS)
        self._step = jax.pmap(step, axis_name=AXIS, out_axes=(0, None), donate_argnums=0)

    def shapes(self, like: TrainState) -> TrainState:
        """See `Runner`."""
        return _with_shardings(like, state_shardings(like, self.mesh, fsdp=False))

    def place(self, state: TrainState) -> TrainState:
        """See `Runner`."""
        placed: TrainState = self._stack(jax.tree.map(_local, state))
        return placed

    def whole(self, state: TrainState) -> TrainState:
        """See `Runner`."""
        first = jax.tree.map(lambda a: np.asarray(a.addressable_shards[0].data)[0], state)
        result: TrainState = replicate(first, self.mesh)
        return result

    def compile(self, like: TrainState, count: int) -> None:
        """Nothing: `pmap` compiles at the first step."""

    def step(
        self, state: TrainState, batches: Sequence[Any], progress: float | None = None
    ) -> tuple[TrainState, Metrics]:
        """See `Runner`."""
        parts = np.stack([self._split(batch) for batch in batches], axis=1)
        at = None if progress is None else np.full(len(self._devices), progress, np.float32)
        result: tuple[TrainState, Metrics] = self._step(state, parts, self._rows, self._weights, at)
        return result

    def _split(self, rows: Any) -> Any:
        """Rows [b, ...] of this process as [devices, b / devices, ...]."""
        return np.asarray(rows).reshape(len(self._devices), -1, *rows.shape[1:])

    def _stack(self, tree: Any) -> Any:
        """A copy of each array on each device, placed as the step's outputs are.

        One program does it for all. Were they placed otherwise, the second step would be compiled
        again.
        """
        count = len(self._devices)
        copies = jax.tree.map(lambda a: np.broadcast_to(a, (count, *np.shape(a))), tree)
        return jax.pmap(lambda arrays: arrays, axis_name=AXIS)(copies) if copies else copies


def cost_of(program: Any) -> dict[str, float]:
    """What XLA counts of a compiled program, by name; empty where it does not count."""
    cost = program.cost_analysis()
    cost = cost[0] if isinstance(cost, list) else cost
    return dict(cost or {})


def _stack(batches: Sequence[Any]) -> Any:
    """[K, b, P, P, 3]; batches that lie on a device stay there."""
    stack: Any = jnp.stack if isinstance(batches[0], jax.Array) else np.stack
    return stack(batches)


def _with_shardings(like: TrainState, shardings: Any) -> TrainState:
    def shape(a: Any, sharding: NamedSharding) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding)

    shapes: TrainState = jax.tree.map(shape, like, shardings)
    return shapes


def _local(a: Any) -> NDArray[Any]:
    """A fully replicated or host array, on the host."""
    host: NDArray[Any] = np.asarray(a.addressable_shards[0].data if isinstance(a, jax.Array) else a)
    return host


def _put(a: Any, *, sharding: NamedSharding) -> jax.Array:
    """A host array, the same on every process, or a global one, with `sharding`."""
    if isinstance(a, jax.Array) and (jax.process_count() == 1 or not a.is_fully_addressable):
        placed: jax.Array = jax.device_put(a, sharding)
    else:
        host = np.asarray(a)
        placed = jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])
    return placed
