"""One run at a time owns an output; kills at every change of the file system cost nothing."""

import contextlib
import errno
import json
import os
import pickle
import signal
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from kills import fork, left_by_kills

from imgray.artifacts import owner
from imgray.artifacts.folder import Folder
from imgray.artifacts.manifest import (
    CLAIMS,
    LEASES,
    NAME,
    Manifest,
    entry_of,
    publish,
    read_file,
    read_manifest,
)
from imgray.artifacts.output import begun
from imgray.artifacts.owner import Lost, Owned, newest_claim, owning
from imgray.engine.producer import produce
from imgray.errors import UserError

PARTS, NOTE = 2, "_work/listing.json"


def _make(folder: Folder, size: int, overwrite: bool = False, wait: float = 0) -> Manifest:
    """A job of a few parts that hold the settings of the run that wrote them."""

    def work(output: Owned) -> Manifest:
        files = []
        output.write(NOTE, b"begun")
        for part in range(PARTS):
            note = f"_work/receipts/{output.begun}/{part}"
            if not output.exists(note):
                name = f"part-{part:05d}-{size}.parquet"
                output.write(name, f"{size} {part}".encode())
                output.write(note, name.encode())
            name = output.read(note).decode()
            files.append(entry_of(name, output.read(name)))
        listed = {entry.name for entry in files}
        for name in output.files():
            if name.startswith("part-") and name not in listed:
                output.remove(name)
        return Manifest(kind="features", config={"size": size}, files=files)

    identity = {"size": size}
    return produce(
        folder, "features", identity, work, sources=[], notes=[NOTE], overwrite=overwrite, wait=wait
    )


def _holds(folder: Folder, size: int) -> None:
    """Assert that a folder is one run's artifact, whole, and has nothing else."""
    manifest = read_manifest(folder, "features")
    assert manifest.config == {"size": size}
    assert sorted(folder.sizes()) == sorted([NAME, *(f.name for f in manifest.files)])
    contents = [read_file(folder, entry).decode() for entry in manifest.files]
    assert contents == [f"{size} {part}" for part in range(PARTS)]
    if not folder.is_s3:
        assert not Path(folder.path("_work")).exists()


def test_a_job_leaves_its_artifact_alone(folder: Folder) -> None:
    first = _make(folder, 96)
    _holds(folder, 96)
    assert _make(folder, 96) == first
    with pytest.raises(UserError, match=r"size: 96 there, 128 now"):
        _make(folder, 128)
    _make(folder, 128, overwrite=True)
    _holds(folder, 128)


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_second_run_is_refused_at_once(folder: Folder, overwrite: bool) -> None:
    with begun(folder, "features", {"size": 96}) as owned:
        assert isinstance(owned, Owned)
        began = time.monotonic()
        said = rf"process {os.getpid()} on .* works there since 20.*--wait SECONDS"
        with pytest.raises(UserError, match=said):
            _make(folder, 128 if overwrite else 96, overwrite)
        assert time.monotonic() - began < 10
        owned.write("part-00000.parquet", b"goes on")
    assert [name for name in folder.sizes() if LEASES in name] == []


def test_one_waits_for_the_other(folder: Folder) -> None:
    first = threading.Event()

    def other() -> None:
        with begun(folder, "features", {"size": 96}) as owned:
            assert isinstance(owned, Owned)
            first.set()
            time.sleep(1.5)
            files = [entry_of("part", b"96")]
            owned.write("part", b"96")
            publish(owned, Manifest(kind="features", config={"size": 96}, files=files))

    thread = threading.Thread(target=other)
    thread.start()
    assert first.wait(30)
    manifest = _make(folder, 96, wait=60)
    thread.join()
    assert [entry.name for entry in manifest.files] == ["part"]


def test_of_many_that_come_at_once_one_owns(folder: Folder, request: pytest.FixtureRequest) -> None:
    """Where the store can tell: rclone's cannot, and there the last that came does."""
    gate, owned, refused = threading.Barrier(8), [], []

    def come() -> None:
        gate.wait()
        with contextlib.ExitStack() as stack:
            try:
                owned.append(stack.enter_context(owning(folder)))
            except UserError:
                refused.append(1)
            gate.wait()

    threads = [threading.Thread(target=come) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(owned) + len(refused) == 8
    exclusive = "S3-" not in f"{request.node.callspec.id}-" or "conditional" in request.node.name
    assert all(one.exclusive == exclusive for one in owned)
    assert len(owned) == 1 or not exclusive


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_file_is_made_once(
    folder: Folder, overwrite: bool, request: pytest.FixtureRequest
) -> None:
    name = "deep/in [it]/x"
    assert folder.find(name) is folder.modified(name) is None
    assert folder.create(name, b"one")
    if "S3" in request.node.name and "conditional" not in request.node.name:
        return
    assert not folder.create(name, b"two")
    assert folder.find(name) == b"one"
    if folder.is_s3:  # the reply was lost, and what is there is one's own
        assert folder.create(name, b"one")


def test_where_there_are_no_hard_links_a_file_is_made_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(*_: Any) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", none)
    folder = Folder(str(tmp_path))
    assert folder.create("x", b"one")
    assert not folder.create("x", b"two")
    assert folder.read("x") == b"one"
    _make(folder.below("out"), 96)
    _holds(folder.below("out"), 96)


def test_in_another_working_folder_it_is_the_same_output(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with owning(Folder("out")) as owned:
        sent = pickle.dumps(owned)
        (tmp_path / "elsewhere").mkdir()
        monkeypatch.chdir(tmp_path / "elsewhere")
        there = pickle.loads(sent)
        there.write("x", b"1")
        there.below("y").write("z", b"2")
        assert owned.read("x") == b"1"
        assert owned.read("y/z") == b"2"


@pytest.mark.parametrize("made", ["_work/owners/README.txt", "family.jpg", "_work/x"])
@pytest.mark.parametrize("overwrite", [False, True])
def test_what_is_not_ours_is_never_removed(folder: Folder, made: str, overwrite: bool) -> None:
    """Though a run that was killed before it wrote anything has left its claim."""
    folder.create(f"{CLAIMS}/000001", b"{}")
    folder.write(made, b"precious")
    if made.startswith(CLAIMS):
        folder.write("thesis.tex", b"precious")
    with pytest.raises(UserError, match=r"holds no imgray artifact|not an imgray artifact"):
        _make(folder, 96, overwrite)
    assert folder.read(made) == b"precious"


def test_who_waits_may_overwrite(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the one tidies up is not what the other has begun."""
    for size in (96, 128, 160):
        threads = [
            threading.Thread(target=_make, args=(folder, size + n, True, 60)) for n in range(2)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        _holds(folder, _size(folder))
        assert _size(folder) in (size, size + 1)


def test_a_lease_from_the_future_ends_no_other(folder: Folder, tmp_path: Path) -> None:
    with owning(folder):
        folder.write(f"{LEASES}/00000000", b"")
        if not folder.is_s3:
            os.utime(folder.path(f"{LEASES}/00000000"), (2e9, 2e9))
        with pytest.raises(UserError, match="works there"), owning(folder):
            pass


def test_a_process_that_cannot_be_seen_lives(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where /proc hides those of other users."""
    with owning(folder):
        monkeypatch.setattr(owner, "_state", lambda _: [])
        with pytest.raises(UserError, match="works there"), owning(folder):
            pass


def test_the_reason_is_told_though_the_lease_cannot_be_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*_: Any) -> None:
        raise UserError("the store is away")

    def work() -> None:
        with owning(Folder(str(tmp_path / "out"))):
            monkeypatch.setattr(Folder, "remove", away)
            raise UserError("the true reason")

    with pytest.raises(UserError, match="the true reason"):
        work()


def test_who_has_been_taken_over_from_writes_no_more(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(owner, "LOOKED", 0.0)
    with owning(folder) as late:
        folder.remove(f"{LEASES}/{late.claim.run}")
        with owning(folder) as now:
            now.write("kept", b"now")
            for act in (lambda: late.write("kept", b"late"), lambda: late.remove("kept")):
                with pytest.raises(Lost, match="taken over by process"):
                    act()
            below = late.below("deeper")
            with pytest.raises(Lost):
                below.write("x", b"late")
            assert folder.read("kept") == b"now"
            now.below("deeper").write("x", b"now")


def test_a_lease_is_over_by_the_clock_of_the_store(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(owner, "RENEWED", 100.0)
    monkeypatch.setattr(owner, "DEAD", 1.0)
    monkeypatch.setattr(time, "time", lambda: 0.0)  # nobody asks this machine's clock
    with owning(folder) as late:
        with pytest.raises(UserError, match="works there"), owning(folder):
            pass
        with owning(folder, patience=20) as now:
            assert newest_claim(folder) == (2, now.claim)
            with pytest.raises(Lost):
                late.check()


def test_a_lease_is_renewed(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(owner, "RENEWED", 0.2)
    with owning(folder) as owned:
        lease = f"{LEASES}/{owned.claim.run}"
        first, end = folder.modified(lease), time.monotonic() + 20
        while folder.modified(lease) == first and time.monotonic() < end:
            time.sleep(0.1)
        assert folder.modified(lease) > first


def test_a_run_whose_process_has_gone_is_over_at_once(folder: Folder) -> None:
    """Killed on this machine: nobody waits for its lease."""

    def work() -> None:
        with owning(folder):
            os.kill(os.getpid(), signal.SIGKILL)

    child = fork.Process(target=work) if not folder.is_s3 else None
    if child is None:
        pytest.skip("a process that is forked cannot share a connection")
    child.start()
    child.join()
    assert child.exitcode == -signal.SIGKILL
    dead = newest_claim(folder)
    assert dead
    assert folder.sizes(LEASES)
    with owning(folder) as owned:
        assert newest_claim(folder) == (2, owned.claim)


@pytest.mark.parametrize("content", [b"", b"{", b'{"number": "x"}'])
def test_a_damaged_claim_binds_nobody(folder: Folder, content: bytes) -> None:
    folder.write(f"{CLAIMS}/000007", content)
    with owning(folder) as owned:
        assert newest_claim(folder) == (8, owned.claim)


killed = pytest.mark.parametrize(
    "folder", ["disk", pytest.param("conditional S3", marks=pytest.mark.sweep)], indirect=True
)
"""Without rclone's S3, which hangs where folders that were removed come anew."""


def _left(folder: Folder, before: str, into: Path) -> Iterator[None]:
    """An output as a kill at each change leaves it, of a job that overwrites what was before."""
    if before != "nothing":
        _make(folder, 96)
    if before == "unfinished":
        manifest = json.loads(folder.read(NAME))
        folder.remove(NAME)
        folder.write("_work/run.json", json.dumps(manifest["config"]).encode())
    return left_by_kills(folder, partial(_make, folder, 128, before != "nothing"), 16, into)


@killed
@pytest.mark.parametrize("before", ["nothing", "finished", "unfinished"])
def test_killed_at_any_change_a_rerun_ends_as_if_nothing_had_been(
    folder: Folder, tmp_path: Path, before: str
) -> None:
    overwrite = before != "nothing"
    for _ in _left(folder, before, tmp_path / "copies"):
        started = folder.exists("_work/run.json") or not folder.exists(NAME)
        other = started and b'"size": 96' in (
            folder.read("_work/run.json") if folder.exists("_work/run.json") else b""
        )
        again = overwrite and (other or (folder.exists(NAME) and _size(folder) == 96))
        _make(folder, 128, overwrite=again)
        _holds(folder, 128)


def _size(folder: Folder) -> int:
    size: int = read_manifest(folder).config["size"]
    return size


@killed
def test_killed_in_overwriting_it_is_overwritten_again(folder: Folder, tmp_path: Path) -> None:
    for _ in _left(folder, "finished", tmp_path / "copies"):
        _make(folder, 160, overwrite=True)
        _holds(folder, 160)
