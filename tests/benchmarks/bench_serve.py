"""The service under load: latency and rate by layer, refusals, a burst, replicas killed, a soak.

    python tests/benchmarks/bench_serve.py layers|refusals|burst|kills|soak
        --index URI --classify URI [--high-throughput] [--seconds S] [--replicas N]

The client runs on the same machine. `layers` puts side by side, in one run, a plain process that
calls the networks and the index, the calls of deployments by handle, and HTTP; `classify` also with
batching off, and `healthz`, which is Serve's own share. Every figure is of one picture per request.

Cost at ten times the images of the index: the same, but for the search itself (bench_search.py).
"""

from __future__ import annotations

import argparse
import asyncio
import time
from collections import Counter
from typing import Any

import common
from load import HEAD, PORT, URL, Ask, hammer, high_throughput, line, post

OPTIONS = argparse.ArgumentParser(description=__doc__)
OPTIONS.add_argument("what", choices=("layers", "refusals", "burst", "kills", "soak"))
OPTIONS.add_argument("--index", required=True, help="URI of an index artifact")
OPTIONS.add_argument("--classify", required=True, help="URI of a classifier's model artifact")
OPTIONS.add_argument("--high-throughput", action="store_true", help="Serve's own mode, by HAProxy")
OPTIONS.add_argument("--seconds", type=float, default=10.0, help="of each measurement")
OPTIONS.add_argument("--replicas", type=int, default=1, help="of every part")
GIVEN = OPTIONS.parse_args()
if GIVEN.high_throughput:  # read by Serve when it is imported
    high_throughput()

import aiohttp  # noqa: E402
import numpy as np  # noqa: E402
import psutil  # noqa: E402
import torch  # noqa: E402
from ray import serve  # noqa: E402

from imgray.artifacts.folder import Folder  # noqa: E402
from imgray.engine.cluster import cluster, quiet  # noqa: E402
from imgray.engine.search import SearchEngine  # noqa: E402
from imgray.serving.app import build  # noqa: E402
from imgray.serving.settings import Batching, Limits, ServiceSettings  # noqa: E402
from imgray.training.models import load_model  # noqa: E402

CONNECTIONS = (1, 8, 32)


def settings(**changes: Any) -> ServiceSettings:
    """What is served: open, on this machine alone."""
    models = {"classify": GIVEN.classify}
    return ServiceSettings(
        open=True,
        index=GIVEN.index,
        models=models,
        shard_groups=2,
        replicas=GIVEN.replicas,
        **changes,
    )


def deploy(given: ServiceSettings) -> None:
    """Serve, without a log line per request, which would cost."""
    serve.run(build(given), name="imgray", logging_config={"enable_access_log": False})


def picture() -> bytes:
    """An image of the indexed collection."""
    engine = SearchEngine(GIVEN.index)
    folder = Folder(engine.manifest.about["images"])
    return folder.read(engine.index.ids_of(np.array([0]))[0])


def bare(image: bytes, seconds: float) -> list[list[str]]:
    """The same work in this process, one request after the other."""
    engine, model = SearchEngine(GIVEN.index), load_model(GIVEN.classify)

    def classify() -> None:
        arrays = {n: torch.tensor(v)[None] for n, v in model.task.prepare({"image": image}).items()}
        with torch.inference_mode():
            model.learner.predict(arrays)

    rows = []
    for name, work in (
        ("bare search", lambda: engine.search_images({"query": image}, 10)),
        ("bare classify", classify),
    ):
        work()
        times, end = [], time.perf_counter() + seconds
        while time.perf_counter() < end:
            began = time.perf_counter()
            work()
            times.append(time.perf_counter() - began)
        rows.append(line(name, 1, times, seconds))
    return rows


async def layers(image: bytes, session: aiohttp.ClientSession) -> None:
    """Bare calls, handle calls, HTTP; batching on and off."""
    rows = bare(image, GIVEN.seconds)
    model = serve.get_deployment_handle("model-classify", "imgray")

    async def by_handle() -> int:
        await model.predict.remote({"image": image}, None)
        return 200

    async def health() -> int:
        async with session.get(f"{URL}/healthz") as answer:
            await answer.read()
            return answer.status

    kinds = {"handle classify": by_handle, "HTTP healthz": health}
    kinds |= {f"HTTP {path}": post(session, path, image) for path in ("classify", "search")}
    for name, ask in kinds.items():
        for connections in CONNECTIONS:
            rows.append(await measured(name, ask, connections))
    deploy(settings(batching=Batching(size=1)))
    ask = post(session, "classify", image)
    for connections in CONNECTIONS:
        rows.append(await measured("HTTP classify, no batches", ask, connections))
    common.table(HEAD, rows)


async def measured(name: str, ask: Ask, connections: int) -> list[str]:
    """A row of the table, after some requests that do not count."""
    await hammer(ask, connections, 1.0)
    times, statuses = await hammer(ask, connections, GIVEN.seconds)
    if set(statuses) != {200}:
        name += f" {dict(statuses)}"
    return line(name, connections, times, GIVEN.seconds)


async def refusals(image: bytes, session: aiohttp.ClientSession) -> None:
    """Milliseconds until what cannot be right is refused, one request after the other."""
    bad: dict[str, tuple[str, bytes, dict[str, str]]] = {
        "nothing": ("search", b"", {}),
        "no picture": ("search", b"no picture", {}),
        "half a picture's header": ("search", image[:30], {}),
        "21 MB": ("search", bytes(21 * 2**20), {}),
        "bad JSON": ("search", b"{", {"Content-Type": "application/json"}),
        "top of 10**9": ("search?top=1000000000", image, {}),
        "NaN weights": ('search?weights={"a":NaN}', image, {}),
        "an unknown field": ("classify?tops=1", image, {}),
        "an unknown model": ("classify?model=x", image, {}),
        "no such route": ("nothing", image, {}),
    }
    rows = []
    for name, (path, data, headers) in bad.items():
        times, statuses = await hammer(post(session, path, data, headers), 1, GIVEN.seconds)
        p50, p99 = 1000 * np.percentile(times, [50, 99])
        rows.append([name, str(dict(statuses)), f"{p50:.1f}", f"{p99:.1f}"])
    common.table(["what is sent", "statuses", "p50 ms", "p99 ms"], rows)


async def burst(image: bytes, session: aiohttp.ClientSession) -> None:
    """200 requests at once where 16 are admitted; then how soon an idle answer is as before."""
    deploy(settings(limits=Limits(pending=16)))
    ask = post(session, "search", image)
    idle = np.median((await hammer(ask, 1, 5))[0])
    accepted: list[float] = []

    async def one() -> int:
        began = time.perf_counter()
        status = await ask()
        if status == 200:
            accepted.append(time.perf_counter() - began)
        return status

    statuses = Counter(await asyncio.gather(*(one() for _ in range(200))))
    ended = time.perf_counter()
    while (await hammer(ask, 1, 0.001))[0][0] > 1.5 * idle:
        pass
    back = time.perf_counter() - ended
    p99 = 1000 * np.percentile(accepted, 99)
    common.table(
        ["statuses", "p99 of accepted, ms", "idle, ms", "back to idle after, s"],
        [[str(dict(statuses)), f"{p99:.0f}", f"{1000 * idle:.0f}", f"{back:.2f}"]],
    )


def replicas() -> dict[str, psutil.Process]:
    """Processes of the replicas by deployment."""
    found = {}
    for process in psutil.Process().children(recursive=True):
        title = " ".join(process.cmdline())
        if "ServeReplica" in title:
            found[title.split(":")[-1].partition(".")[0].strip()] = process
    return found


async def kills(image: bytes, session: aiohttp.ClientSession) -> None:
    """10 requests a second; each kind of replica killed once; client retries none or one."""
    paths = {"model-classify": "classify"}
    rows = []
    for name in ("service", "registry", "encoder", "shards-0", "model-classify"):
        ask = post(session, paths.get(name, "search"), image)
        answers: list[tuple[float, int, int]] = []

        async def one(ask: Ask = ask, answers: list[Any] = answers) -> None:
            began = time.perf_counter()
            first = await ask()
            second = first if first == 200 else await ask()
            answers.append((began, first, second))

        asking = []
        began = time.perf_counter()
        killed = 0.0
        for number in range(int(10 * GIVEN.seconds)):
            asking.append(asyncio.create_task(one()))
            if number == 50:
                victim = replicas()[name]
                victim.kill()
                killed = time.perf_counter()
            await asyncio.sleep(max(0.0, began + (number + 1) / 10 - time.perf_counter()))
        await asyncio.gather(*asking)
        bad = [at for at, first, _ in answers if first != 200]
        twice = sum(second != 200 for _, _, second in answers)
        healed = max(bad) - killed if bad else 0.0
        share = [f"{100 * n / len(answers):.2f} %" for n in (len(bad), twice)]
        rows.append([name, str(len(answers)), *share, f"{healed:.1f}"])
        print(rows[-1], flush=True)
        await recovered()
        assert not victim.is_running()
    head = ["killed", "requests", "failed", "failed, one retry", "last failure after, s"]
    common.table(head, rows)


def parts() -> list[Any]:
    """What Serve says of each deployment."""
    return list(serve.status().applications["imgray"].deployments.values())


async def recovered() -> None:
    """Wait until every replica runs again."""
    while any(part.status != "HEALTHY" for part in parts()):
        await asyncio.sleep(1)


async def soak(image: bytes, session: aiohttp.ClientSession) -> None:
    """Half the rate that saturates: memory and file descriptors of every process over time."""
    ask = post(session, "search", image)
    await hammer(ask, 32, 30)  # batches of every size, each of which has its own buffers
    rate = len((await hammer(ask, 8, 10))[0]) / 10 / 2
    processes = [psutil.Process(), *psutil.Process().children(recursive=True)]
    samples: dict[int, list[tuple[float, float, int]]] = {p.pid: [] for p in processes}
    began, asking, number = time.perf_counter(), set(), 0
    statuses: Counter[int] = Counter()
    while time.perf_counter() - began < GIVEN.seconds:
        task = asyncio.create_task(ask())
        asking.add(task)
        task.add_done_callback(asking.discard)
        task.add_done_callback(lambda done: statuses.update([done.result()]))
        number += 1
        if number % max(1, int(10 * rate)) == 0:
            for process in processes:
                use = process.memory_full_info().uss / 2**20
                now = time.perf_counter() - began
                samples[process.pid].append((now, use, process.num_fds()))
        await asyncio.sleep(max(0.0, began + number / rate - time.perf_counter()))
    await asyncio.gather(*asking)
    rows = []
    for process in processes:
        at, use, files = np.array(samples[process.pid]).T
        late = at > at[-1] / 2
        slopes = [np.polyfit(at[some], use[some], 1)[0] * 60 for some in (at > 0, late)]
        title = " ".join(process.cmdline())[:50]
        rows.append([title, f"{use[0]:.0f}", f"{use[-1]:.0f}", *(f"{s:.2f}" for s in slopes)])
        rows[-1] += [f"{files[0]:.0f}", f"{files[-1]:.0f}"]
    print(f"{rate:.1f} requests/s, statuses {dict(statuses)}")
    common.table(
        ["process", "MiB", "at the end", "MiB/minute", "second half", "files", "at the end"], rows
    )


async def main() -> None:
    image = picture()
    with cluster():
        serve.start(http_options={"host": "127.0.0.1", "port": PORT})
        deploy(settings())
        timeout = aiohttp.ClientTimeout(total=60)
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(timeout=timeout, connector=connector) as session:
            work = (layers, refusals, burst, kills, soak)
            await next(one for one in work if one.__name__ == GIVEN.what)(image, session)
        with quiet():
            serve.shutdown()


if __name__ == "__main__":
    torch.set_num_threads(1)
    asyncio.run(main())
