"""Memory of extraction and of index build at a tenth of a collection and at all of it.

CIFAR-10 photographs at 64 pixels, MobileNetV2, index shards of equally many images at both sizes.
Sampled over the job's whole process tree, Ray included: the sum of resident sets (RSS, which counts
shared memory once per process), the sum of proportional sets (PSS), and the largest single worker.

Cost at ten times the images: the same memory per worker; only the driver's list of receipts, the
Ray object store and the listing grow.
"""

import subprocess
import time
from pathlib import Path

import common
import psutil

PER_SHARD = 2500
MIB = 2**20


def peak(job: str, *flags: object) -> list[float]:
    """Seconds, and MiB at most: sum of RSS, sum of PSS, largest worker's RSS, the driver's RSS."""
    began, process = time.monotonic(), common.start(job, *map(str, flags))
    most = [0.0, 0.0, 0.0, 0.0]
    while process.poll() is None:
        most = [max(pair) for pair in zip(most, _sample(process), strict=True)]
        time.sleep(0.5)
    if process.returncode:
        raise SystemExit(f"jobs/{job}.py: exit code {process.returncode}")
    return [time.monotonic() - began, *(value / MIB for value in most)]


def _sample(process: subprocess.Popen[bytes]) -> list[float]:
    total, shared, worker, driver = 0.0, 0.0, 0.0, 0.0
    try:
        tree = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    except psutil.NoSuchProcess:
        return [0.0] * 4
    for one in tree:
        try:
            memory, name = one.memory_full_info(), one.name()
        except (psutil.NoSuchProcess, psutil.ZombieProcess):
            continue
        total, shared = total + memory.rss, shared + memory.pss
        if one.pid == process.pid:
            driver = memory.rss
        elif name.startswith("ray::") and not name.endswith("Agent"):
            worker = max(worker, memory.rss)
    return [total, shared, worker, driver]


def measure(data: Path, work: Path, count: int) -> list[list[object]]:
    images = common.cifar(data, "train", count, work / f"base-{count}")
    features, index = work / f"memory-features-{count}", work / f"memory-index-{count}"
    made = peak(
        "extract", "--images", images, "--output", features, "--extractor", common.NETS[0],
        "--size", 64, "--batch-size", 32, "--workers", 2, "--overwrite",
    )  # fmt: skip
    shards = max(1, count // PER_SHARD)
    built = peak(
        "index", "--features", features, "--output", index, "--feature", common.NETS[0],
        "--shards", shards, "--codewords", 256, "--overwrite",
    )  # fmt: skip
    return [
        [f"extract, {count:,} images", *made],
        [f"index, {count:,} images, {shards} shards", *built],
    ]


def main() -> None:
    options = common.parser(__doc__, 50_000).parse_args()
    with common.work_folder(options.work) as work:
        counts = (max(1, options.images // 10), options.images)
        rows = [row for count in counts for row in measure(options.data, work, count)]
    rows.sort(key=lambda row: str(row[0]).split(",")[0])
    common.table(
        ["MiB at most", "seconds", "sum of RSS", "sum of PSS", "largest worker", "driver"], rows
    )


if __name__ == "__main__":
    main()
