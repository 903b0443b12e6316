"""What stands beside the features of 10^6 to 10^9 images: listing, receipts and manifest.

    python tests/benchmarks/bench_endless.py [--images N ...] [--work FOLDER]

Shards and row groups are counted by the package's own functions. What is simulated are files of as
many row groups, receipts and entries as so many images have: written and read by the package, each
in a process of its own, whose memory is what it takes beyond one that has loaded the package. The
listing's bytes are those of its entries, taken from a listing of a million in folders by thousands.
"""

import argparse
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import common
import pyarrow as pa

from imgray.artifacts.folder import Folder
from imgray.artifacts.manifest import REJECTED, FileEntry, Manifest, publish, read_manifest, sha256
from imgray.artifacts.walk import Entry
from imgray.engine.listing import ENTRY, GROUP, LISTING, ShardRows, shards, write, writing_parquet
from imgray.engine.receipts import RECEIPTS, Ledger, Receipt, found_receipts, name_of

SIZE, SAMPLE = 512, 1_000_000
"""Images of a shard by default, and of the listing whose entries are taken for all."""


def bytes_of_entry(work: Path) -> float:
    path = work / "sample.parquet"
    entries = (
        Entry(f"{n // 100_000:04d}/{n // 1000 % 100:03d}/{n:09d}.jpg", 100_000 + n * 7919 % 65_537,
              sha256(str(n).encode())[:32])
        for n in range(SAMPLE)
    )  # fmt: skip
    write(entries, path)
    return path.stat().st_size / SAMPLE


def write_listing(output: Folder, images: int) -> None:
    """One of as many row groups."""
    with writing_parquet(Path(output.path(LISTING)), ENTRY) as add:
        row = pa.table([["0000/000/000000000.jpg"], [100_000], ["0" * 32], [""]], schema=ENTRY)
        for _ in range(-(-images // GROUP)):
            add(row, 1)


def receipts(images: int) -> Iterator[Receipt]:
    """Of as many shards, in each of which something is rejected."""
    for shard in range(shards(images, SIZE)):
        part = f"part-{shard:05d}-{'0' * 12}.parquet"
        done, rejected = (
            FileEntry(name=name, size=0, sha256="0" * 64, rows=SIZE)
            for name in (part, f"{REJECTED}/{part}")
        )
        yield Receipt(shard=shard, listed=2 * SIZE, part=done, rejected=rejected)


def write_receipts(output: Folder, images: int) -> None:
    """All receipts, by themselves and together, with empty parts; the disk is not waited for."""
    ledger = Ledger(output)
    for below in (REJECTED, RECEIPTS):
        Path(output.path(below)).mkdir(parents=True)
    for receipt in receipts(images):
        for file in receipt.files:
            Path(output.path(file.name)).touch()
        note = Path(output.path(name_of(output, receipt.shard)))
        note.write_text(receipt.model_dump_json())
        ledger.add(receipt)


def write_manifest(output: Folder, images: int) -> None:
    """One of all parts."""
    files = [file for receipt in receipts(images) for file in receipt.files]
    publish(output, Manifest(kind="features", config={}, files=files))


WRITE = {"listing's footer": write_listing, "receipts": write_receipts, "manifest": write_manifest}
READ: dict[str, Callable[[Folder], Any]] = {
    "listing's footer": lambda output: ShardRows(output, SIZE).entries(0),
    "receipts": found_receipts,
    "manifest": read_manifest,
}
ALONE = """
import sys, time, psutil
sys.path.insert(0, sys.argv[1])
import bench_endless
def taken(): return psutil.Process().memory_info().rss / 2**20
before, start = taken(), time.perf_counter()
found = bench_endless.READ[sys.argv[2]](bench_endless.Folder(sys.argv[3]))
print(time.perf_counter() - start, taken() - before)
"""


def measured(name: str, images: int, output: Path) -> list[float]:
    """Seconds to write, MB of files that tell something, seconds to read, MiB held then."""
    output.mkdir(parents=True)
    begun = time.perf_counter()
    WRITE[name](Folder(str(output)), images)
    written = time.perf_counter() - begun
    size = sum(path.stat().st_size for path in output.rglob("*") if path.is_file()) / 1e6
    command = [sys.executable, "-c", ALONE, str(Path(__file__).parent), name, str(output)]
    read = subprocess.run(command, check=True, capture_output=True).stdout
    return [written, size, *map(float, read.split())]


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, nargs="+", default=[10**6, 10**7, 10**8, 10**9])
    parser.add_argument("--work", type=Path)
    given = parser.parse_args()
    with common.work_folder(given.work) as work:
        each = bytes_of_entry(work)
        rows = [
            [f"{n:,}", f"{shards(n, SIZE):,}", name, *measured(name, n, work / f"{n} {name}")]
            for n in given.images
            for name in WRITE
        ]
        head = ["images", "shards", "what", "s to write", "MB", "s to read", "MiB held"]
        common.table(head, rows)
        print(f"{each:.1f} bytes of the listing an entry")


if __name__ == "__main__":
    main()
