"""Training on a Parquet file three times as large as the memory it may take, and joins.

Photographs padded to 128 kB, in row groups of 100, are trained on by the plain loop in a process of
its own: row group by row group, and once more with all of them held in memory. Memory is the most
that the process took beyond what it had when the data were opened: anonymous (RssAnon), which is
its own, and in all (RSS), which counts the pages of files that it has mapped.

The join: captions of `--rows` pictures in random order, with the vectors of two networks.
"""

import argparse
import math
import multiprocessing
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import common
import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq

sys.path.insert(0, str(Path(__file__).parents[1]))

PICTURE, GROUP, BATCH, DIM = 128 * 1024, 100, 50, 1280
MIB = 2**20
RECIPE: dict[str, Any] = {
    "task": "imgray.classification.images:Classification",
    "settings": {"layout": "cfn7-norm", "width": 0.1, "rate": 0.01},
    "data": {"truth": "columns"},
    "batch_size": BATCH,
    "evaluate_every": 1000,
    "checkpoint_every": 1_000_000,
}


class Memory:
    """The most memory that this process takes within the block, in MiB beyond what it has now."""

    def __enter__(self) -> "Memory":
        self.most, self.first = [0.0, 0.0], self._now()
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._end.wait(0.005):
            grown = (now - first for now, first in zip(self._now(), self.first, strict=True))
            self.most = [max(pair) for pair in zip(self.most, grown, strict=True)]

    def _now(self) -> tuple[float, float]:
        memory = psutil.Process().memory_info()
        return (memory.rss - memory.shared) / MIB, memory.rss / MIB


def apart(function: Callable[..., Any], *arguments: Any) -> Any:
    """What a function gives in a process of its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, arguments)


def write_table(data: Path, folder: Path, count: int) -> Path:
    """Photographs in two classes; bytes that follow a JPEG's end make all of one size."""
    chance = np.random.default_rng(0)
    photographs = [path.read_bytes() for path in common.photographs(data, min(count, 500))]
    schema = pa.schema([("id", pa.string()), ("image", pa.binary()), ("label", pa.int32())])
    folder.mkdir(parents=True, exist_ok=True)
    for part, rows in (("train", count), ("val", BATCH)):
        if (folder / f"{part}.parquet").exists():
            continue
        partial = folder / "partial"
        with pq.ParquetWriter(partial, schema, use_dictionary=False) as writer:
            for first in range(0, rows, GROUP):
                numbers = range(first, min(first + GROUP, rows))
                given = [photographs[n % len(photographs)][:PICTURE] for n in numbers]
                images = [image + chance.bytes(PICTURE - len(image)) for image in given]
                ids, labels = [f"{n:08}" for n in numbers], [n % 2 for n in numbers]
                writer.write_table(pa.table([ids, images, labels], schema))
        partial.rename(folder / f"{part}.parquet")
    return folder


def train(folder: Path, epochs: int, held: bool) -> list[object]:
    """Images per second, the most memory, and how often a row group was read in an epoch."""
    import torch

    from imgray.artifacts.folder import Folder
    from imgray.artifacts.manifest import scratch
    from imgray.data import tables
    from imgray.data.rowgroups import ParquetGroups
    from imgray.engine.examples import open_examples
    from imgray.training import examples as order
    from imgray.training.loop import Place, Run

    torch.set_num_threads(1)
    if held:
        order.WINDOW = tables.HELD = 2**62
    read: list[int] = []
    original = ParquetGroups.read

    def counted(self: ParquetGroups, group: int, columns: Any) -> pa.Table:
        read.append(group)
        return original(self, group, columns)

    with scratch() as work, Memory() as memory:
        examples = open_examples(_recipe(1), str(folder))
        steps = epochs * len(examples.train) // BATCH
        if held:
            for first in range(0, len(examples.train), GROUP):
                examples.train[first]
        ParquetGroups.read = counted  # type: ignore[method-assign]
        times: list[float] = []
        place = Place(report=lambda done, of, line: times.append(time.monotonic()))
        Run(_recipe(steps), examples, Folder(f"{work}/run"), place).fit()
    rate = (len(times) - 2) * BATCH / (times[-2] - times[0])
    return [rate, *memory.most, len(read) / epochs / math.ceil(len(examples.train) / GROUP)]


def _recipe(steps: int) -> Any:
    from imgray.training.recipe import Recipe

    return Recipe.model_validate(RECIPE | {"steps": steps})


def write_artifacts(folder: Path, rows: int) -> list[Path]:
    """Features of two networks, in parts of 512 images as extraction writes them."""
    import synthetic

    synthetic.PART_ROWS = synthetic.GROUP_ROWS = 512
    found = []
    for number, net in enumerate(common.NETS):
        path = folder / f"features-{net}-{rows}"
        if not (path / "manifest.json").exists():
            values = np.random.default_rng(number).normal(size=(rows, 1, DIM)).astype(np.float32)
            synthetic.write_features(str(path), {f"{net}.high": values})
        found.append(path)
    return found


def join(artifacts: list[str], rows: int) -> list[object]:
    """Rows per second of a join and of reading after it, and the most memory it takes."""
    import synthetic

    from imgray.artifacts.folder import Folder
    from imgray.artifacts.manifest import scratch
    from imgray.data.fields import Text, Vector
    from imgray.data.layout import Layout
    from imgray.data.tables import Table

    order = np.random.default_rng(0).permutation(rows)
    names = synthetic.names(rows)
    fields = {"text": Text(), "photo": Vector(DIM), "other": Vector(DIM)}
    with scratch() as work:
        columns = {"id": [names[n] for n in order], "text": [f"caption {n}" for n in order]}
        pq.write_table(pa.table(columns), work / "t.parquet")
        features = dict(zip(("photo", "other"), artifacts, strict=True))
        del columns, names
        with Memory() as memory:
            began = time.monotonic()
            table = Table(Folder(str(work)), "t.parquet", fields, Layout(), features)
            table.row(0)
            joined = time.monotonic()
            table.check(np.arange(rows))
            checked = time.monotonic()
            picked = np.random.default_rng(1).integers(0, rows, (200, 100))
            for some in picked.tolist():
                table.rows(some)
            ended = time.monotonic()
    seconds = joined - began, checked - joined
    return [rows / seconds[0], rows / sum(seconds), picked.size / (ended - checked), *memory.most]


def main() -> None:
    parser = common.parser(__doc__, images=12_288)
    parser.add_argument("--rows", type=int, default=50_000, help="of the join")
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--only", choices=["train", "join"])
    given: argparse.Namespace = parser.parse_args()
    with common.work_folder(given.work) as work:
        if given.only != "join":
            folder = write_table(given.data, work / f"table-{given.images}", given.images)
            size = (folder / "train.parquet").stat().st_size / MIB
            print(f"{given.images:,} pictures, {size:,.0f} MiB")
            ways = [("row groups", False), ("in memory", True)]
            rows = [[name, *apart(train, folder, given.epochs, held)] for name, held in ways]
            head = ["training", "images/s", "RssAnon, MiB", "RSS, MiB", "reads of a group"]
            common.table(head, rows)
        if given.only != "train":
            artifacts = [str(path) for path in write_artifacts(work, given.rows)]
            found = apart(join, artifacts, given.rows)
            head = ["rows", "joined/s", "and checked/s", "read/s", "RssAnon, MiB", "RSS, MiB"]
            common.table(head, [[given.rows, *found]])


if __name__ == "__main__":
    main()
