"""Forward passes of a model: what arrives while one runs is gathered for the next."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from imgray.errors import UserError
from imgray.serving.metrics import metrics
from imgray.serving.settings import Batching
from imgray.training.wanted import while_wanted

Item = TypeVar("Item")
Found = TypeVar("Found")


@dataclass(frozen=True)
class _Waiting(Generic[Item]):
    item: Item
    until: float
    """The moment, of `time.monotonic`, after which nobody waits for it."""
    answer: asyncio.Future[Any]

    @property
    def wanted(self) -> bool:
        return not self.answer.done() and time.monotonic() < self.until


class Passes(Generic[Item, Found]):
    """Runs items in batches, one after the other, in a thread.

    `serve.batch` makes batches of what arrives at one moment, before it is their turn; here a batch
    is made when its turn comes, of those alike that wait by then, the oldest first.

    Args:
        run: gives what it finds for each item; work that takes long asks `check_wanted`.
        shared: what items that may share a batch have in common, and how many may.
        batching: how many at most whatever they are, and how long a batch waits to be filled.
    """

    def __init__(
        self,
        run: Callable[[list[Item]], Sequence[Found]],
        shared: Callable[[Item], tuple[Hashable, int]],
        batching: Batching,
    ) -> None:
        self.run, self.shared, self.batching = run, shared, batching
        self.waiting: deque[_Waiting[Item]] = deque()
        self.working: asyncio.Task[None] | None = None

    async def __call__(self, item: Item, seconds: float) -> Found:
        """What is found for an item, which is left out where its turn comes after `seconds`."""
        answer: asyncio.Future[Found] = asyncio.get_running_loop().create_future()
        self.waiting.append(_Waiting(item, time.monotonic() + seconds, answer))
        if self.working is None:
            self.working = asyncio.create_task(self._work())
        return await answer

    async def _work(self) -> None:
        try:
            while self.waiting:
                if self.batching.wait_ms:
                    await asyncio.sleep(self.batching.wait_ms / 1000)
                if batch := self._next():
                    await self._answer(batch)
        finally:
            self.working = None

    def _next(self) -> list[_Waiting[Item]]:
        """Those that go together now; of those that nobody waits for any more none."""
        batch: list[_Waiting[Item]] = []
        left: deque[_Waiting[Item]] = deque()
        for one in self.waiting:
            if not one.wanted:
                _fail(one, UserError("its turn did not come in time"))
            elif not batch or self._fits(one, batch):
                batch.append(one)
            else:
                left.append(one)
        self.waiting = left
        return batch

    def _fits(self, one: _Waiting[Item], batch: Sequence[_Waiting[Item]]) -> bool:
        key, most = self.shared(batch[0].item)
        return len(batch) < min(most, self.batching.size) and self.shared(one.item)[0] == key

    async def _answer(self, batch: Sequence[_Waiting[Item]]) -> None:
        metrics().batch_size.observe(len(batch))
        try:
            with while_wanted(lambda: any(one.wanted for one in batch)):
                found = await asyncio.to_thread(self.run, [one.item for one in batch])
        except Exception as fault:
            for one in batch:
                _fail(one, fault)
        else:
            for one, value in zip(batch, found, strict=True):
                if not one.answer.done():
                    one.answer.set_result(value)


def _fail(one: _Waiting[Any], fault: Exception) -> None:
    if not one.answer.done():
        one.answer.set_exception(fault)
