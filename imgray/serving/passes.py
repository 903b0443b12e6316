"""Forward passes of a model: what arrives while one runs is gathered for the next."""

from __future__ import annotations

import asyncio
import contextvars
import time
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
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
    key: Hashable
    """What those of its batch have in common."""
    most: int
    """How many they may be."""
    came: float = field(default_factory=time.monotonic)

    @property
    def wanted(self) -> bool:
        return not self.answer.done() and time.monotonic() < self.until


class Passes(Generic[Item, Found]):
    """Runs items in batches, one after the other, in a thread of its own.

    `serve.batch` makes batches of what arrives at one moment, before it is their turn; here a batch
    is made when its turn comes, of those alike that wait by then, the oldest first. Where a batch
    fails, its items run one by one, so that each has its own outcome.

    Args:
        run: gives what it finds for each item; work that takes long asks `check_wanted`.
        shared: what items that may share a batch have in common, and how many may.
        batching: how many at most whatever they are, and how long the oldest of a batch waits for
            it to be filled.
    """

    def __init__(
        self,
        run: Callable[[list[Item]], Sequence[Found]],
        shared: Callable[[Item], tuple[Hashable, int]],
        batching: Batching,
    ) -> None:
        self.run, self.shared, self.batching = run, shared, batching
        self.waiting: deque[_Waiting[Item]] = deque()
        self.arrived = asyncio.Event()
        self.working: asyncio.Task[None] | None = None
        self.thread = ThreadPoolExecutor(1, "passes")

    async def __call__(self, item: Item, seconds: float) -> Found:
        """What is found for an item, which is left out where its turn comes after `seconds`."""
        answer: asyncio.Future[Found] = asyncio.get_running_loop().create_future()
        key, most = self.shared(item)
        most = min(most, self.batching.size)
        self.waiting.append(_Waiting(item, time.monotonic() + seconds, answer, key, most))
        self.arrived.set()
        if self.working is None:  # in the context of no request: it works for all of them
            self.working = asyncio.create_task(self._work(), context=contextvars.Context())
        return await answer

    async def _work(self) -> None:
        try:
            while self.waiting:
                await self._filled()
                if batch := self._next():
                    await self._answer(batch)
        finally:
            self.working = None

    async def _filled(self) -> None:
        """Wait until there are enough for a batch, or the oldest has waited long enough."""
        while (left := self._left()) > 0:
            self.arrived.clear()
            with suppress(TimeoutError):
                await asyncio.wait_for(self.arrived.wait(), left)

    def _left(self) -> float:
        """Seconds that the oldest may yet wait for others; 0 where its batch is full."""
        oldest = self.waiting[0]
        left = oldest.came + self.batching.wait_ms / 1000 - time.monotonic()
        if left <= 0:
            return 0.0
        alike = sum(one.key == oldest.key for one in self.waiting)
        return left if alike < oldest.most else 0.0

    def _next(self) -> list[_Waiting[Item]]:
        """Those that go together now; of those that nobody waits for any more none."""
        batch: list[_Waiting[Item]] = []
        left: deque[_Waiting[Item]] = deque()
        for one in self.waiting:
            if not one.wanted:
                _fail(one, UserError("its turn did not come in time"))
            elif not batch or (one.key == batch[0].key and len(batch) < batch[0].most):
                batch.append(one)
            else:
                left.append(one)
        self.waiting = left
        return batch

    async def _answer(self, batch: Sequence[_Waiting[Item]]) -> None:
        metrics().batch_size.observe(len(batch))
        try:
            with while_wanted(lambda: any(one.wanted for one in batch)):
                found = await self._run([one.item for one in batch])
            answers = list(zip(batch, found, strict=True))
        except Exception as fault:
            if len(batch) > 1 and not isinstance(fault, UserError):
                for one in batch:
                    await self._answer([one])
            for one in batch:
                _fail(one, fault)
        else:
            for one, value in answers:
                if not one.answer.done():
                    one.answer.set_result(value)

    async def _run(self, items: list[Item]) -> Sequence[Found]:
        """In the thread; asyncio's own are for decoding, and would be waited for there."""
        work = contextvars.copy_context().run
        return await asyncio.get_running_loop().run_in_executor(self.thread, work, self.run, items)


def _fail(one: _Waiting[Any], fault: Exception) -> None:
    if not one.answer.done():
        one.answer.set_exception(fault)
