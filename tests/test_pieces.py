"""What a collection is listed in, a piece after the other: kept, made once and never anew."""

import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from growing import (
    NAMES,
    PIECE,
    SHARD,
    check,
    ids,
    make,
    make_until,
    pieces_in,
    refuse,
    stop_after,
    write_files,
)

from imgray.artifacts.folder import Folder
from imgray.artifacts.owner import Lost, Owned, owning
from imgray.artifacts.walk import Entry, Skipped
from imgray.engine import collection as collections
from imgray.engine import earlier, growing
from imgray.engine.earlier import VANISHED
from imgray.engine.pieces import Known, Pieces, in_order
from imgray.errors import UserError

pytestmark = pytest.mark.usefixtures("in_small_pieces")


def test_what_is_in_a_piece_is_never_listed_anew(
    images: Path, output: Folder, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """Whatever came and went meanwhile; the counts of what was passed over hold for all runs."""
    for place in ("a", "c"):
        (images / place / "notes.txt").write_text("")
    with monkeypatch.context() as patch:
        patch.setattr(collections, "_run", lambda *_: iter(()))
        stop_after(patch, 3, UserError("the store is away"))
        with pytest.raises(UserError, match="the store is away"):
            make(images, output)
    kept, every = pieces_in(output), sorted(NAMES)
    assert len(kept) == 3
    frozen, later = every[: 3 * PIECE], every[3 * PIECE :]
    write_files(images, ["a/000.jpg", "z.jpg", f"{later[0]}.jpg"])
    for gone in (frozen[1], later[2]):
        (images / gone).unlink()
    with monkeypatch.context() as patch:
        stop_after(patch, 5, KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            make(images, output)
    assert {name: data for name, data in pieces_in(output).items() if name in kept} == kept
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
    make_until(2, images, output)
    kept = pieces_in(output)
    images.write("a/000.jpg", b"before")
    images.write("z.jpg", b"after")
    make_until(3, images, output)
    assert {name: data for name, data in pieces_in(output).items() if name in kept} == kept
    make(images, output)
    assert check(output) == sorted([*NAMES[:18], "z.jpg"])


def test_an_inventory_goes_on_with_what_was_listed(images: Path, output: Folder) -> None:
    make_until(3, images, output)
    every = sorted([*NAMES, "a/000.jpg", "z.jpg"])
    report = SimpleNamespace(entries=lambda *_: (Entry(id, 1) for id in every))
    write_files(images, ["z.jpg"])
    make(images, output, inventory=report)
    assert check(output) == sorted([*NAMES, "z.jpg"])


def test_once_it_is_whole_a_later_run_lists_nothing(
    images: Path, output: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed after the listing, or between its last piece and the file of all."""
    with monkeypatch.context() as patch:
        patch.setattr(growing, "write_tables", lambda *_: refuse(UserError("full")))
        with pytest.raises(UserError, match="full"):
            make(images, output)
    kept = pieces_in(output)
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
            kept = pieces_in(output)
            with pytest.raises(Lost, match="taken over"):
                slow.add([Entry("x", 1)], {})
            with pytest.MonkeyPatch.context() as patch:  # it has looked just before
                patch.setattr(Owned, "hold", lambda *_: None)
                with pytest.raises(UserError, match="another run made it"):
                    slow.add([Entry("x", 1)], {})
                assert pieces_in(output) == kept
                Pieces(late).add([Entry("y", 1)], {})
            with pytest.raises(UserError, match="another run made it; run it again to go on"):
                fast.add(entries[2 * PIECE :], {})
            assert Pieces(now).known == Known(2 * PIECE + 1, True, 3)


def test_a_damaged_piece_is_named(images: Path, output: Folder) -> None:
    make_until(3, images, output)
    name = max(pieces_in(output))
    output.write(name, b"PAR1")
    with pytest.raises(UserError, match=r"000002.parquet: damaged; start anew with --overwrite"):
        make(images, output)


def test_a_piece_half_written_is_listed_anew(images: Path, output: Folder) -> None:
    """As a kill leaves it where there are no hard links."""
    make_until(3, images, output)
    name = max(pieces_in(output))
    output.write(name, output.read(name)[:-5])
    make(images, output)
    assert check(output) == sorted(NAMES)


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
    make_until(2, images, output, shard_size=size)
    kept = pieces_in(output)
    images.rename(images.with_name("mounted elsewhere"))
    images.mkdir()
    with pytest.raises(UserError, match=r"nothing is there any more|cannot read"):
        make(images, output, shard_size=size)
    assert pieces_in(output) == kept
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
        make_until(2, images, second, other_than=[first.uri])
        assert len(pieces_in(second)) == 2
    make(images, second, other_than=[first.uri])
    assert check(second) == fresh
    assert ids(second, VANISHED) == every[1::6]
    assert "15 images are as they were listed before" in capsys.readouterr().err


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
        patch.setattr(growing, "write_tables", lambda *_: refuse(UserError("full")))
        with pytest.raises(UserError, match="full"):
            make(images, second, other_than=[first.uri])
    make(images, second, other_than=[first.uri])
    assert check(second) == every[::3]
    assert ids(second, VANISHED) == every[1::6]
    assert "15 images are as they were listed before" in capsys.readouterr().err
