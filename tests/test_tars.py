"""Tars of WebDataset as a collection: records, ids, requests, and jobs that pass over them."""

import io
import json
import pickle
import random
import shutil
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import extracting
import inprocess
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import s3fs
from conftest import S3, TinyNet, upload
from extracting import after, rows
from tarred import WEBDATASET, add, by_tarfile, packed, random_tar

import imgray
from imgray.artifacts.folder import Folder
from imgray.artifacts.manifest import read_manifest
from imgray.artifacts.walk import Entry, Skipped
from imgray.data import tars as module
from imgray.data.collections import Collection, collection_of, open_collection
from imgray.data.fields import Boundaries, Input, Label, Picture, Text, Vector
from imgray.data.layout import Layout
from imgray.data.pixels import Rejected
from imgray.data.records import split
from imgray.data.shards import expanded
from imgray.engine.extract import extract
from imgray.engine.frozen import LISTED, look
from imgray.engine.index import build_index
from imgray.engine.settings import ExtractConfig, IndexConfig
from imgray.errors import UserError

IMAGE: dict[str, Input] = {"image": Picture()}
BOTH: dict[str, Input] = {**IMAGE, "said": Text()}
TWO = [("k/1.jpg", b"one"), ("k/1.txt", b"said"), ("k/2.PNG", b"two")]


@pytest.fixture(autouse=True, scope="module")
def _in_this_process() -> Iterator[None]:
    with inprocess.jobs():
        yield


def _listed(collection: Collection) -> list[Entry]:
    return list(collection.entries(Skipped()))


def _open(uri: Path | str, inputs: Any = IMAGE, columns: Any = (), **flags: Any) -> Collection:
    layout = Layout.parse(list(columns), None, [])
    # As a worker has it.
    found = open_collection(str(uri), inputs, layout, **flags)
    return pickle.loads(pickle.dumps(found))  # type: ignore[no-any-return]


@pytest.fixture
def three(tmp_path: Path) -> Path:
    """A folder of three tars of random photographs that are none, and of other things."""
    folder = tmp_path / "three"
    (folder / "sub").mkdir(parents=True)
    for number, name in enumerate(["a.tar", "b.tar", "sub/c.tar"]):
        (folder / name).write_bytes(random_tar(number))
    (folder / "readme.md").write_bytes(b"no tar")
    return folder


def test_records_are_those_of_webdataset(three: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SCANS", 2)
    collection = _open(three, {"image": Picture(), "v": Vector(2, optional=True)}, stored="tar")
    skipped = Skipped()
    entries = list(collection.entries(skipped))
    assert skipped.counts[".md"] == 1
    expected: dict[str, dict[str, bytes]] = {}
    for name in ("a.tar", "b.tar", "sub/c.tar"):
        data = (three / name).read_bytes()
        for member, offset, size in by_tarfile(data):
            if found := WEBDATASET.match(member):
                key, extension = found.groups()
                assert split(member) == (key, extension.lower())
                record = expected.setdefault(f"{name[:-4]}/{key}", {})
                record[extension.lower()] = data[offset : offset + size]
    assert [entry.id for entry in entries] == list(expected)
    read = 0
    for number, entry in enumerate(entries):
        record = expected[entry.id]
        if "jpg" in record:
            read += 1
            assert collection.values(number, entry)["image"] == record["jpg"]
            assert collection.picture(entry.id) == record["jpg"]
            assert entry.size == len(record["jpg"])
        else:
            with pytest.raises(Rejected, match=r"member 'jpg;jpeg;.*': missing"):
                collection.values(number, entry)
    assert read > 5
    for id in ("a/no", "no/1", "", "a", "sub/c/"):
        with pytest.raises(UserError, match=f"no picture of '{id}'"):
            collection.picture(id)


def test_threads_read_what_one_reads(three: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("imgray.data.windows.WINDOW", 1000)
    monkeypatch.setattr("imgray.data.windows.HELD", 2)
    inputs: Any = {"image": Picture(optional=True)}
    alone, shared = (_open(three, inputs, stored="tar") for _ in range(2))
    entries = list(enumerate(_listed(alone)))
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(lambda pair: shared.values(*pair), entries * 3))
    assert found == [alone.values(*pair) for pair in entries] * 3


def test_inputs_are_members_by_extension(tmp_path: Path) -> None:
    inputs: dict[str, Input] = {
        "image": Picture(), "said": Text(), "label": Label(), "points": Vector(2),
        "more": Text(optional=True),
    }  # fmt: skip
    files = [("1.jpeg", b"p"), ("1.png", b"q"), ("1.cap", "é".encode())]
    files += [("1.cls", b"\xef\xbb\xbf7\r\n")]  # as editors of Windows write it
    files += [("1.json", b"[1, 2]"), ("2.png", b"p"), ("2.cap", b"\xff"), ("3.jpg", b"p")]
    files += [("3.cap", b"s"), ("3.cls", b"cat"), ("3.json", b"{}"), ("3.more.txt", b"m")]
    (tmp_path / "x.tar").write_bytes(packed(files))
    columns = ["image=jpg;.png", "said=CAP", "label=cls", "points=json", "more=more.txt"]
    collection = _open(tmp_path / "x.tar", inputs, columns)
    one, two, three = _listed(collection)
    assert (one.id, two.id, three.id) == ("x/1", "x/2", "x/3")
    found = dict(collection.values(0, one))
    assert found.pop("points").tolist() == [1, 2]
    assert found == {"image": b"q", "said": "é", "label": 7}
    with pytest.raises(Rejected, match="member 'cap': a text that is not UTF-8"):
        collection.values(1, two)
    with pytest.raises(Rejected, match=r"member 'json': .*numbers are expected"):
        collection.values(2, three)
    sole = _open(tmp_path / "x.tar", {"text": Text()}, ["text=cap"])
    assert sole.values(2, _listed(sole)[2]) == {"text": "s"}
    (tmp_path / "y.tar").write_bytes(packed(TWO))
    both = _open(tmp_path / "y.tar", BOTH)
    assert both.values(0, _listed(both)[0]) == {"image": b"one", "said": "said"}
    with pytest.raises(Rejected, match="member 'txt': missing"):
        both.values(1, _listed(both)[1])


def test_what_is_too_large_is_rejected_unread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "x.tar").write_bytes(packed(TWO))
    collection = _open(tmp_path / "x.tar")
    monkeypatch.setattr(module, "MAX_BYTES", 2)
    monkeypatch.setattr(Folder, "read", None)
    entry = Entry("x", 0, where=json.dumps(["x.tar", {"jpg": [512, 3, 0]}]))
    with pytest.raises(Rejected, match="member 'jpg': 3 bytes; at most 2 are read"):
        collection.values(0, entry)


@pytest.mark.parametrize(
    "name",
    [
        "x-{00..12}.tar",
        "x{8..11}y{0..2}.tar",
        "{3..3}.tar",
        "x-{098..101}.tar",
        "x{a}-{1..2}.tar",
        "{5..010}.tar",
    ],
)
def test_a_range_is_that_of_a_shell(name: str) -> None:
    shell = subprocess.run(
        ["bash", "-c", f"echo {name}"], capture_output=True, text=True, check=True
    )
    assert expanded(name, name) == shell.stdout.split()


def test_a_range_has_its_order_and_misses_no_tar(tmp_path: Path) -> None:
    for number in range(8, 12):
        (tmp_path / f"x-{number:02}.tar").write_bytes(packed([("1.jpg", b"%d" % number)]))
    collection = _open(tmp_path / "x-{08..11}.tar")
    assert [entry.id for entry in _listed(collection)] == ["x-08/1", "x-09/1", "x-10/1", "x-11/1"]
    assert collection.picture("x-10/1") == b"10"
    with pytest.raises(UserError, match=r"no picture of 'x-12/1'"):
        collection.picture("x-12/1")
    with pytest.raises(UserError, match=r"cannot read .*/x-12\.tar: it does not exist"):
        _listed(_open(tmp_path / "x-{08..13}.tar"))
    for bad in ("x-{11..08}.tar", "x-{0..99999999}.tar"):
        with pytest.raises(UserError, match="expected a range such as"):
            _listed(_open(tmp_path / bad))
    with pytest.raises(UserError, match="a range may stand in the name of the tar alone"):
        _open(tmp_path / "{0..1}" / "x.tar")


def test_a_glance_tells_of_a_range_that_is_not_whole(tmp_path: Path) -> None:
    for number in range(8, 12):
        (tmp_path / f"x-{number:02}.tar").write_bytes(packed([("1.jpg", b"")]))
    output = Folder(str(tmp_path / "out"))
    for name, missing in (("x-{07..11}", "x-07"), ("x-{08..12}", "x-12"), ("y", "y")):
        with pytest.raises(UserError, match=rf"{missing}\.tar: it does not exist"):
            look(partial(_open, tmp_path / f"{name}.tar"), output, False)
    look(partial(_open, tmp_path / "x-{08..11}.tar"), output, False)
    output.write(LISTED, b"begun")
    look(partial(_open, tmp_path / "y.tar"), output, False)
    with pytest.raises(UserError, match=r"y\.tar: it does not exist"):
        look(partial(_open, tmp_path / "y.tar"), output, True)


@pytest.mark.parametrize(
    ("uri", "flags", "reason"),
    [
        ("x.tar.gz", {}, "x.tar.gz: a compressed tar cannot be read in parts; unpack it"),
        ("x.tgz", {"stored": "tar"}, "a compressed tar"),
        ("x.csv", {"stored": "tar"}, "--stored tar: .*x.csv is a table by its name"),
        ("x.tar", {"stored": "table"}, "--stored table: .*x.tar is a tar by its name"),
        ("x.tar", {"stored": "files"}, "--stored files: .*x.tar is a tar by its name"),
        ("photos", {"stored": "table"}, "photos is none by its name; name a .parquet or .csv"),
        ("photos", {"ids": "key"}, "photos: --ids are of tars; .* say --stored tar"),
        ("x.tar", {"features": {"a": "b"}}, "--features are joined to a table"),
        ("x.tar", {"columns": ["id=x"]}, "--columns id=x: nothing is called 'id' in a tar"),
        ("x.tar", {"columns": ["image=;"]}, "--columns image=;: names no extension"),
    ],
)
def test_what_contradicts_itself_is_refused(
    tmp_path: Path, uri: str, flags: dict[str, Any], reason: str
) -> None:
    with pytest.raises(UserError, match=reason):
        _open(tmp_path / uri, **flags)


def test_inputs_that_no_member_is_known_for_are_refused(tmp_path: Path) -> None:
    two: dict[str, Input] = {"first": Picture(), "second": Picture()}
    with pytest.raises(UserError, match=r"members first \(picture\) is, .*say --columns first=EXT"):
        _open(tmp_path / "x.tar", two)
    with pytest.raises(UserError, match=r"drawn \(boundaries\) is, is not known; take a table"):
        _open(tmp_path / "x.tar", {"drawn": Boundaries()}, ["drawn=npy"])
    with pytest.raises(UserError, match="root and pattern are of tables"):
        open_collection(str(tmp_path / "x.tar"), IMAGE, Layout(root="/"))


def test_a_compressed_tar_in_a_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(packed(TWO))
    (tmp_path / "b.tar.gz").write_bytes(b"")
    with pytest.raises(UserError, match=r"/b\.tar\.gz: a compressed tar"):
        _listed(_open(tmp_path, stored="tar"))


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        (["a.jpg", "b.jpg", "a.txt"], r"x\.tar: 'a' is there again"),
        (["a.jpg", "a.jpg"], r"x\.tar: 'a' has two members 'jpg'"),
        (["a.jpg", "a.JPG"], r"x\.tar: 'a' has two members 'jpg'"),
    ],
)
def test_an_id_that_is_there_twice_is_named(tmp_path: Path, files: list[str], reason: str) -> None:
    (tmp_path / "x.tar").write_bytes(packed([(name, b"") for name in files]))
    for flags in ({}, {"ids": "key"}):
        with pytest.raises(UserError, match=reason):
            _listed(_open(tmp_path / "x.tar", **flags))


def test_ids_of_several_tars_differ_or_are_named(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a.tar").write_bytes(packed([("b/c.jpg", b"outer"), ("d.jpg", b"")]))
    inner = tmp_path / "a" / "b.tar"
    inner.write_bytes(packed([("d.jpg", b"inner")]))
    collection = _open(tmp_path, stored="tar")
    assert [entry.id for entry in _listed(collection)] == ["a/b/c", "a/d", "a/b/d"]
    assert (collection.picture("a/b/c"), collection.picture("a/b/d")) == (b"outer", b"inner")
    with pytest.raises(UserError, match=r"/a\.tar and .*/a/b\.tar both have 'd', .* leave --ids"):
        _listed(_open(tmp_path, stored="tar", ids="key"))
    inner.write_bytes(packed([("e.jpg", b"inner"), ("f.png", b"f")]))
    keys = _open(tmp_path, stored="tar", ids="key")
    assert [entry.id for entry in _listed(keys)] == ["b/c", "d", "e", "f"]
    assert (keys.picture("b/c"), keys.picture("f")) == (b"outer", b"f")
    inner.write_bytes(packed([("c.jpg", b"inner")]))
    with pytest.raises(UserError, match=r"/a\.tar and .*/a/b\.tar both have 'a/b/c'"):
        _listed(_open(tmp_path, stored="tar"))


def test_a_tar_that_is_written_anew_is_not_read_by_old_places(tmp_path: Path) -> None:
    path = tmp_path / "x.tar"
    path.write_bytes(packed(TWO))
    collection = _open(path)
    one, two = _listed(collection)
    assert collection.picture(two.id) == b"two"
    path.write_bytes(packed([("k/0.jpg", b"zero"), *TWO]))
    assert collection.picture(two.id) == b"two"
    for cut in (path.read_bytes(), packed(TWO)[:600]):
        path.write_bytes(cut)
        with pytest.raises(UserError, match=r"x\.tar: it was changed after the job began"):
            _open(path).values(1, two)
    (tmp_path / "other").touch()
    path.unlink()
    with pytest.raises(Rejected, match="missing: its tar was listed, and is not there any more"):
        _open(path).values(0, one)
    (tmp_path / "other").unlink()
    with pytest.raises(UserError, match="it does not exist"):
        _open(path).values(0, one)


def test_a_window_that_could_not_be_read_is_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "x.tar").write_bytes(packed(TWO))
    collection = _open(tmp_path / "x.tar")
    one, _ = _listed(collection)

    def fail(*_: Any) -> None:
        raise UserError("away")

    with monkeypatch.context() as patch:
        patch.setattr(Folder, "read", fail)
        for ask in (lambda: collection.values(0, one), lambda: collection.picture(one.id)):
            with pytest.raises(UserError, match="away"):
                ask()
    assert collection.values(0, one) == {"image": collection.picture(one.id)} == {"image": b"one"}


@pytest.fixture
def gets(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The ranges that are asked for in S3."""
    asked: list[str] = []
    call = s3fs.S3FileSystem._call_s3

    async def noted(self: Any, method: str, *given: Any, **wanted: Any) -> Any:
        if method == "get_object":
            asked.append(wanted.get("Range", "all"))
        return await call(self, method, *given, **wanted)

    monkeypatch.setattr(s3fs.S3FileSystem, "_call_s3", noted)
    return asked


def test_requests_are_few(s3: S3, gets: list[str]) -> None:
    """A scan takes one for 8 MiB, and skips what is long; records take one for 1 MiB."""
    folder, rng = Folder(s3.uri("tars/few")), random.Random(0)
    small = [(f"{n:03}.{e}", rng.randbytes(5000)) for n in range(300) for e in ("jpg", "png")]
    large = [("l.jpg", rng.randbytes(30 * 2**20)), ("m.jpg", b"m")]
    folder.write("x.tar", packed([*small, *large]))
    collection = _open(f"{folder.uri}/x.tar")
    entries = _listed(collection)
    assert len(entries) == 302
    assert len(gets) == 2  # what begins with the first header, and with that of m.jpg
    gets.clear()
    for number, entry in enumerate(entries[:300]):
        assert collection.values(number, entry) == {"image": dict(small)[f"{number:03}.jpg"]}
    assert len(gets) == 4  # of 3.3 MB
    gets.clear()
    assert len(collection.values(300, entries[300])["image"]) == 30 * 2**20
    assert len(gets) == 1


@pytest.fixture
def make(tiny_net: TinyNet, tmp_path: Path) -> Callable[..., ExtractConfig]:
    def config(images: Path | str, name: str = "out", **changes: Any) -> ExtractConfig:
        return extracting.settings(tiny_net, images, tmp_path / name, **changes)

    return config


@pytest.fixture(scope="module")
def stored(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The photographs in three tars and in a table, by their names without suffix."""
    folder = tmp_path_factory.mktemp("stored")
    paths = sorted(path for path in photos.rglob("*.*"))
    names = [path.relative_to(photos).as_posix() for path in paths]
    files = [(name, path.read_bytes()) for name, path in zip(names, paths, strict=True)]
    (folder / "tars").mkdir()
    for number in range(3):
        own = files[number * 14 : (number + 1) * 14]
        (folder / "tars" / f"p-{number}.tar").write_bytes(packed(own, tarfile.PAX_FORMAT))
    table = pa.table({"id": names, "image": [data for _, data in files]})
    pq.write_table(table, folder / "photos.parquet")
    return folder


@pytest.mark.parametrize("place", ["disk", "s3"])
def test_files_tars_and_a_table_give_the_same_vectors(
    place: str,
    make: Callable[..., ExtractConfig],
    stored: Path,
    photos: Path,
    tiny_net: TinyNet,
    request: pytest.FixtureRequest,
) -> None:
    tars = str(stored / "tars")
    if place == "s3":
        s3: S3 = request.getfixturevalue("s3")
        folder = Folder(s3.uri("tars/photos"))
        upload(stored / "tars", folder)
        tars = folder.uri
    configs = [make(photos, "files"), make(stored / "photos.parquet", "table")]
    configs += [make(tars, "tars", stored="tar"), make(f"{tars}/p-{{0..2}}.tar", "keys", ids="key")]
    for config in configs:
        result = extract(config)
        assert (result.listed, result.done, result.rejected) == (40, 40, 0)
    files, table, sharded, keyed = map(rows, configs)
    assert list(files) == list(table)
    for found in (table, sharded, keyed):
        # By name without suffix, of which each is there once.
        by_key = {id.removeprefix(f"p-{n}/"): row for n in range(3) for id, row in found.items()}
        by_key = {split(key)[0]: row for key, row in by_key.items() if not key.startswith("p-")}
        assert len(by_key) == 40
        for id, row in files.items():
            for name, value in row.items():
                np.testing.assert_allclose(by_key[split(id)[0]][name], value, atol=1e-4)
    assert extract(configs[2]).done == 40
    for config, image in ((configs[2], "p-1"), (configs[3], "")):
        about = read_manifest(Folder(config.output), "features").about
        id = next(id for id in rows(config) if id.startswith(image))
        stem = id.removeprefix("p-1/")
        (path,) = photos.glob(f"{stem}.*")
        assert collection_of(about).picture(id) == path.read_bytes()
        index = f"{config.output}-index"
        own = {"codewords": [4], "sample": 100, "dim": 8}
        build_index(
            IndexConfig(features=config.output, output=index, feature=[tiny_net.name], **own)
        )
        engine = imgray.open_index(index)
        assert engine.search(id=id, top=1)[0].id == id


def test_how_it_is_stored_is_part_of_the_identity_only_where_given(
    make: Callable[..., ExtractConfig],
) -> None:
    plain = make("/d/x.tar")
    assert not {"stored", "ids"} & {*plain.identity(), *plain.defaults()}
    given = make("/d/x.tar", stored="tar", ids="key").identity()
    assert (given.pop("stored"), given.pop("ids")) == ("tar", "key")
    assert given == plain.identity()


def test_a_tar_that_is_away_stops_the_job_and_loses_nothing(
    make: Callable[..., ExtractConfig],
    stored: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tars = Path(shutil.copytree(stored / "tars", tmp_path / "tars"))
    config = make(tars, stored="tar", max_rejected_shard=1.0)
    with monkeypatch.context() as patch:
        after(patch, 1, lambda: tars.rename(tmp_path / "away"))
        with pytest.raises(UserError, match=r"cannot read .*\.tar: it does not exist"):
            extract(config)
    (tmp_path / "away").rename(tars)
    result = extract(config)
    assert (result.done, result.rejected) == (40, 0)


def test_a_collection_without_a_record_is_refused_with_what_is_there(
    make: Callable[..., ExtractConfig], tmp_path: Path
) -> None:
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w") as tar:
        add(tar, "a", type=tarfile.DIRTYPE)
        add(tar, "b.jpg", type=tarfile.SYMTYPE)
        add(tar, "README")
    (tmp_path / "x.tar").write_bytes(target.getvalue())
    with pytest.raises(UserError, match=r"no images here, .*1 without suffix, 1 folder, 1 link"):
        extract(make(tmp_path / "x.tar"))


def test_tars_that_stand_for_the_same_ids_are_refused(tmp_path: Path) -> None:
    for name in ("x.TAR", "x.TAR.tar"):
        (tmp_path / name).write_bytes(packed([("1.jpg", b"1")]))
    with pytest.raises(UserError, match=r"x\.TAR and .*x\.TAR\.tar stand for the same ids"):
        _listed(open_collection(str(tmp_path), {"image": Picture()}, stored="tar"))


def test_a_tar_has_one_version_however_it_is_named(s3: S3) -> None:
    folder = Folder(s3.uri("tars/versions"))
    folder.write("x-0.tar", packed([("1.jpg", b"1")]))
    named = [entry.version for entry in _listed(_open(f"{folder.uri}/x-{{0..0}}.tar"))]
    below = open_collection(folder.uri, {"image": Picture()}, stored="tar")
    assert named == [entry.version for entry in _listed(below)]
    with pytest.raises(UserError, match="directory"):
        Folder(s3.uri("tars")).version("versions")
