"""Listing of a collection, on disk and in S3 (rclone), and what `--except` saves on it.

    python tests/benchmarks/bench_listing.py [--images N] [--work FOLDER] [--extract N]

The N files (100,000) are empty and lie by thousands in nested folders. Memory is that of a process
that does nothing else. With `--extract` as many photographs of 32 pixels are extracted by
MobileNetV2, once all of them and once, after 1 % came, 1 % changed and 1 % went, with `--except`.
"""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import common
import pyarrow.parquet as pq

PORT, KEY = 9555, "imgray-bench,imgray-bench-secret"
LIST = """
import resource, sys, time
from imgray.artifacts.folder import Folder
from imgray.data.collections import Files
from imgray.engine.frozen import freeze
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
before, start = peak(), time.perf_counter()
with freeze(Files(Folder(sys.argv[1]), "image"), Folder(sys.argv[2])) as frozen:
    first, seen = frozen.known().images, time.perf_counter() - start
    listing = frozen.ended()
took, size = time.perf_counter() - start, listing.file.size / 1e6
print(listing.images, first, seen, took, peak() - before, size)
"""


def make(folder: Path, count: int) -> None:
    """Empty files, a thousand in a folder."""
    for number in range(0, count, 1000):
        below = folder / f"{number // 100_000:04d}" / f"{number // 1000 % 100:03d}"
        below.mkdir(parents=True)
        for place in range(min(1000, count - number)):
            (below / f"{place:06d}.jpg").touch()


@contextmanager
def served(folder: Path) -> Iterator[dict[str, str]]:
    """The sub-folders of a folder as buckets: the variables that name them."""
    program = Path(sys.executable).with_name("rclone")
    address = f"127.0.0.1:{PORT}"
    command = [str(program), "serve", "s3", "--auth-key", KEY, "--addr", address, str(folder)]
    server = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    time.sleep(3)
    key, secret = KEY.split(",")
    try:
        yield {
            "AWS_ENDPOINT_URL": f"http://{address}", "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_ACCESS_KEY_ID": key, "AWS_SECRET_ACCESS_KEY": secret,
        }  # fmt: skip
    finally:
        server.terminate()
        server.wait()


def listed(uri: str, target: Path, variables: dict[str, str]) -> list[float]:
    """Entries, those that work begins with, seconds to them, to all, MiB more than before, MB."""
    shutil.rmtree(target, ignore_errors=True)  # what an interrupted run has left
    command = [sys.executable, "-c", LIST, uri, str(target)]
    done = subprocess.run(command, env=os.environ | variables, capture_output=True, check=True)
    shutil.rmtree(target)
    count, first, *rest = map(float, done.stdout.split())
    return [int(count), int(first), *rest]


def photographs(folder: Path, data: Path, count: int) -> Path:
    """Pictures of CIFAR-10, repeated if they do not suffice."""
    column = pq.read_table(data / "cifar10" / "train.parquet", columns=["image"])["image"]
    folder.mkdir(parents=True)
    for number in range(count):
        (folder / f"{number:06d}.jpg").write_bytes(column[number % len(column)].as_py())
    return folder


def extraction(work: Path, data: Path, count: int) -> None:
    """A full pass, and one of what is other."""
    images = photographs(work / "grows", data, count)
    flags = ["--images", images, "--extractor", "mobilenet_v2", "--size", 32, "--workers", 2]
    flags = [*flags, "--shard-size", 2048]
    seconds = []
    for name, more in (("all", []), ("other", ["--except", work / "all"])):
        if more:
            some = count // 100
            names = [f"{number * 100:06d}.jpg" for number in range(some)]
            for number, name_ in enumerate(names):
                shutil.copy(images / name_, images / f"new-{number:06d}.jpg")
                shutil.copy(images / name_, images / f"{number * 100 + 1:06d}.jpg")
                (images / f"{number * 100 + 2:06d}.jpg").unlink()
        start = time.perf_counter()
        common.run("extract", *map(str, [*flags, "--output", work / name, *more]))
        seconds.append(time.perf_counter() - start)
    done = [
        sum(pq.read_metadata(p).num_rows for p in (work / n).glob("part-*"))
        for n in ("all", "other")
    ]
    gone = pq.read_metadata(work / "other" / "vanished.parquet").num_rows
    rows = [["all", done[0], seconds[0]], [f"--except ({gone:,} vanished)", done[1], seconds[1]]]
    common.table(["pass", "images", "s"], rows)


def main() -> None:
    """Measure, and print tables."""
    parser = common.parser(__doc__, 100_000)
    parser.add_argument("--extract", type=int, default=0, help="photographs to extract")
    given = parser.parse_args()
    with common.work_folder(given.work) as work:
        place = work / "served" / f"list-{given.images}"
        if not place.exists():
            make(place, given.images)
        rows = [["disk", *listed(str(place), work / "out", {})]]
        with served(place.parent) as variables:
            uri = f"s3://{place.name}"
            rows.append(["S3", *listed(uri, work / "out", variables)])
        head = ["where", "entries", "the first", "s to them", "s to all", "MiB more", "MB"]
        common.table(head, rows)
        if given.extract:
            extraction(work, given.data, given.extract)


if __name__ == "__main__":
    main()
