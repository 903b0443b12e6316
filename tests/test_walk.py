"""Every name below a folder is listed, or named as passed over, in one order on disk and in S3."""

import os
import socket
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import S3

from imgray.artifacts.folder import Folder
from imgray.artifacts.walk import CIRCLE, HIDDEN, MARKER, NOT_UTF8, SPECIAL, Entry, Skipped, in_s3

NAMES = (
    "a.jpg", "a/x.jpg", "a/b/c.jpg", "a b/x.jpg", "a-b.jpg", "a\nb.jpg", "-x.jpg", " sp .jpg",
    "café.jpg", "cafe\u0301.jpg", "A.JPG", "~x.jpg", "a#b?c%20.jpg", "[x]*.jpg", "x" * 251 + ".jpg",
    "😀.jpg", "\uffee.jpg",
)  # fmt: skip


def _ids(folder: Folder, skipped: Skipped | None = None) -> list[str]:
    return [entry.id for entry in folder.walk((".jpg",), skipped or Skipped())]


@pytest.fixture(params=["disk", "s3"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Folder:
    if request.param == "disk":
        return Folder(str(tmp_path))
    s3: S3 = request.getfixturevalue("s3")
    return Folder(s3.uri(f"walk-{tmp_path.name.replace('_', '-')}"[:60]))


def test_names_are_listed_in_the_order_of_their_bytes(folder: Folder) -> None:
    names = [n for n in NAMES if not (folder.is_s3 and n in ("a\nb.jpg", "[x]*.jpg"))]
    for name in names:
        folder.write(name, b"x")
    assert _ids(folder) == sorted(names, key=str.encode)
    assert [folder.read(name) for name in names] == [b"x"] * len(names)


def test_it_goes_on_after_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether that is there or not; folders that lie before it are not read."""
    folder = Folder(str(tmp_path))
    names = sorted([*NAMES, "b/.hidden.jpg", "b/c/x.jpg", "b/c/y.txt", "b/d.jpg"], key=str.encode)
    for name in names:
        folder.write(name, b"x")
    every = _ids(folder)
    for after in (*names, "", "a", "a/", "b/c", "b/c/xx", "b0", "~~", "\uffff"):
        skipped = Skipped()
        found = [entry.id for entry in folder.walk((".jpg",), skipped, after)]
        assert found == [id for id in every if id.encode() > after.encode()], after
        assert skipped.counts == {
            kind: 1
            for kind, name in ((HIDDEN, "b/.hidden.jpg"), (".txt", "b/c/y.txt"))
            if name > after
        }
    read: list[str] = []
    scan = os.scandir
    monkeypatch.setattr(os, "scandir", lambda top: (read.append(top), scan(top))[1])
    list(folder.walk((".jpg",), Skipped(), "b/c/x.jpg"))
    assert [os.path.relpath(top, tmp_path) for top in read] == [".", "b", "b/c"]


def test_what_is_new_has_another_version(folder: Folder) -> None:
    def versions() -> dict[str, str]:
        return {entry.id: entry.version for entry in folder.walk((".jpg",), Skipped())}

    folder.write("a.jpg", b"1")
    folder.write("b.jpg", b"1")
    before = versions()
    folder.write("b.jpg", b"2")
    after = versions()
    assert before["a.jpg"] == after["a.jpg"] != ""
    assert before["b.jpg"] != after["b.jpg"]


def test_links_pipes_and_odd_names_are_followed_or_named(tmp_path: Path) -> None:
    inside, outside = tmp_path / "in", tmp_path / "out"
    for path in (inside / "deep", outside):
        path.mkdir(parents=True)
        (path / "x.jpg").write_bytes(b"12345")
    os.symlink(outside, inside / "linked")
    os.symlink(outside / "x.jpg", inside / "file.jpg")
    os.symlink("none", inside / "nowhere.jpg")
    os.symlink(inside, inside / "deep" / "circle")
    os.symlink("self.jpg", inside / "self.jpg")
    os.mkfifo(inside / "pipe.jpg")
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(inside / "bound.jpg"))
    (inside / ".hidden").mkdir()
    Path(os.fsdecode(os.fsencode(inside) + b"/caf\xe9.jpg")).write_bytes(b"x")
    skipped = Skipped()
    assert _ids(Folder(str(inside)), skipped) == [
        "deep/x.jpg", "file.jpg", "linked/x.jpg", "nowhere.jpg",
    ]  # fmt: skip
    assert skipped.counts == {CIRCLE: 2, SPECIAL: 2, HIDDEN: 1, NOT_UTF8: 1}


def _answering(pages: list[dict[str, Any]], asked: list[dict[str, Any]]) -> Any:
    def call_s3(method: str, **wanted: Any) -> dict[str, Any]:
        assert method == "list_objects_v2"
        asked.append(wanted)
        return pages[len(asked) - 1]

    return SimpleNamespace(call_s3=call_s3)


def test_every_key_of_s3_is_listed_or_named() -> None:
    """Keys that rclone cannot hold: empty segments, markers of folders, the prefix itself."""
    keys = ["p/", "p//x.jpg", "p/a//x.jpg", "p/a/", "p/.git/x.jpg", "p/a/../x.jpg", "p/b\n.jpg"]
    pages: list[dict[str, Any]] = [
        {
            "Contents": [{"Key": key, "Size": 3, "ETag": '"e"'} for key in some],
            "IsTruncated": number < 2,
            "NextContinuationToken": f"t{number}",
        }
        for number, some in enumerate((keys[:4], [], keys[4:]))
    ]
    asked: list[dict[str, Any]] = []
    skipped = Skipped()
    found = list(in_s3(_answering(pages, asked), "bucket/p", skipped))
    assert found == [Entry(id, 3, "e") for id in ("/x.jpg", "a//x.jpg", "b\n.jpg")]
    assert skipped.counts == {MARKER: 2, HIDDEN: 2}
    assert [one.get("ContinuationToken") for one in asked] == [None, "t0", "t1"]
    assert {(one["Bucket"], one["Prefix"]) for one in asked} == {("bucket", "p/")}


def test_s3_is_asked_for_what_comes_after_a_name() -> None:
    asked: list[dict[str, Any]] = []
    page = {"Contents": [{"Key": "p/b.jpg", "Size": 1}]}
    found = in_s3(_answering([page], asked), "bucket/p", Skipped(), "a.jpg")
    assert [entry.id for entry in found] == ["b.jpg"]
    assert asked[0]["StartAfter"] == "p/a.jpg"


def test_the_first_name_comes_before_the_last_is_asked_for() -> None:
    asked: list[dict[str, Any]] = []
    page = {"Contents": [{"Key": "a.jpg", "Size": 1}], "IsTruncated": True}
    found = in_s3(_answering([page | {"NextContinuationToken": "t"}], asked), "bucket", Skipped())
    assert next(found) == Entry("a.jpg", 1)
    assert len(asked) == 1


def test_a_file_that_goes_while_it_is_listed_is_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a.jpg", "b.jpg"):
        (tmp_path / name).write_bytes(b"x")
    found = Folder(str(tmp_path)).walk((".jpg",), Skipped())
    assert next(found).id == "a.jpg"
    (tmp_path / "b.jpg").unlink()
    assert [(entry.id, entry.size) for entry in found] == [("b.jpg", 0)]
