"""Translation served: what HTTP adds to the bare model, the rate of 16 clients, and refusals.

    python tests/benchmarks/bench_translate.py --model URI [--side 64] [--high-throughput]

The client runs on the same machine. `bare` decodes, translates and encodes one picture after the
other in this process; `bare, batches` translates 16 decoded ones a pass, which no service on the
same cores can exceed. Then 64 clients send large pictures at once, to a service whose requests have
a few seconds: 503 is what it foresees, 504 what it does not.

Cost at ten times the pixels: ten times that of the model; what HTTP adds, but for the bytes, stays.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import os
import time
from collections import defaultdict

import common
from load import HEAD, PORT, Ask, hammer, high_throughput, line, post

OPTIONS = argparse.ArgumentParser(description=__doc__)
OPTIONS.add_argument("--model", required=True, help="URI of a translator's model artifact")
OPTIONS.add_argument("--side", type=int, default=64, help="pixels of a side of the pictures")
OPTIONS.add_argument("--large", type=int, default=768, help="as --side, of those that press")
OPTIONS.add_argument("--high-throughput", action="store_true", help="Serve's own mode, by HAProxy")
OPTIONS.add_argument("--seconds", type=float, default=10.0, help="of each measurement")
GIVEN = OPTIONS.parse_args()
if GIVEN.high_throughput:
    high_throughput()

import aiohttp  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
from PIL import Image  # noqa: E402
from ray import serve  # noqa: E402

from imgray.engine.cluster import cluster, quiet  # noqa: E402
from imgray.serving.app import build  # noqa: E402
from imgray.serving.predictor import answer_of  # noqa: E402
from imgray.serving.requests import PNG  # noqa: E402
from imgray.serving.settings import Limits, ServiceSettings  # noqa: E402
from imgray.training.models import load_model  # noqa: E402

BATCH = 16
PRESSING = 64
ACCEPT = {"Accept": PNG}


def deploy(**limits: float) -> None:
    """Serve the model, without a log line per request, which would cost."""
    settings = ServiceSettings(open=True, models={"m": GIVEN.model}, limits=Limits(**limits))
    serve.run(build(settings), name="imgray", logging_config={"enable_access_log": False})


def picture(side: int, kind: str = "PNG") -> bytes:
    """Smooth noise."""
    values = np.random.default_rng(0).integers(0, 256, (side // 8, side // 8, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(values).resize((side, side), Image.Resampling.BICUBIC).save(buffer, kind)
    return buffer.getvalue()


def bare(image: bytes) -> list[list[str]]:
    """The same work in this process, and the model alone in batches."""
    model = load_model(GIVEN.model)
    items = [model.prepare({"image": image})] * BATCH

    def whole() -> None:
        [found] = model.predict([model.prepare({"image": image})], "cpu")
        answer_of(model.task, found, PNG)

    rows = []
    works = (("bare", whole, 1), ("bare, batches", lambda: model.predict(items, "cpu"), BATCH))
    for name, work, count in works:
        work()
        times, end = [], time.perf_counter() + GIVEN.seconds
        while time.perf_counter() < end:
            began = time.perf_counter()
            work()
            times += [(time.perf_counter() - began) / count] * count
        rows.append(line(name, count, times, GIVEN.seconds))
    return rows


async def rates(session: aiohttp.ClientSession) -> None:
    """Bare and over HTTP, of one client and of as many as a batch holds."""
    image = picture(GIVEN.side)
    rows = bare(image)
    ask = post(session, "translate", image, ACCEPT)
    for connections in (1, BATCH):
        await hammer(ask, connections, 1.0)
        times, statuses = await hammer(ask, connections, GIVEN.seconds)
        name = "HTTP" if set(statuses) == {200} else f"HTTP {dict(statuses)}"
        rows.append(line(name, connections, times, GIVEN.seconds))
    common.table(HEAD, rows)


async def pressure(session: aiohttp.ClientSession) -> None:
    """Large pictures at once, and one that no request could have done."""
    large, huge = picture(GIVEN.large), picture(4096, "JPEG")
    model = load_model(GIVEN.model)
    began = time.perf_counter()
    model.predict([model.prepare({"image": large})], "cpu")
    alone = time.perf_counter() - began
    deploy(seconds=10 * alone)
    taken: dict[int, list[float]] = defaultdict(list)

    async def one(ask: Ask) -> None:
        began = time.perf_counter()
        status = await ask()
        taken[status].append(time.perf_counter() - began)

    ask = post(session, "translate", large, ACCEPT)
    await asyncio.gather(*(one(ask) for _ in range(PRESSING)))
    rows = [
        [str(status), str(len(times)), *(f"{np.percentile(times, p):.2f}" for p in (50, 100))]
        for status, times in sorted(taken.items())
    ]
    print(f"{GIVEN.large} pixels a side: {alone:.2f} s alone, {10 * alone:.1f} s a request has")
    common.table(["status", "of 64 at once", "p50 s", "longest s"], rows)
    deploy(seconds=alone / 10)
    times, statuses = await hammer(post(session, "translate", huge, ACCEPT), 1, GIVEN.seconds)
    p50, p99 = 1000 * np.percentile(times, [50, 99])
    print(f"what cannot be done in time: {dict(statuses)}, p50 {p50:.1f} ms, p99 {p99:.1f} ms")


async def main() -> None:
    print(f"load {os.getloadavg()[0]:.1f}, high throughput: {GIVEN.high_throughput}")
    with cluster():
        serve.start(http_options={"host": "127.0.0.1", "port": PORT})
        deploy()
        timeout = aiohttp.ClientTimeout(total=120)
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(timeout=timeout, connector=connector) as session:
            await rates(session)
            await pressure(session)
        with quiet():
            serve.shutdown()


if __name__ == "__main__":
    torch.set_num_threads(1)
    asyncio.run(main())
