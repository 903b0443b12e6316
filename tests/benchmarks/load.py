"""What the benchmarks of the service share: many requests over HTTP, and the rows about them."""

from __future__ import annotations

import asyncio
import os
import time
from collections import Counter
from collections.abc import Awaitable, Callable

import aiohttp
import numpy as np

PORT = 8765
URL = f"http://127.0.0.1:{PORT}"
Ask = Callable[[], Awaitable[int]]


def high_throughput() -> None:
    """Switch Serve's high-throughput mode on, before Serve is imported."""
    os.environ |= {"RAY_SERVE_ENABLE_HA_PROXY": "1", "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1"}


async def hammer(ask: Ask, connections: int, seconds: float) -> tuple[list[float], Counter[int]]:
    """Ask again and again over several connections: seconds of each answer, and the statuses."""
    times: list[float] = []
    statuses: Counter[int] = Counter()
    end = time.perf_counter() + seconds

    async def one() -> None:
        while time.perf_counter() < end:
            began = time.perf_counter()
            statuses[await ask()] += 1
            times.append(time.perf_counter() - began)

    await asyncio.gather(*(one() for _ in range(connections)))
    return times, statuses


def line(name: str, connections: int, times: list[float], seconds: float) -> list[str]:
    """A row of the table: percentiles in milliseconds, and requests per second."""
    p50, p95, p99 = 1000 * np.percentile(times, [50, 95, 99])
    rate = len(times) / seconds
    return [name, str(connections), *(f"{value:.1f}" for value in (p50, p95, p99, rate))]


HEAD = ["", "connections", "p50 ms", "p95 ms", "p99 ms", "requests/s"]


def post(
    session: aiohttp.ClientSession, path: str, image: bytes, headers: dict[str, str] | None = None
) -> Ask:
    """A request over HTTP: its status, or 0 for no answer."""

    async def ask() -> int:
        try:
            async with session.post(f"{URL}/v1/{path}", data=image, headers=headers) as answer:
                await answer.read()
                return answer.status
        except (aiohttp.ClientError, TimeoutError):
            return 0

    return ask
