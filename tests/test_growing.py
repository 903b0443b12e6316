"""Work begins while a folder is listed: in pieces that are kept, each made once and never anew."""

import contextlib
import io
import os
import random
import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import inprocess
import pyarrow.parquet as pq
import pytest
from growing import PIECE, SHARD, check, ids, make, write_files
from kills import fork, left_by_kills

from imgray.artifacts import owner
from imgray.artifacts.folder import Folder
from imgray.artifacts.manifest import NAME
from imgray.artifacts.owner import Lost, Owned, owning
from imgray.artifacts.walk import Entry, Skipped
from imgray.engine import collection as collections
from imgray.engine import earlier, growing, listing, producer
from imgray.engine import pieces as module
from imgray.engine.earlier import VANISHED
from imgray.engine.frozen import LISTED
from imgray.engine.growing import SHARE, Growing
from imgray.engine.pieces import PIECES, Known, Pieces, in_order
from imgray.engine.progress import Progress
from imgray.errors import UserError

NAMES = [f"{'abc'[n % 3]}{'/deep' * (n % 2)}/{n:02d}.jpg" for n in range(30)]


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(module, "GROUP", PIECE)
    monkeypatch.setattr(listing, "GROUP", PIECE)
    monkeypatch.setattr(growing, "GRACE", 0.0)
    with inprocess.jobs():
        yield


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return write_files(tmp_path / "images", NAMES)


@pytest.fixture
def output(tmp_path: Path) -> Folder:
    return Folder(str(tmp_path / "out"))


def _kept(output: Folder) -> dict[str, bytes]:
    """The pieces, by name, as they lie there."""
    names = [name for name in output.sizes(PIECES) if name.endswith(".parquet")]
    return {name: output.read(name) for name in names}


def _raise(error: BaseException) -> Any:
    raise error


def _stop_after(patch: pytest.MonkeyPatch, pieces: int, error: BaseException) -> None:
    """Have the listing end with an error before it keeps another piece."""
    add = Pieces.add

    def stopping(self: Pieces, *given: Any) -> None:
        if self.known.pieces == pieces:
            raise error
        add(self, *given)

    patch.setattr(Pieces, "add", stopping)


def _make_until(pieces: int, *given: Any, **how: Any) -> None:
    """`make`, while its listing keeps so many pieces, and then its store is away."""
    with pytest.MonkeyPatch.context() as patch:
        _stop_after(patch, pieces, UserError("away"))
        with pytest.raises(UserError, match="away"):
            make(*given, **how)


@pytest.mark.parametrize("count", [1, PIECE, PIECE + 1, 2 * PIECE, 30])
def test_it_makes_to_the_byte_what_a_whole_listing_makes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int, capsys: Any
) -> None:
    images = write_files(tmp_path / "images", NAMES[:count])
    (images / "notes.txt").write_text("")
    whole, grown, added = Folder(str(tmp_path / "whole")), Folder(str(tmp_path / "grown")), []
    with monkeypatch.context() as patch:
        patch.setattr(module, "GROUP", 100)
        make(images, whole)
    said = capsys.readouterr().err
    add = Pieces.add
    monkeypatch.setattr(Pieces, "add", lambda *given: (added.append(1), add(*given)))
    make(images, grown)
    assert len(added) == (count // PIECE + 1 if count > PIECE else 0)
    assert check(grown) == sorted(NAMES[:count])
    assert {n: grown.read(n) for n in grown.sizes()} == {n: whole.read(n) for n in whole.sizes()}
    if count <= PIECE:
        assert capsys.readouterr().err.splitlines()[:-1] == said.splitlines()[:-1]
    else:
        assert "passed over 1: 1 .txt" in capsys.readouterr().err


def test_work_begins_before_the_listing_ends(
    images: Path, output: Folder, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """The folder tells of no more than two pieces until all of their shards are done."""
    begun, walk, run = threading.Event(), Folder.walk, collections._run

    def slowly(self: Folder, *given: Any) -> Iterator[Entry]:
        for number, entry in enumerate(walk(self, *given)):
            assert number <= 2 * PIECE or begun.wait(20)
            yield entry

    def running(pending: list[Any], *given: Any) -> Iterator[Any]:
        yield from run(pending, *given)
        if pending and pending[-1][0] == 2 * PIECE // SHARD - 1:
            begun.set()

    monkeypatch.setattr(Folder, "walk", slowly)
    monkeypatch.setattr(collections, "_run", running)
    make(images, output)
    assert check(output) == sorted(NAMES)
    assert capsys.readouterr().err.splitlines()[-1].startswith("read: 30 / 30 images (100%), ")


def test_what_is_in_a_piece_is_never_listed_anew(
    images: Path, output: Folder, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """Whatever came and went meanwhile; the counts of what was passed over hold for all runs."""
    for place in ("a", "c"):
        (images / place / "notes.txt").write_text("")
    with monkeypatch.context() as patch:
        patch.setattr(collections, "_run", lambda *_: iter(()))
        _stop_after(patch, 3, UserError("the store is away"))
        with pytest.raises(UserError, match="the store is away"):
            make(images, output)
    kept, every = _kept(output), sorted(NAMES)
    assert len(kept) == 3
    frozen, later = every[: 3 * PIECE], every[3 * PIECE :]
    write_files(images, ["a/000.jpg", "z.jpg", f"{later[0]}.jpg"])
    for gone in (frozen[1], later[2]):
        (images / gone).unlink()
    with monkeypatch.context() as patch:
        _stop_after(patch, 5, KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            make(images, output)
    assert {name: data for name, data in _kept(output).items() if name in kept} == kept
    capsys.readouterr()
    make(images, output)
    expected = {*every, "z.jpg", f"{later[0]}.jpg"} - {later[2]}
    assert check(output) == sorted(expected)
    assert ids(output, "rejected/") == [frozen[1]]
    assert "passed over 2: 2 .txt" in capsys.readouterr().err


def test_wherever_it_lies_a_later_run_goes_on(folder: Folder) -> None:
    """S3 is asked for what comes after the last id; what a store gives all the same is left out."""
    images, output = folder.below("images"), folder.below("out")
    for name in NAMES[:18]:
        images.write(name, name.encode())
    _make_until(2, images, output)
    kept = _kept(output)
    images.write("a/000.jpg", b"before")
    images.write("z.jpg", b"after")
    _make_until(3, images, output)
    assert {name: data for name, data in _kept(output).items() if name in kept} == kept
    make(images, output)
    assert check(output) == sorted([*NAMES[:18], "z.jpg"])


def test_an_inventory_goes_on_with_what_was_listed(images: Path, output: Folder) -> None:
    _make_until(3, images, output)
    every = sorted([*NAMES, "a/000.jpg", "z.jpg"])
    report = SimpleNamespace(entries=lambda *_: (Entry(id, 1) for id in every))
    write_files(images, ["z.jpg"])
    make(images, output, inventory=report)
    assert check(output) == sorted([*NAMES, "z.jpg"])


def test_a_listing_that_fails_ends_the_job_and_loses_nothing(
    images: Path, output: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    walk = Folder.walk

    def failing(self: Folder, *given: Any) -> Iterator[Entry]:
        for number, entry in enumerate(walk(self, *given)):
            if number == 2 * PIECE + 1:
                raise UserError("cannot list: slow down")
            yield entry

    with monkeypatch.context() as patch:
        patch.setattr(Folder, "walk", failing)
        with pytest.raises(UserError, match="cannot list: slow down"):
            make(images, output)
        assert len(_kept(output)) == 2
        with pytest.raises(UserError, match="cannot list: slow down"):
            make(images, output)
    make(images, output)
    assert check(output) == sorted(NAMES)


def test_before_the_first_piece_a_refusal_leaves_nothing(
    images: Path, output: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    _stop_after(monkeypatch, 0, UserError("denied"))
    with pytest.raises(UserError, match="denied"):
        make(images, output)
    assert not output.exists("")


@pytest.mark.parametrize("listed", [False, True], ids=["pieces", "pieces and file"])
def test_what_was_rejected_is_tried_again(
    images: Path, output: Folder, monkeypatch: pytest.MonkeyPatch, capsys: Any, listed: bool
) -> None:
    bad = sorted(NAMES)[2], sorted(NAMES)[-1]
    for name in bad:
        (images / name).write_text("bad")
    with monkeypatch.context() as patch:
        patch.setattr(producer, "publish", lambda *_: _raise(UserError("away")))
        with pytest.raises(UserError, match="away"):
            make(images, output)
    if not listed:
        output.remove(LISTED)
    for name in bad:
        (images / name).write_text(name)
    make(images, output, retry=True)
    assert "tries again what was rejected in 2 of 10 shards" in capsys.readouterr().err
    assert check(output) == sorted(NAMES)
    assert not ids(output, "rejected/")


def test_once_it_is_whole_a_later_run_lists_nothing(
    images: Path, output: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed after the listing, or between its last piece and the file of all."""
    with monkeypatch.context() as patch:
        patch.setattr(growing, "write_tables", lambda *_: _raise(UserError("full")))
        with pytest.raises(UserError, match="full"):
            make(images, output)
    kept = _kept(output)
    assert len(kept) == 8
    write_files(images, ["z.jpg"])
    make(images, output)
    assert check(output) == sorted(NAMES)


def test_a_piece_is_made_once(output: Folder) -> None:
    """Whoever comes late changes none, and who finds another's goes on from it when run again."""
    entries = [Entry(f"{n:02d}", n) for n in range(3 * PIECE)]
    with owning(output) as late:
        Pieces(late).begin(iter(entries), Skipped())
        slow = Pieces(late)
        output.remove(f"_work/leases/{late.claim.run}")
        with owning(output) as now:
            fast = Pieces(now)
            fast.add(entries[PIECE : 2 * PIECE], {})
            kept = _kept(output)
            with pytest.raises(Lost, match="taken over"):
                slow.add([Entry("x", 1)], {})
            with pytest.MonkeyPatch.context() as patch:  # it has looked just before
                patch.setattr(Owned, "hold", lambda *_: None)
                with pytest.raises(UserError, match="another run made it"):
                    slow.add([Entry("x", 1)], {})
                assert _kept(output) == kept
                Pieces(late).add([Entry("y", 1)], {})
            with pytest.raises(UserError, match="another run made it; run it again to go on"):
                fast.add(entries[2 * PIECE :], {})
            assert Pieces(now).known == Known(2 * PIECE + 1, True, 3)


def test_a_damaged_piece_is_named(images: Path, output: Folder) -> None:
    _make_until(3, images, output)
    name = max(_kept(output))
    output.write(name, b"PAR1")
    with pytest.raises(UserError, match=r"000002.parquet: damaged; start anew with --overwrite"):
        make(images, output)


def test_names_out_of_order_are_not_lost_in_silence() -> None:
    def found(names: str, after: str = "") -> str:
        return "".join(entry.id for entry in in_order([Entry(n, 0) for n in names], after, "here"))

    assert found("abcdef") == "abcdef"
    assert found("abcdef", "c") == "def"
    assert found("def", "c") == "def"
    with pytest.raises(UserError, match="here: 'b' was listed after 'd', out of order"):
        found("adbc")
    with pytest.raises(UserError, match="'d' was listed after 'd'"):
        found("dd", "c")


def test_workers_start_anew_rarely() -> None:
    """However slow the listing is: of 2^30 images, a piece at a time."""
    unused: Any = None
    slow = Growing(Pieces(Folder("/nowhere")), iter(()), Skipped(), unused, unused)
    batches, given = 0, Known()
    for pieces in range(1, 2**14 + 1):
        slow.pieces.known = Known(pieces=pieces)
        if slow._enough(given):
            batches, given = batches + 1, slow.pieces.known
    assert batches < 50
    assert given.pieces > 2**14 * (1 - 1 / SHARE)


def test_only_full_shards_are_given_before_the_end() -> None:
    unused: Any = None
    slow = Growing(Pieces(Folder("/nowhere")), iter(()), Skipped(), unused, unused)
    given = slow.shards(3, unused)
    for known, ready in (
        (Known(4, False, 1), range(0, 1)),
        (Known(8, False, 2), range(1, 2)),
        (Known(12, False, 3), range(2, 4)),
        (Known(13, True, 4), range(4, 5)),
    ):
        slow.pieces.known = known
        assert next(given) == (known, ready)
    assert list(given) == []


def test_a_listing_that_ends_soon_is_waited_for(
    images: Path, output: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then workers start once."""
    batches: list[int] = []
    run = collections._run
    monkeypatch.setattr(growing, "GRACE", 60.0)
    monkeypatch.setattr(
        collections, "_run", lambda some, *given: (batches.append(len(some)), run(some, *given))[1]
    )
    make(images, output)
    assert batches == [10]


def test_while_the_listing_is_waited_for_it_is_told_of(
    images: Path, output: Folder, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """The folder tells of no more than two pieces until that was."""
    walk, told = Folder.walk, threading.Event()

    def slowly(self: Folder, *given: Any) -> Iterator[Entry]:
        for number, entry in enumerate(walk(self, *given)):
            assert number < 2 * PIECE or told.wait(20)
            yield entry

    class Telling(Progress):
        def add(self, done: int, rejected: int = 0) -> None:
            super().add(done, rejected)
            if not done:
                told.set()

    monkeypatch.setattr(Folder, "walk", slowly)
    monkeypatch.setattr(growing, "TICK", 0.01)
    monkeypatch.setattr(collections, "Progress", Telling)
    monkeypatch.setattr("imgray.engine.progress.LOG_SECONDS", 0.0)
    make(images, output)
    assert check(output) == sorted(NAMES)
    assert re.search(r"^read: \d of \d images so far, ", capsys.readouterr().err, re.MULTILINE)


def test_a_whole_listing_says_how_far_it_is(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """With `--except` what is listed may all be known before work begins."""
    first, second = Folder(str(tmp_path / "first")), Folder(str(tmp_path / "second"))
    make(images, first)
    (images / "new.jpg").write_text("new")
    monkeypatch.setattr("imgray.engine.progress.LOG_SECONDS", 0.0)
    make(images, second, other_than=[first.uri])
    said = [line for line in capsys.readouterr().err.splitlines() if "listed" in line]
    assert said[:31] == [f"{images}: listed {n} so far" for n in range(31)]


def test_progress_says_how_far_the_listing_is(capsys: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr("imgray.engine.progress.LOG_SECONDS", 0.0)
    progress = Progress("read", 8, 3, whole=False)
    progress.add(5)
    progress.grow(12, False)
    progress.add(4, 1)
    progress.grow(12, True)
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(",")[0] for line in lines] == [
        "read: 8 of 8 images so far", "read: 12 of 12 images so far", "read: 12 / 12 images (100%)",
    ]  # fmt: skip
    assert "left" not in lines[1]
    assert lines[1].endswith("/s, 1 rejected")


@pytest.mark.parametrize("stopped", [False, True])
def test_what_vanished_is_told_of_all_that_there_is(
    images: Path, output: Folder, monkeypatch: pytest.MonkeyPatch, stopped: bool, capsys: Any
) -> None:
    """A later run looks again at all of it, and keeps what is in pieces."""
    monkeypatch.setattr(earlier, "GROUP", 7)
    first, every = output.below("first"), sorted(NAMES)
    make(images, first)
    for name in every[::3]:
        (images / name).write_text("changed")
    for name in every[1::6]:
        (images / name).unlink()
    write_files(images, ["a/000.jpg", "b/zz.jpg", "z.jpg"])
    fresh = sorted([*every[::3], "a/000.jpg", "b/zz.jpg", "z.jpg"])
    second = output.below("second")
    if stopped:
        _make_until(2, images, second, other_than=[first.uri])
        assert len(_kept(second)) == 2
    make(images, second, other_than=[first.uri])
    assert check(second) == fresh
    assert ids(second, VANISHED) == every[1::6]
    assert "15 images are as they were listed before" in capsys.readouterr().err


@pytest.mark.chaos
def test_killed_at_any_change_a_rerun_does_every_image_once(tmp_path: Path, output: Folder) -> None:
    """Though files come and go meanwhile; until it has begun, see `test_owner`."""
    names, gone = [f"{n:02d}.jpg" for n in range(18)], {"05.jpg", "15.jpg"}
    images = write_files(tmp_path / "images", names)
    copies = tmp_path / "copies"
    for _ in left_by_kills(output, lambda: make(images, output, shard_size=9), 50, copies):
        kept = {} if output.exists(NAME) else _kept(output)
        pieces = (pq.read_table(io.BytesIO(data)) for _, data in sorted(kept.items()))
        frozen = [id for piece in pieces for id in piece["id"].to_pylist()]
        for name in gone:
            (images / name).unlink(missing_ok=True)
        write_files(images, ["045.jpg", "155.jpg"])
        make(images, output, shard_size=9)
        listed = check(output)
        assert listed[: len(frozen)] == frozen
        assert set(names) - gone <= set(listed)
        assert set(ids(output, "rejected/")) <= gone


def _dawdle(patch: pytest.MonkeyPatch, seed: int, seconds: float) -> None:
    """Before a piece is kept, and after it was asked who owns the output."""
    chance, create = random.Random(seed), Folder.create

    def slow(*given: Any) -> bool:
        time.sleep(chance.uniform(seconds / 2, seconds))
        return create(*given)

    patch.setattr(Folder, "create", slow)


def _late_driver(images: Path, output: Folder, seed: int) -> None:
    """A job that never renews its lease."""
    with pytest.MonkeyPatch.context() as patch:
        _dawdle(patch, seed, 0.6)
        patch.setattr(owner, "RENEWED", 100.0)
        try:
            make(images, output)
        except UserError:
            os._exit(2)
    os._exit(0)


@pytest.mark.chaos
@pytest.mark.parametrize("seed", range(3))
def test_of_two_drivers_one_lists(
    tmp_path: Path, output: Folder, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """The other takes over, as the first seems dead; that works on, and knows of fewer files."""
    names, more = [f"{n:02d}.jpg" for n in range(30)], ["065.jpg", "125.jpg", "235.jpg"]
    images = write_files(tmp_path / "images", names)
    monkeypatch.setattr(owner, "DEAD", 0.4)
    late = fork.Process(target=_late_driver, args=(images, output, seed))
    late.start()
    while late.is_alive() and not _kept(output):
        time.sleep(0.01)
    write_files(images, more)
    monkeypatch.setattr(owner, "RENEWED", 0.1)
    _dawdle(monkeypatch, seed, 0.15)
    with contextlib.suppress(UserError):  # the late one's piece came first
        make(images, output, wait=20)
    late.join()
    assert late.exitcode in (0, 2)
    make(images, output)  # which goes on, or tidies up what came too late
    assert set(check(output)) >= set(names)


def test_a_store_without_order_is_listed_whole(
    images: Path, output: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As S3 Express lists."""
    walk = Folder.walk
    monkeypatch.setattr(Folder, "walk", lambda *given: reversed(list(walk(*given))))
    make(images, output)
    assert ids(output, "listing.parquet") == sorted(NAMES, reverse=True)
    assert sorted(ids(output, "part-")) == sorted(NAMES)


@pytest.mark.parametrize("done", [False, True])
def test_a_folder_that_is_unmounted_has_not_ended(images: Path, output: Folder, done: bool) -> None:
    """Neither where all that was listed is done, nor where a part of it is not."""
    size = PIECE if done else SHARD
    _make_until(2, images, output, shard_size=size)
    kept = _kept(output)
    images.rename(images.with_name("mounted elsewhere"))
    images.mkdir()
    with pytest.raises(UserError, match=r"nothing is there any more|cannot read"):
        make(images, output, shard_size=size)
    assert _kept(output) == kept
    images.rmdir()
    images.with_name("mounted elsewhere").rename(images)
    make(images, output, shard_size=size)
    assert check(output) == sorted(NAMES)


def test_a_folder_that_goes_away_while_it_is_listed_loses_none(
    images: Path, output: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sub-folder that cannot be found has gone by itself only where the folder is there."""
    scandir, away = os.scandir, images.with_name("away")

    def scanned(top: str) -> Any:
        if str(top).startswith(f"{images}/b"):
            images.rename(away)
        return scandir(top)

    with monkeypatch.context() as patch:
        patch.setattr(os, "scandir", scanned)
        with pytest.raises(UserError, match=r"cannot (list|read)"):
            make(images, output)
    away.rename(images)
    make(images, output)
    assert check(output) == sorted(NAMES)


def test_what_vanished_is_told_though_all_pieces_are_there(
    images: Path, output: Folder, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """Killed when the pieces were put together."""
    first, second, every = output.below("first"), output.below("second"), sorted(NAMES)
    make(images, first)
    for name in every[::3]:
        (images / name).write_text("changed")
    for name in every[1::6]:
        (images / name).unlink()
    with monkeypatch.context() as patch:
        patch.setattr(growing, "write_tables", lambda *_: _raise(UserError("full")))
        with pytest.raises(UserError, match="full"):
            make(images, second, other_than=[first.uri])
    make(images, second, other_than=[first.uri])
    assert check(second) == every[::3]
    assert ids(second, VANISHED) == every[1::6]
    assert "15 images are as they were listed before" in capsys.readouterr().err


@pytest.mark.parametrize("first", [4, 8])
def test_two_orders_of_a_store_lose_none(
    images: Path, output: Folder, monkeypatch: pytest.MonkeyPatch, first: int
) -> None:
    """At the end of the first piece, and of the second, where the job has begun by then."""
    walk, every = Folder.walk, sorted(NAMES)

    def found(self: Folder, *given: Any) -> Iterator[Entry]:
        entries = list(walk(self, *given))
        return iter([*entries[-first:], *entries[:-first]])

    monkeypatch.setattr(Folder, "walk", found)
    if first > PIECE:
        with pytest.raises(UserError, match=r"out of order.*--inventory has to list it"):
            make(images, output)
        return
    make(images, output)
    assert ids(output, "listing.parquet") == [*every[-first:], *every[:-first]]
    assert sorted(ids(output, "part-")) == every


def test_a_piece_half_written_is_listed_anew(images: Path, output: Folder) -> None:
    """As a kill leaves it where there are no hard links."""
    _make_until(3, images, output)
    name = max(_kept(output))
    output.write(name, output.read(name)[:-5])
    make(images, output)
    assert check(output) == sorted(NAMES)


def test_what_was_rejected_is_tried_again_though_some_pieces_are_left(
    images: Path, output: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of an artifact whose notes were being removed when it was killed."""
    (images / "a/00.jpg").write_text("bad")
    kept: dict[str, bytes] = {}
    publish = producer.publish

    def publishing(owned: Any, manifest: Any) -> Any:
        kept.update(_kept(owned))
        return publish(owned, manifest)

    monkeypatch.setattr(producer, "publish", publishing)
    make(images, output)
    for name in sorted(kept)[:2]:
        output.write(name, kept[name])
    (images / "a/00.jpg").write_text("a/00.jpg")
    make(images, output, retry=True)
    assert ids(output, "rejected/") == []
    assert check(output) == sorted(NAMES)
