"""Extraction of two networks: images/s of `jobs/extract.py` and of a plain torch loop.

The loop is two processes that each decode and run half of the images, without Ray, shards, digests
or retries. Both give the same vectors, which is checked. The images are cut in two halves; the
first is done by imgray and then by the loop, the second the other way round. Start-up (imports,
Ray, weights) is stated apart from the steady rate. On a machine with other work the CPU time per
image, Ray's own processes included, is the steadier figure.

Cost at ten times the images: ten times the steady seconds, the same start-up.
"""

import io
import multiprocessing
import time
from pathlib import Path
from typing import NamedTuple

import common
import numpy as np
import pyarrow.parquet as pq
import torch
from PIL import Image

from imgray.features.weights import load, parse_extractors

SHARD, BATCH, PROCESSES = 64, 8, 2


class Rate(NamedTuple):
    """Of one run: images/s and CPU milliseconds per image when steady, seconds of start-up."""

    images: float
    cpu: float
    start: float


def imgray(images: Path, output: Path, nets: tuple[str, ...]) -> Rate:
    """Steady from the second shard's end to the last's."""
    began = time.time()
    with common.CpuMeter() as meter:
        common.run(
            "extract", "--images", images, "--output", output, "--extractor", *nets,
            "--shard-size", SHARD, "--batch-size", BATCH, "--workers", PROCESSES,
        )  # fmt: skip
    wall = time.time() - began
    found = common.steady(output, PROCESSES)
    cpu = 1000 * meter.between(found.began, found.ended) / found.rows
    return Rate(found.rate, cpu, wall - found.total / found.rate)


def plain(images: Path, output: Path) -> Rate:
    """Steady from the moment both processes have their networks."""
    began = time.time()
    paths = sorted(images.iterdir())
    context = multiprocessing.get_context("spawn")
    ready = context.Barrier(PROCESSES)
    output.mkdir(exist_ok=True)
    sharing = context.Pool(PROCESSES, initializer=_share, initargs=(ready,))
    with common.CpuMeter() as meter, sharing as pool:
        jobs = [(paths[n::PROCESSES], output / f"{n}.npz") for n in range(PROCESSES)]
        spans = pool.starmap(_loop, jobs, chunksize=1)
    wall = time.time() - began
    first, last = min(start for start, _ in spans), max(end for _, end in spans)
    cpu = 1000 * meter.between(first, last) / len(paths)
    return Rate(len(paths) / (last - first), cpu, wall - (last - first))


def _share(barrier: object) -> None:
    global READY
    READY = barrier  # type: ignore[name-defined]


@torch.inference_mode()
def _loop(paths: list[Path], output: Path) -> tuple[float, float]:
    torch.set_num_threads(1)
    loaded = [load(request) for request in parse_extractors(common.NETS)]
    nets = [(b.config, _features(b.net.to(memory_format=torch.channels_last))) for b in loaded]
    READY.wait()  # type: ignore[name-defined]
    began, found = time.time(), []
    for first in range(0, len(paths), BATCH):
        pixels = [
            _decode(path.read_bytes(), nets[0][0].size) for path in paths[first : first + BATCH]
        ]
        batch = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).float() / 255
        row = []
        for config, net in nets:
            mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (config.mean, config.std))
            maps = net(((batch - mean) / std).contiguous(memory_format=torch.channels_last))
            row.append(torch.nn.functional.normalize(maps.mean((2, 3))).half().numpy())
        found.append(np.concatenate(row, axis=1))
    np.savez(output, names=[path.name for path in paths], vectors=np.concatenate(found))
    return began, time.time()


def _features(net: torch.nn.Module) -> object:
    return net.forward_features if hasattr(net, "forward_features") else net.features


def _decode(data: bytes, size: int) -> np.ndarray:
    picture = Image.open(io.BytesIO(data))
    picture.draft("RGB", (2 * size, 2 * size))
    picture = picture.convert("RGB").resize(
        (size, size), Image.Resampling.BICUBIC, reducing_gap=3.0
    )
    return np.asarray(picture)


def largest_difference(features: Path, loop: Path) -> float:
    """Between the two ways' vectors of the same images."""
    own = {}
    for part in sorted(features.glob("part-*.parquet")):
        rows = pq.read_table(part)
        columns = [np.stack(rows[f"{net}.high"].to_numpy()) for net in common.NETS]
        own |= zip(rows["id"].to_pylist(), np.concatenate(columns, axis=1), strict=True)
    worst = 0.0
    for path in loop.glob("*.npz"):
        with np.load(path) as data:
            for name, vector in zip(data["names"], data["vectors"], strict=True):
                worst = max(worst, np.abs(own[str(name)] - vector.astype(np.float32)).max())
    return float(worst)


def main() -> None:
    options = common.parser(__doc__, 5000).parse_args()
    with common.work_folder(options.work) as work:
        paths = common.photographs(options.data, options.images)
        half = len(paths) // 2
        one = common.copy_images(paths[:half], work / "one")
        two = common.copy_images(paths[half:], work / "two")
        ours = [imgray(one, work / "imgray-one", common.NETS)]
        loop = [plain(one, work / "plain-one"), plain(two, work / "plain-two")]
        ours.append(imgray(two, work / "imgray-two", common.NETS))
        rows = []
        for name, runs in (("imgray", ours), ("plain torch loop, 2 processes", loop)):
            rates, cpu, starts = zip(*runs, strict=True)
            rows.append([name, *rates, *(float(np.mean(v)) for v in (rates, cpu, starts))])
        head = ["", "1st half, images/s", "2nd half", "mean", "CPU ms per image", "start-up, s"]
        common.table(head, rows)
        print(f"imgray / loop, images/s: {rows[0][3] / rows[1][3]:.2f}")
        print(f"imgray / loop, CPU time: {rows[0][4] / rows[1][4]:.2f}")
        worst = largest_difference(work / "imgray-one", work / "plain-one")
        print(f"largest difference of a value: {worst:.1e}")
        alone = [imgray(one, work / f"only-{net}", (net,)) for net in common.NETS]
        seconds = sum(1 / run.images for run in alone)
        common.table(
            ["two networks", "images/s", "CPU ms per image"],
            [
                ["in one pass", ours[0].images, ours[0].cpu],
                ["in two passes", 1 / seconds, sum(run.cpu for run in alone)],
            ],
        )


if __name__ == "__main__":
    main()
