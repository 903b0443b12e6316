import os
import pickle
from pathlib import Path

import pytest

from imgray.artifacts.folder import Folder
from imgray.artifacts.walk import Skipped
from imgray.errors import UserError

ODD_NAMES = [
    "plain.jpg",
    "a [1] b.jpg",
    "star*.jpg",
    "what?.jpg",
    "größe.jpg",
    "50%.jpg",
    "x+y&z.jpg",
]


@pytest.fixture(params=["disk", "s3"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Folder:
    """An empty folder whose own name is a pattern."""
    if request.param == "disk":
        return Folder(str(tmp_path / "out [1]"))
    s3 = request.getfixturevalue("s3")
    return Folder(s3.uri(f"storage/{request.node.callspec.id}-{tmp_path.name} [1]"))


def test_what_is_written_is_read_back(folder: Folder) -> None:
    for number, name in enumerate(ODD_NAMES):
        folder.write(f"below/{name}", bytes([number]) * number)
    names = [f"below/{name}" for name in ODD_NAMES]
    assert folder.read_many(names) == [bytes([n]) * n for n in range(len(names))]
    assert folder.read_many([]) == []
    assert folder.read(names[3]) == b"\3\3\3"
    assert folder.sizes() == {name: number for number, name in enumerate(names)}
    assert folder.sizes("below") == folder.sizes()
    assert folder.sizes("elsewhere") == {}
    assert folder.exists(names[1])
    assert not folder.exists("below/none")


def test_a_second_write_replaces_the_first(folder: Folder) -> None:
    folder.write("a", b"long content")
    folder.write("a", b"short")
    assert folder.read("a") == b"short"
    assert folder.sizes() == {"a": 5}


def test_a_range_of_a_file_is_read(folder: Folder) -> None:
    folder.write("a", bytes(range(256)))
    with folder.open("a") as file:
        file.seek(100)
        assert file.read(3) == bytes([100, 101, 102])


def test_upload_moves_and_download_copies(folder: Folder, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"content")
    folder.upload(source, "deep/er/name")
    assert not source.exists()
    folder.download("deep/er/name", tmp_path / "new" / "copy")
    assert (tmp_path / "new" / "copy").read_bytes() == b"content"
    assert folder.sizes() == {"deep/er/name": 7}


def test_remove_takes_only_what_is_named(folder: Folder) -> None:
    for name in ("a/1", "a/2", "ab", "b [1]/x", "b1/x"):
        folder.write(name, b"x")
    folder.remove("a")
    folder.remove("never there")
    assert sorted(folder.sizes()) == ["ab", "b [1]/x", "b1/x"]
    folder.remove("b [1]")
    assert sorted(folder.sizes()) == ["ab", "b1/x"]
    folder.remove("")
    assert folder.sizes() == {}


def test_walk_is_sorted_and_complete(folder: Folder) -> None:
    names = ["b/1.JPG", "b/a/2.jpeg", "10.jpg", "9.jpg", "a b/ü.png", ".hidden/x.jpg", "b/.y.jpg"]
    for number, name in enumerate([*names, "notes.txt", "b/LICENSE"]):
        folder.write(name, b"x" * number)
    skipped = Skipped()
    found = list(folder.walk((".jpg", ".jpeg", ".png"), skipped))
    assert [(entry.id, entry.size) for entry in found] == [
        ("10.jpg", 2), ("9.jpg", 3), ("a b/ü.png", 4), ("b/1.JPG", 0), ("b/a/2.jpeg", 1),
    ]  # fmt: skip
    assert all(entry.version for entry in found)
    assert str(skipped) == "4: 1 without suffix, 1 .txt, 2 hidden"
    everything = [entry.id for entry in folder.walk(("*",), Skipped())]
    assert set(everything) == {entry.id for entry in found} | {"notes.txt", "b/LICENSE"}


def test_what_is_missing_is_named(folder: Folder, tmp_path: Path) -> None:
    for read in (folder.read, folder.open, lambda name: folder.read_many(["x", name])):
        with pytest.raises(UserError, match=r"cannot read .*\[1\]/\S+: it does not exist.*; check"):
            read("none.jpg")
    with pytest.raises(UserError, match="does not exist"):
        folder.download("none.jpg", tmp_path / "copy")
    assert not list(tmp_path.glob("copy*"))


@pytest.mark.parametrize("uri", ["gs://bucket/x", "http://host/x", "s4://x"])
def test_other_stores_are_refused(uri: str) -> None:
    with pytest.raises(UserError, match=r"only folders on disk and s3://bucket/prefix"):
        Folder(uri)


@pytest.mark.parametrize("uri", [os.fsdecode(b"/tmp/\xff"), os.fsdecode(b"s3://bucket/\xff")])
def test_a_path_that_is_not_utf8_is_refused(uri: str) -> None:
    """Ray and Parquet know none; names below a folder are passed over one by one."""
    with pytest.raises(UserError, match=r"\\udcff: the path is not UTF-8; rename it, or"):
        Folder(uri)


def test_a_uri_of_a_file_system_is_its_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Folder(f"file://{tmp_path}/x").write("a", b"1")
    monkeypatch.chdir(tmp_path)
    assert Folder("x").read("a") == Folder(f"{tmp_path}/x/").read("a") == b"1"
    monkeypatch.setenv("HOME", str(tmp_path))
    assert Folder("~/x").read("a") == b"1"


def test_a_failed_write_leaves_nothing(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path))
    (tmp_path / "taken" / "below").mkdir(parents=True)
    with pytest.raises(UserError, match="it is a folder, not a file"):
        folder.write("taken", b"x")
    source = tmp_path / "source"
    source.write_bytes(b"x")
    with pytest.raises(UserError, match="it is a folder, not a file"):
        folder.upload(source, "taken")
    assert not [name for name in folder.sizes() if ".partial-" in name]


def test_a_file_in_place_of_a_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UserError, match="a part of the path is a file, not a folder"):
        Folder(str(tmp_path / "file")).write("a", b"x")
    for place in ("file", "none"):
        with pytest.raises(UserError, match=f"cannot list .*{place}: it does not exist"):
            list(Folder(str(tmp_path / place)).walk(("*",), Skipped()))


def test_links_to_files_are_followed_and_broken_ones_listed(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"12345")
    os.symlink("a.jpg", tmp_path / "b.jpg")
    os.symlink("none", tmp_path / "c.jpg")
    found = {e.id: e.size for e in Folder(str(tmp_path)).walk((".jpg",), Skipped())}
    assert found.keys() == {"a.jpg", "b.jpg", "c.jpg"}
    assert found["b.jpg"] == 5


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_missing_rights_are_named(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x")
    (tmp_path / "a").chmod(0)
    with pytest.raises(UserError, match="permission denied; check the rights"):
        Folder(str(tmp_path)).read("a")


def test_a_folder_stays_where_it_is_in_a_process_of_another_working_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = Folder("here")
    sent = pickle.dumps(folder)
    folder.write("a", b"1")
    monkeypatch.chdir("/")
    assert pickle.loads(sent).read("a") == Folder(folder.absolute).read("a") == b"1"
