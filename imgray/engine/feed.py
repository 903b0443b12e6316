"""Batches for the training loop, loaded ahead by Ray Data."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import ray

from imgray.training.loop import Loader
from imgray.training.task import Arrays

BLOCK = 8
"""Batches that a feeder loads in a row: with more of them, several feeders wait for each other."""
MOST_BLOCKS = 1000
"""Of a Ray Data set. All are made before the first batch comes, at a millisecond each."""


class Feed:
    """`Batches` by Ray Data: processes anywhere on the cluster load ahead of each worker.

    They hold no CPU: where workers hold all that there are, as on a cluster that has shrunk, a
    process that waits for one waits for ever.
    """

    def __init__(self, feeders: int) -> None:
        self.feeders = feeders

    def __call__(self, load: Loader, numbers: range) -> Iterator[Arrays]:
        piece = BLOCK * MOST_BLOCKS
        for start in range(0, len(numbers), piece):
            yield from self._piece(load, numbers[start : start + piece])

    def _piece(self, load: Loader, numbers: range) -> Iterator[Arrays]:
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        context.execution_options.preserve_order = True
        blocks = max(1, len(numbers) // BLOCK)
        loaded = ray.data.from_items(list(numbers), override_num_blocks=blocks).map_batches(
            Feeder,
            fn_constructor_kwargs={"load": load},
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(size=self.feeders),
            num_cpus=0,
        )
        for batch in loaded.iter_batches(batch_size=1, prefetch_batches=2):
            yield {name: array[0] for name, array in batch.items()}


class Feeder:
    """A Ray Data actor that loads batches by number."""

    def __init__(self, load: Loader) -> None:
        self.load = load

    def __call__(self, batch: dict[str, np.ndarray]) -> Arrays:
        arrays = self.load(int(batch["item"][0]))
        return {name: array[None] for name, array in arrays.items()}
