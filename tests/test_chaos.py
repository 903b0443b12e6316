"""Jobs that are killed, interrupted or lose a machine: nothing is lost, nothing is done twice.

Every job is a process of its own; one that is killed or interrupted has a Ray of its own, as a user
starts it.
"""

import contextlib
import io
import os
import random
import signal
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import growing
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import TinyNet
from nodes import Nodes
from poison import write_poison
from running import Start, own_workers, run

from imgray.artifacts.folder import Folder
from imgray.artifacts.manifest import read_file, read_manifest
from imgray.artifacts.walk import Entry
from imgray.data import samples
from imgray.data.collections import Files
from imgray.data.fields import Values
from imgray.engine import pieces
from imgray.engine.cluster import Pool
from imgray.engine.collection import RESTARTS, process_collection
from imgray.engine.worker import Rejections
from imgray.errors import UserError

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(1500)]

RECEIPTS = "_work/receipts"
FEW, FEW_SHARD = 320, 8
MANY, MANY_SHARD = 5000, 25


def _receipts(output: Path, pattern: str = f"{RECEIPTS}/*/*.json") -> int:
    return len(list(output.glob(pattern)))


def write_crops(folder: Path, count: int) -> Path:
    """Write `count` crops of real photographs, JPEG of 64 x 64 pixels."""
    folder.mkdir(parents=True, exist_ok=True)
    photographs, chance = list(samples.photographs().values()), random.Random(0)
    for number in range(count):
        picture = photographs[number % len(photographs)]
        side = chance.randint(64, min(picture.size))
        x, y = (chance.randint(0, length - side) for length in picture.size)
        crop = picture.resize((64, 64), box=(x, y, x + side, y + side))
        crop.save(folder / f"{number:05d}.jpg")
    (folder / "broken.jpg").write_bytes(b"no picture")
    return folder


def add_poison(folder: Path) -> dict[str, str]:
    """Files of every kind of `poison.py`, twice, among the images; rejected id -> word of why."""
    bad = {"broken.jpg": "not a readable"}
    for place in ("a poison", "00100.jpg poison"):
        kinds = write_poison(folder / place)
        bad |= {f"{place}/{name}": reason for name, reason in kinds.items() if reason}
    return bad


@dataclass(frozen=True)
class Reference:
    """A collection, the flags of its extraction, and what an undisturbed run made of it."""

    images: int
    flags: list[str]
    output: Path
    files: dict[str, bytes]


def _reference(images: Path, shard: int, net: TinyNet, address: str) -> Reference:
    folder, count = images.parent, sum(path.is_file() for path in images.rglob("*"))
    flags = ["--images", str(images), "--shard-size", str(shard), "--workers", "2", *net.flags]
    code, _, error = run("extract", folder / "output", *flags, address=address).finish()
    assert code == 0, error
    return Reference(count, flags, folder / "output", _files(folder / "output"))


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory, tiny_net: TinyNet, address: str) -> Reference:
    images = write_crops(tmp_path_factory.mktemp("few") / "images", FEW)
    return _reference(images, FEW_SHARD, tiny_net, address)


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory, tiny_net: TinyNet, address: str) -> Reference:
    """More than 2 % of these images are poisoned, one way or another."""
    images = write_crops(tmp_path_factory.mktemp("many") / "images", MANY)
    add_poison(images)
    return _reference(images, MANY_SHARD, tiny_net, address)


def _files(output: Path) -> dict[str, bytes]:
    found = [path for path in output.rglob("*") if path.is_file()]
    return {path.relative_to(output).as_posix(): path.read_bytes() for path in found}


def _times(output: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in output.rglob("*")}


def _check(output: Path, reference: Reference) -> None:
    """Once each, none lost, the very bytes of the undisturbed run, nothing left over."""
    folder = Folder(str(output))
    manifest = read_manifest(folder, "features")
    ids = []
    for entry in manifest.named("part-") + manifest.named("rejected/"):
        ids += pq.read_table(io.BytesIO(read_file(folder, entry)))["id"].to_pylist()
    listed = pq.read_table(io.BytesIO(read_file(folder, manifest.file("listing.parquet"))))
    assert len(ids) == len(set(ids)) == reference.images
    assert set(ids) == set(listed["id"].to_pylist())
    assert manifest.counts["done"] + manifest.counts["rejected"] == manifest.counts["listed"]
    files = {name: data for name, data in _files(output).items() if ".partial-" not in name}
    assert files == reference.files


def _kill_and_run_again(
    start: Start, output: Path, reference: Reference, share: float, address: str
) -> None:
    shards = sum(name.startswith("part-") for name in reference.files)
    job = start("extract", output, *reference.flags)
    job.wait_until(lambda: _receipts(output) >= share * shards)
    job.kill()
    done = {path.name: path.stat().st_mtime_ns for path in (output / RECEIPTS).glob("*/*")}
    assert share * shards <= len(done) < shards
    assert not (output / "manifest.json").exists()
    parts = {p: p.stat().st_mtime_ns for p in output.glob("part-*")}
    kept = {p: t for p, t in parts.items() if f"{p.stem.split('-')[1]}.json" in done}
    code, _, error = start("extract", output, *reference.flags, address=address).finish()
    assert code == 0, error
    assert "were done by an earlier run" in error
    assert all(path.stat().st_mtime_ns == time for path, time in kept.items())
    _check(output, reference)


def test_a_killed_driver_loses_and_repeats_nothing(
    start: Start, tmp_path: Path, few: Reference, address: str
) -> None:
    _kill_and_run_again(start, tmp_path / "out", few, 0.5, address)


@pytest.mark.sweep
@pytest.mark.parametrize("share", [0.1, 0.25, 0.5, 0.75, 0.9])
def test_a_driver_killed_anywhere_loses_and_repeats_nothing(
    start: Start, tmp_path: Path, many: Reference, share: float, address: str
) -> None:
    _kill_and_run_again(start, tmp_path / "out", many, share, address)


@pytest.mark.sweep
def test_poison_among_many_is_accounted_for(many: Reference, tmp_path: Path) -> None:
    wanted = add_poison(tmp_path)
    manifest = read_manifest(Folder(str(many.output)), "features")
    assert many.images - MANY > 0.02 * MANY
    assert manifest.counts["listed"] == many.images
    assert manifest.counts["rejected"] == len(wanted)
    assert manifest.counts["done"] == many.images - len(wanted)
    files = sorted((many.output / "rejected").glob("*.parquet"))
    rejected = [row for file in files for row in pq.read_table(file).to_pylist()]
    assert sorted(row["id"] for row in rejected) == sorted(wanted)
    assert all(wanted[row["id"]] in row["reason"] for row in rejected)


@pytest.mark.sweep
def test_a_killed_index_build_goes_on(start: Start, tmp_path: Path, many: Reference) -> None:
    flags = ["--features", str(many.output), "--feature", "test_efficientnet", "--shards", "8"]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert start("index", whole, *flags).finish()[0] == 0
    for note, least in (("codebooks.json", 1), ("shard-*.json", 2)):
        job = start("index", killed, *flags)
        job.wait_until(lambda job=job, n=note, m=least: _receipts(killed, f"_work/{n}") >= m)
        job.kill()
        assert not (killed / "manifest.json").exists()
    before = {p: p.stat().st_mtime_ns for p in killed.glob("codebooks*")}
    code, _, error = start("index", killed, *flags).finish()
    assert code == 0, error
    assert all(path.stat().st_mtime_ns == time for path, time in before.items())
    timed = {"report.json", "manifest.json"}
    found, wanted = _files(killed), _files(whole)
    assert {n for n in found if ".partial-" not in n} == wanted.keys()
    assert all(found[name] == wanted[name] for name in wanted.keys() - timed)


def _worker() -> psutil.Process:
    """The youngest worker on the tests' own Ray."""
    found = []
    for process in own_workers():
        with contextlib.suppress(psutil.NoSuchProcess):
            if process.name().startswith("ray::MapWorker"):
                found.append(process)
    return max(found, key=psutil.Process.create_time)


@pytest.mark.slow
def test_a_killed_worker_is_replaced(
    start: Start, tmp_path: Path, few: Reference, address: str
) -> None:
    job = start("extract", tmp_path / "out", *few.flags, address=address)
    job.wait_until(lambda: _receipts(tmp_path / "out") >= 4)
    _worker().kill()
    code, _, error = job.finish()
    assert code == 0, error
    _check(tmp_path / "out", few)


class _Deadly:
    """A step that no worker survives."""

    schema = pa.schema([("id", pa.string())])

    def prepare(self, values: Values) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def process(self, ids: Sequence[str], batch: Sequence[None]) -> tuple[pa.Table, Rejections]:
        raise AssertionError


def test_an_image_that_kills_every_worker_ends_the_job(
    ray_cluster: None, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(RESTARTS, "max_restarts", 2)
    collection = Files(Folder(str(photos)), "image")
    with pytest.raises(UserError, match="a worker died 3 times"):
        process_collection(
            "test", collection, Folder(str(tmp_path)), _Deadly, Pool(1, 1, 0),
            batch_size=8, shard_size=8,
        )  # fmt: skip
    assert not (tmp_path / "manifest.json").exists()


def test_workers_begin_while_a_folder_is_listed(
    ray_cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last piece is not listed before one of the first has been worked on."""
    images, output = tmp_path / "images", Folder(str(tmp_path / "out"))
    names = [f"{n:02d}.jpg" for n in range(18)]
    growing.write_files(images, names)
    walk = Folder.walk

    def slowly(self: Folder, *given: Any) -> Iterator[Entry]:
        for number, entry in enumerate(walk(self, *given)):
            end = time.monotonic() + 120
            while number > 16 and not _receipts(Path(output.root)) and time.monotonic() < end:
                time.sleep(0.05)
            assert number <= 16 or _receipts(Path(output.root))
            yield entry

    monkeypatch.setattr(pieces, "GROUP", 8)
    monkeypatch.setattr("imgray.engine.growing.GRACE", 0.0)
    monkeypatch.setattr(Folder, "walk", slowly)
    growing.make(images, output)
    assert growing.check(output) == names


@pytest.mark.slow
@pytest.mark.parametrize("workers", [pytest.param(2, marks=pytest.mark.sweep), 3])
def test_a_lost_node_loses_no_image(
    start: Start, tmp_path: Path, few: Reference, nodes: Nodes, workers: int
) -> None:
    """Three nodes of one CPU: with two workers there is room for another one, with three none."""
    flags = [*few.flags, "--workers", str(workers)]
    job = start("extract", tmp_path / "out", *flags, address=nodes.address)
    job.wait_until(lambda: _receipts(tmp_path / "out") >= 4)
    nodes.order("remove", nodes.process("MapWorker").pid)
    code, _, error = job.finish()
    assert code == 0, error
    _check(tmp_path / "out", few)


@pytest.mark.slow
def test_a_finished_job_does_nothing(start: Start, few: Reference) -> None:
    before, started = _times(few.output), time.monotonic()
    code, output, error = start("extract", few.output, *few.flags).finish()
    print(f"a finished job: {time.monotonic() - started:.1f} s")
    assert code == 0, error
    assert f"{few.images - 1} images done, 1 rejected, {few.images} listed" in output
    assert _times(few.output) == before


def test_other_settings_are_refused(start: Start, few: Reference) -> None:
    before = _times(few.output)
    flags = [*few.flags, "--precision", "bfloat16"]
    code, output, error = start("extract", few.output, *flags).finish()
    assert (code, output) == (2, "")
    assert "precision: 'float32' there, 'bfloat16' now" in error
    assert _times(few.output) == before


@pytest.mark.slow
@pytest.mark.parametrize(
    "presses", [2, *(pytest.param(n, marks=pytest.mark.sweep) for n in (1, 5))]
)
def test_ctrl_c_leaves_nothing_half_done(
    start: Start, tmp_path: Path, few: Reference, address: str, presses: int
) -> None:
    """A terminal sends SIGINT to the job and to the processes of Ray that share its group."""
    job = start("extract", tmp_path / "out", *few.flags)
    job.wait_until(lambda: _receipts(tmp_path / "out") >= 4)
    left = job.tree()
    for _ in range(presses):
        os.killpg(job.process.pid, signal.SIGINT)
        time.sleep(0.3)
    code, output, error = job.finish(60)
    assert (code, output) == (130, ""), error
    lines = [line for line in error.splitlines() if not line.startswith("extract: ")]
    assert lines == ["interrupted: nothing half-done is visible; run it again to go on"]
    assert not psutil.wait_procs(left, timeout=30)[1]
    assert not (tmp_path / "out" / "manifest.json").exists()
    code, _, error = start("extract", tmp_path / "out", *few.flags, address=address).finish()
    assert code == 0, error
    _check(tmp_path / "out", few)
