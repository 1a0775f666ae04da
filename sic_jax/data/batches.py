"""Batches of crops, read ahead by Grain or cut on the device.

A batch depends on nothing but the seed and the step: not on the number of hosts, worker processes
or threads, nor on where a run was interrupted. The step is the whole position in the data, so an
exact resume needs no state of the iterator, and any host can make any row of any batch.
"""

import logging
import os
from collections.abc import Generator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sic_jax.data.crops import CropSampler, DataConfig, cut
from sic_jax.data.memory import MemorySource, device_batch
from sic_jax.data.source import Source, read

Stream = Generator[Any, None, None]
_log = logging.getLogger(__name__)
_NUM_STEPS = 1 << 40
"""More than a run has: the length that Grain wants to know."""
_MAX_WARNINGS = 20


def batches(
    source: Source,
    *,
    crop_size: int,
    batch_size: int,
    seed: int,
    data: DataConfig,
    first_step: int,
    rows: slice,
) -> Stream:
    """Rows of the global batches of the steps from `first_step` on, without end.

    An image that cannot be read is replaced by another one, which the seed and its place in the run
    determine; it is reported once, and counted when the iterator is closed.

    Args:
        source: Images; those with a side below `crop_size` count as unreadable.
        crop_size: Side P of the crops in pixels.
        batch_size: Rows of a global batch.
        seed: Of the order of images and of the crops.
        data: How crops are made.
        first_step: Step of the first batch.
        rows: The rows of a global batch that this process makes.

    Returns:
        An iterator with `close()` of uint8 [rows, P, P, 3]: NumPy arrays, or arrays on the default
        device if the source lies there.

    Raises:
        ValueError: If the source is empty, the rows are not some of the batch's, or Grain is needed
            and not installed.
    """
    selected = range(batch_size)[rows]
    in_order = selected.step == 1 and rows.step in (None, 1)
    if not in_order or not selected or (rows.stop or batch_size) > batch_size:
        raise ValueError(f"rows must be some of the batch's {batch_size}, got {rows}")
    if not len(source):
        raise ValueError("the data source holds no image")
    sampler = CropSampler(len(source), crop_size, seed, data)
    if isinstance(source, MemorySource):
        return _cut_on_device(source, sampler, batch_size, selected, first_step)
    return _read_ahead(_MakeRows(source, sampler, batch_size, selected, first_step))


@dataclass(frozen=True)
class _MakeRows:
    """This process's rows of the n-th batch from `first_step`, and the images left out."""

    source: Source
    sampler: CropSampler
    batch_size: int
    rows: range
    first_step: int

    def __call__(self, n: int) -> tuple[NDArray[np.uint8], list[tuple[int, str]]]:
        size = self.sampler.crop_size
        out = np.empty((len(self.rows), size, size, 3), np.uint8)
        unreadable: list[tuple[int, str]] = []
        for k, row in enumerate(self.rows):
            position = (self.first_step + n) * self.batch_size + row
            read_image = partial(read, self.source, size=size)
            _, image, missed = self.sampler.first_usable(position, read_image)
            unreadable += missed
            out[k] = cut(image, self.sampler.crop(position, *image.shape[:2]), size)
        return out, unreadable


def _read_ahead(make_rows: _MakeRows) -> Stream:
    try:
        from absl import flags
        from grain import python as grain
    except ImportError as e:
        raise ValueError(
            f"reading images while training needs Grain ({e}): install sic_jax[train], or keep "
            "them in memory with memory:FOLDER"
        ) from e
    data = make_rows.sampler.data
    if data.workers and not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()  # Grain's worker processes read absl's flags.
    num_threads = 1 if data.workers else min(data.prefetch, os.cpu_count() or 1)
    dataset = grain.MapDataset.range(_NUM_STEPS).map(make_rows)
    steps = dataset.to_iter_dataset(
        grain.ReadOptions(
            num_threads=num_threads, prefetch_buffer_size=1 if data.workers else data.prefetch
        )
    )
    if data.workers:
        # Batches are dealt to the workers in turn, so their order is that of one process.
        steps = steps.mp_prefetch(
            grain.MultiprocessingOptions(
                num_workers=data.workers, per_worker_buffer_size=data.prefetch
            )
        )
    return _reported(iter(steps), copy=data.workers > 0)


def _reported(steps: Any, *, copy: bool) -> Stream:
    """The batches, with a warning for each image that could not be read."""
    seen: set[int] = set()
    try:
        for batch, unreadable in steps:
            for index, message in unreadable:
                if index not in seen:
                    seen.add(index)
                    if len(seen) <= _MAX_WARNINGS:
                        _log.warning("replaced an image that cannot be used: %s", message)
                    if len(seen) == _MAX_WARNINGS:
                        _log.warning("further ones are only counted")
            # A copy, as workers hand over shared memory, which may not outlive them.
            yield np.array(batch) if copy else batch
    finally:
        if seen:
            _log.warning("%d images could not be used and were replaced", len(seen))
        if hasattr(steps, "close"):  # Earlier than Grain 0.2.12, deleting it has to do.
            steps.close()


def _cut_on_device(
    source: MemorySource, sampler: CropSampler, batch_size: int, rows: range, first_step: int
) -> Stream:
    step = first_step
    while True:
        yield device_batch(source, sampler, [step * batch_size + row for row in rows])
        step += 1
