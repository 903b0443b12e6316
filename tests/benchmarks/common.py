"""What the benchmarks share: collections, jobs as a user starts them, and tables."""

import argparse
import contextlib
import os
import random
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import psutil
import pyarrow.parquet as pq

ROOT = Path(__file__).parents[2]
DATA = Path(os.environ.get("IMGRAY_TEST_DATA") or ROOT.parent / "shared/data")
NETS = ("mobilenet_v2", "tf_efficientnet_lite0")
QUIET = {"OMP_NUM_THREADS": "1", "RAY_USAGE_STATS_ENABLED": "0", "RAY_BACKEND_LOG_LEVEL": "fatal"}
os.environ |= QUIET


def parser(what: str | None, images: int) -> argparse.ArgumentParser:
    """The flags that all benchmarks have."""
    found = argparse.ArgumentParser(description=what)
    found.add_argument("--images", type=int, default=images, help=f"how many (default: {images:,})")
    found.add_argument("--work", type=Path, help="folder to keep what was made, for another run")
    found.add_argument("--data", type=Path, default=DATA, help="default: IMGRAY_TEST_DATA")
    return found


@contextmanager
def work_folder(given: Path | None) -> Iterator[Path]:
    """The folder that the user named, kept; or a temporary one."""
    if given:
        given.mkdir(parents=True, exist_ok=True)
        yield given.resolve()
        return
    with tempfile.TemporaryDirectory(prefix="imgray-bench-") as folder:
        yield Path(folder)


def photographs(data: Path, count: int) -> list[Path]:
    """Photographs of four data sets in random order, repeated if they do not suffice."""
    names = ("corel1k", "caltech101", "summer2winter", "ucm_captions")
    found = sorted(path for name in names for path in (data / name).rglob("*.jpg"))
    if not found:
        sys.exit(f"{data}: no data sets here; --data or IMGRAY_TEST_DATA names another folder")
    random.Random(0).shuffle(found)
    return [found[i % len(found)] for i in range(count)]


def copy_images(paths: Sequence[Path], folder: Path) -> Path:
    """Copy images into a new collection."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, path in enumerate(paths):
        shutil.copy(path, folder / f"{number:06d}.jpg")
    return folder


def cifar(data: Path, part: str, count: int, folder: Path) -> Path:
    """The first images of CIFAR-10's `part` as files, made once."""
    if not folder.exists():
        images = pq.read_table(data / "cifar10" / f"{part}.parquet", columns=["image"])["image"]
        partial = folder.with_name(f"{folder.name}.partial")
        partial.mkdir(parents=True, exist_ok=True)
        for number, image in enumerate(images[:count]):
            (partial / f"{number:06d}.jpg").write_bytes(image.as_py())
        partial.rename(folder)
    return folder


def start(job: str, *flags: str) -> subprocess.Popen[bytes]:
    """Start `jobs/JOB.py` with flags; its progress is shown, its result is not."""
    command = [sys.executable, f"jobs/{job}.py", *map(str, flags)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)


def run(job: str, *flags: str) -> None:
    """Run `jobs/JOB.py` with flags to its end."""
    if code := start(job, *flags).wait():
        sys.exit(f"jobs/{job}.py {' '.join(map(str, flags))}: exit code {code}")


class Steady(NamedTuple):
    """The rows of an artifact's parts between two moments, `time.time()`, and rows in all."""

    began: float
    ended: float
    rows: int
    total: int

    @property
    def rate(self) -> float:
        """Rows per second."""
        return self.rows / (self.ended - self.began)


def steady(artifact: Path, processes: int) -> Steady:
    """From the end of the first part that each of several processes has written, to the last's."""
    parts = sorted(artifact.glob("part-*.parquet"), key=lambda path: path.stat().st_mtime_ns)
    ends = [part.stat().st_mtime for part in parts]
    rows = [pq.read_metadata(part).num_rows for part in parts]
    first = min(processes, len(parts) - 1)
    return Steady(ends[first - 1], ends[-1], sum(rows[first:]), sum(rows))


class CpuMeter:
    """Processor time that a process and all below it use, sampled in a thread."""

    def __init__(self, pid: int | None = None) -> None:
        self.root = psutil.Process(pid)
        self.times: list[float] = []
        self.used: list[float] = []
        self._by_process: dict[tuple[int, float], float] = {}
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "CpuMeter":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()

    def between(self, start: float, end: float) -> float:
        """CPU seconds used from one `time.time()` to another."""
        first, last = np.interp([start, end], self.times, self.used)
        return float(last - first)

    def _watch(self) -> None:
        while not self._end.wait(0.2):
            for one in self._tree():
                with contextlib.suppress(psutil.NoSuchProcess):
                    spent = one.cpu_times()
                    self._by_process[one.pid, one.create_time()] = spent.user + spent.system
            self.times.append(time.time())
            self.used.append(sum(self._by_process.values()))

    def _tree(self) -> list[psutil.Process]:
        with contextlib.suppress(psutil.NoSuchProcess):
            return [self.root, *self.root.children(recursive=True)]
        return []


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print a Markdown table, figures to the right."""
    print("\n| " + " | ".join(head) + " |")
    print("|---" + "|---:" * (len(head) - 1) + "|")
    for row in rows:
        print("| " + " | ".join(_text(cell) for cell in row) + " |")
    print(flush=True)


def spread(values: Sequence[float]) -> str:
    """Mean, and sample standard deviation where there are several, to four digits or a tenth."""
    digits = 4 if abs(values[0]) < 10 else 1
    found = f"{np.mean(values):.{digits}f}"
    return found if len(values) == 1 else f"{found} ± {np.std(values, ddof=1):.{digits}f}"


def _text(cell: object) -> str:
    if isinstance(cell, float):
        return f"{cell:,.3f}" if abs(cell) < 10 else f"{cell:,.1f}"
    return f"{cell:,}" if isinstance(cell, int) else str(cell)
