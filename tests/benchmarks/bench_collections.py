"""Extraction of the same photographs as files, in three tars and in a Parquet table.

Each on disk and in S3 (rclone's, behind a relay that counts requests); the output is on disk. Rates
are steady ones, by MobileNetV2 on two workers; all vectors are compared with those of the files on
disk.

Cost at ten times the images: ten times the steady seconds, the same start-up.
"""

import asyncio
import os
import re
import shutil
import tarfile
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import common
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from bench_listing import PORT, served

SHARD, BATCH, WORKERS, TARS = 128, 8, 2, 3
KINDS: dict[str, tuple[str, list[str]]] = {
    "files": ("files", []), "tars": ("tars", ["--stored", "tar"]), "table": ("x.parquet", []),
}  # fmt: skip
REQUEST = re.compile(rb"(GET|HEAD) ")


class Relay:
    """Passes bytes on to a server, and counts the requests among them by method."""

    def __init__(self, port: int) -> None:
        self.port, self.counts = port, Counter[str]()
        self.loop = asyncio.new_event_loop()
        self.server = self.loop.run_until_complete(
            asyncio.start_server(self._connected, "127.0.0.1", 0)
        )
        self.address = f"http://127.0.0.1:{self.server.sockets[0].getsockname()[1]}"
        threading.Thread(target=self.loop.run_forever, daemon=True).start()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        from_server, to_server = await asyncio.open_connection("127.0.0.1", self.port)
        await asyncio.gather(
            self._pass(reader, to_server, True), self._pass(from_server, writer, False)
        )

    async def _pass(
        self, source: asyncio.StreamReader, target: asyncio.StreamWriter, asks: bool
    ) -> None:
        while data := await source.read(2**18):
            if asks and (found := REQUEST.match(data)):
                self.counts[found[1].decode()] += 1
            target.write(data)
            await target.drain()
        target.close()


def stored(work: Path, data: Path, count: int) -> Path:
    """The photographs three times, made once."""
    place = work / "served" / "stored"
    if place.exists():
        return place
    (place / "tars").mkdir(parents=True)
    files = common.copy_images(common.photographs(data, count), place / "files")
    paths = sorted(files.iterdir())
    for number in range(TARS):
        with tarfile.open(place / "tars" / f"x-{number}.tar", "w") as tar:
            for path in paths[number * count // TARS : (number + 1) * count // TARS]:
                tar.add(path, path.name)
    columns = [[path.name for path in paths], [path.read_bytes() for path in paths]]
    pq.write_table(pa.table(columns, ["id", "image"]), place / "x.parquet", row_group_size=500)
    return place


@contextmanager
def in_s3(folder: Path) -> Iterator[Relay]:
    """The folder's sub-folders as buckets, in the environment of what is started."""
    with served(folder) as variables:
        relay = Relay(PORT)
        before = dict(os.environ)
        os.environ |= variables | {"AWS_ENDPOINT_URL": relay.address}
        try:
            yield relay
        finally:
            os.environ.clear()
            os.environ |= before


def vectors(output: Path) -> np.ndarray:
    """Of all images in their order (N, D)."""
    parts = sorted(output.glob("part-*.parquet"))
    tables = [pq.read_table(part, columns=["mobilenet_v2.high"]) for part in parts]
    column = pa.concat_tables(tables).column(0).combine_chunks()
    flat = column.flatten().to_numpy(zero_copy_only=False)
    return flat.astype(np.float32).reshape(len(column), -1)


def measured(uri: str, flags: list[str], output: Path, relay: Relay | None) -> list[float]:
    """Images/s, requests per image, and the largest difference from the vectors of `files`."""
    if relay:
        relay.counts.clear()
    common.run(
        "extract", "--images", uri, "--output", output, *flags, "--extractor", "mobilenet_v2",
        "--shard-size", SHARD, "--batch-size", BATCH, "--workers", WORKERS,
    )  # fmt: skip
    found, first = vectors(output), vectors(output.parent / "disk-files")
    asked = sum(relay.counts.values()) if relay else 0
    difference = float(np.abs(found - first).max())
    return [common.steady(output, WORKERS).rate, asked / len(found), difference]


def main() -> None:
    """Measure, and print a table."""
    given = common.parser(__doc__, 5000).parse_args()
    head = ["where", "stored as", "images/s", "requests an image", "largest difference"]
    rows: list[list[object]] = []
    with common.work_folder(given.work) as work:
        place = stored(work, given.data, given.images)
        with in_s3(place.parent) as relay:
            roots: dict[str, tuple[str, Relay | None]] = {
                "disk": (str(place), None), "S3": (f"s3://{place.name}", relay)
            }  # fmt: skip
            for kind, (end, flags) in KINDS.items():
                for where, (root, counted) in roots.items():
                    output = work / f"{where.lower()}-{kind}"
                    shutil.rmtree(output, ignore_errors=True)
                    found = measured(f"{root}/{end}", flags, output, counted)
                    rows.append([where, kind, *found])
                    if counted:
                        print(kind, dict(counted.counts), flush=True)
        common.table(head, rows)


if __name__ == "__main__":
    main()
