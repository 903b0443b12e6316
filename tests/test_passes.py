"""Forward passes that gather what waits, and work that nobody waits for any more."""

import asyncio
import contextvars
import threading
import time
from collections.abc import Awaitable, Callable, Hashable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from imgray.errors import UserError
from imgray.serving.passes import Passes
from imgray.serving.settings import Batching
from imgray.training.wanted import check_wanted

Item = tuple[str, int]
LONG = 30.0


class Gate:
    """A model that notes its batches, and waits in each until it is let on."""

    def __init__(self, open: bool = False) -> None:
        self.seen: list[list[Item]] = []
        self.open = threading.Event()
        if open:
            self.open.set()

    def __call__(self, items: list[Item]) -> list[int]:
        self.seen.append(items)
        assert self.open.wait(LONG)
        return [10 * number for _, number in items]


def _shared(item: Item) -> tuple[Hashable, int]:
    """Those of a word go together, as many as it has letters."""
    return item[0], len(item[0])


async def _behind_a_pass(
    gate: Gate, items: list[Item], batching: Batching, seconds: float = LONG
) -> list[Any]:
    """What is found for items that arrive while another has its pass."""
    passes: Passes[Item, int] = Passes(gate, _shared, batching)
    first = asyncio.create_task(passes(("first", 0), LONG))
    while not gate.seen:
        await asyncio.sleep(0.001)
    waiting = [asyncio.create_task(passes(item, seconds)) for item in items]
    await asyncio.sleep(2 * min(seconds, 0.01))
    gate.open.set()
    found = await asyncio.gather(*waiting, return_exceptions=True)
    assert await first == 0
    return found


def test_what_waits_goes_together_by_what_is_shared_the_oldest_first() -> None:
    gate = Gate()
    items = [("wide", 1), ("tall", 2), ("wide", 3), ("tall", 4), ("wide", 5)]
    found = asyncio.run(_behind_a_pass(gate, items, Batching()))
    assert found == [10, 20, 30, 40, 50]
    wide, tall = ([item for item in items if item[0] == word] for word in ("wide", "tall"))
    assert gate.seen == [[("first", 0)], wide, tall]


@pytest.mark.parametrize(("size", "passes"), [(16, [4, 2]), (3, [3, 3]), (1, [1] * 6)])
def test_a_batch_is_no_larger_than_the_settings_and_memory_allow(
    size: int, passes: list[int]
) -> None:
    gate = Gate()
    items = [("wide", number) for number in range(6)]
    asyncio.run(_behind_a_pass(gate, items, Batching(size=size)))
    assert [len(batch) for batch in gate.seen[1:]] == passes


def test_a_batch_may_wait_to_be_filled() -> None:
    gate = Gate(open=True)

    async def ask() -> None:
        passes: Passes[Item, int] = Passes(gate, _shared, Batching(wait_ms=100))
        first = asyncio.create_task(passes(("wide", 1), LONG))
        await asyncio.sleep(0.01)
        assert await passes(("wide", 2), LONG) == 20
        assert await first == 10

    asyncio.run(ask())
    assert gate.seen == [[("wide", 1), ("wide", 2)]]


def test_what_nobody_waits_for_has_no_pass() -> None:
    gate = Gate()
    [late] = asyncio.run(_behind_a_pass(gate, [("late", 1)], Batching(), seconds=0.01))
    assert isinstance(late, UserError)
    assert gate.seen == [[("first", 0)]]


def test_a_fault_is_that_of_its_pass_alone() -> None:
    def run(items: list[Item]) -> list[int]:
        if items[0][0] == "bad":
            raise ValueError("a bug")
        return [number for _, number in items]

    async def ask() -> list[Any]:
        passes: Passes[Item, int] = Passes(run, _shared, Batching())
        asked = [passes((word, 1), LONG) for word in ("good", "bad", "good")]
        return await asyncio.gather(*asked, return_exceptions=True)

    one, fault, other = asyncio.run(ask())
    assert (one, other) == (1, 1)
    assert isinstance(fault, ValueError)


def test_what_fails_in_a_batch_fails_alone() -> None:
    def run(items: list[Item]) -> list[int]:
        if ("wide", 2) in items:
            raise ValueError("a bug")
        return [number for _, number in items]

    async def ask() -> list[Any]:
        passes: Passes[Item, int] = Passes(run, _shared, Batching())
        asked = [passes(("wide", number), LONG) for number in (1, 2, 3)]
        return await asyncio.gather(*asked, return_exceptions=True)

    one, fault, other = asyncio.run(ask())
    assert (one, other) == (1, 3)
    assert isinstance(fault, ValueError)


def test_an_answer_too_few_is_a_fault_and_leaves_nobody_waiting() -> None:
    async def ask() -> list[Any]:
        passes: Passes[Item, int] = Passes(lambda items: [], _shared, Batching())
        asked = [passes(("wide", number), LONG) for number in (1, 2)]
        return await asyncio.wait_for(asyncio.gather(*asked, return_exceptions=True), 5)

    assert all(isinstance(one, ValueError) for one in asyncio.run(ask()))


@pytest.mark.parametrize("size", [1, 4])
def test_a_full_batch_waits_for_nothing(size: int) -> None:
    gate = Gate(open=True)

    async def ask() -> None:
        passes: Passes[Item, int] = Passes(gate, _shared, Batching(size=size, wait_ms=1000))
        asked = [asyncio.create_task(passes(("wide", number), LONG)) for number in range(3)]
        await asyncio.sleep(0.01)
        asked.append(asyncio.create_task(passes(("wide", 3), LONG)))
        await asyncio.wait_for(asyncio.gather(*asked), 0.5)

    asyncio.run(ask())
    assert [len(batch) for batch in gate.seen] == [size] * (4 // size)


def test_passes_have_a_thread_of_their_own_and_no_request_s_context() -> None:
    asked_in: contextvars.ContextVar[str] = contextvars.ContextVar("asked_in", default="none")
    busy, found = threading.Event(), []

    def run(items: list[Item]) -> list[int]:
        found.append(asked_in.get())
        return [0 for _ in items]

    async def ask() -> None:
        loop = asyncio.get_running_loop()
        loop.set_default_executor(ThreadPoolExecutor(1))
        decoding = asyncio.create_task(asyncio.to_thread(busy.wait, LONG))
        await asyncio.sleep(0.01)
        asked_in.set("a request")
        passes: Passes[Item, int] = Passes(run, _shared, Batching())
        try:
            await asyncio.wait_for(passes(("wide", 1), LONG), 5)
        finally:
            busy.set()
            await decoding

    asyncio.run(ask())
    assert found == ["none"]


def _cancelled(asked: asyncio.Task[int]) -> Awaitable[Any]:
    asked.cancel()
    return asyncio.gather(asked, return_exceptions=True)


@pytest.mark.parametrize(("seconds", "leave"), [(LONG, _cancelled), (0.05, None)])
def test_long_work_ends_where_its_time_is_over_or_its_client_gone(
    seconds: float, leave: Callable[[asyncio.Task[int]], Awaitable[Any]] | None
) -> None:
    ended = threading.Event()

    def run(items: list[Item]) -> list[int]:
        try:
            while True:
                check_wanted()
                time.sleep(0.002)
        finally:
            ended.set()

    async def ask() -> None:
        passes: Passes[Item, int] = Passes(run, _shared, Batching())
        asked = asyncio.create_task(passes(("long", 1), seconds))
        await asyncio.sleep(0.02)
        assert not ended.is_set()
        if leave:
            await leave(asked)
        assert await asyncio.to_thread(ended.wait, 5)

    asyncio.run(ask())


def test_work_that_is_nobodys_request_goes_on() -> None:
    check_wanted()
