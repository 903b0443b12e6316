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
from typing import Any

import pyarrow.parquet as pq
import pytest
from growing import (
    NAMES,
    PIECE,
    SHARD,
    check,
    ids,
    make,
    pieces_in,
    refuse,
    stop_after,
    write_files,
)
from kills import fork, left_by_kills

from imgray.artifacts import owner
from imgray.artifacts.folder import Folder
from imgray.artifacts.manifest import NAME
from imgray.artifacts.walk import Entry, Skipped
from imgray.engine import collection as collections
from imgray.engine import extract as extraction
from imgray.engine import growing, producer
from imgray.engine import pieces as module
from imgray.engine.frozen import LISTED
from imgray.engine.growing import SHARE, Growing
from imgray.engine.pieces import Known, Pieces
from imgray.engine.progress import Progress
from imgray.engine.settings import ExtractConfig
from imgray.errors import UserError

pytestmark = pytest.mark.usefixtures("in_small_pieces")


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
        assert len(pieces_in(output)) == 2
        with pytest.raises(UserError, match="cannot list: slow down"):
            make(images, output)
    make(images, output)
    assert check(output) == sorted(NAMES)


def test_before_the_first_piece_a_refusal_leaves_nothing(
    images: Path, output: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop_after(monkeypatch, 0, UserError("denied"))
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
        patch.setattr(producer, "publish", lambda *_: refuse(UserError("away")))
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


@pytest.mark.parametrize("anew", [False, True])
def test_a_mistyped_place_costs_nothing(
    images: Path, output: Folder, monkeypatch: pytest.MonkeyPatch, anew: bool
) -> None:
    """No network is loaded, no Ray started, and no artifact removed."""
    make(images, output)
    before = {name: output.read(name) for name in output.sizes()}
    monkeypatch.setattr(extraction, "build_extractor", lambda _: pytest.fail("loaded"))
    place = output if anew else output.below("other")
    config = ExtractConfig(
        images=f"{images}e", output=place.uri, extractor=["mobilenet_v2"], overwrite=anew
    )
    with pytest.raises(UserError, match="imagese: it does not exist; check the URI"):
        extraction.extract(config)
    assert {name: output.read(name) for name in output.sizes()} == before


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


@pytest.mark.chaos
def test_killed_at_any_change_a_rerun_does_every_image_once(tmp_path: Path, output: Folder) -> None:
    """Though files come and go meanwhile; until it has begun, see `test_owner`."""
    names, gone = [f"{n:02d}.jpg" for n in range(18)], {"05.jpg", "15.jpg"}
    images = write_files(tmp_path / "images", names)
    copies = tmp_path / "copies"
    for _ in left_by_kills(output, lambda: make(images, output, shard_size=9), 50, copies):
        kept = {} if output.exists(NAME) else pieces_in(output)
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
    while late.is_alive() and not pieces_in(output):
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


def test_what_was_rejected_is_tried_again_though_some_pieces_are_left(
    images: Path, output: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of an artifact whose notes were being removed when it was killed."""
    (images / "a/00.jpg").write_text("bad")
    kept: dict[str, bytes] = {}
    publish = producer.publish

    def publishing(owned: Any, manifest: Any) -> Any:
        kept.update(pieces_in(owned))
        return publish(owned, manifest)

    monkeypatch.setattr(producer, "publish", publishing)
    make(images, output)
    for name in sorted(kept)[:2]:
        output.write(name, kept[name])
    (images / "a/00.jpg").write_text("a/00.jpg")
    make(images, output, retry=True)
    assert ids(output, "rejected/") == []
    assert check(output) == sorted(NAMES)
