"""An S3 Inventory lists what S3 itself would list: the same entries, in the same order."""

import csv
import errno
import gzip
import hashlib
import io
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote_plus

import extracting
import inprocess
import pyarrow as pa
import pyarrow.orc
import pyarrow.parquet as pq
import pytest
import s3fs
from conftest import TinyNet, upload

from imgray.artifacts.folder import Folder
from imgray.artifacts.manifest import read_manifest
from imgray.artifacts.walk import NOT_UTF8, Entry, Skipped
from imgray.data import merge_sort
from imgray.data.collections import open_collection
from imgray.data.fields import Picture
from imgray.data.inventory import READERS, TWICE, Inventory
from imgray.engine import predict
from imgray.engine.extract import extract
from imgray.engine.settings import PredictConfig
from imgray.errors import NoRoom, UserError

KEYS = (
    "p/", "p//x.jpg", "p/a//x.jpg", "p/a/", "p/.git/x.jpg", "p/b\n.jpg", "p/a b.jpg", "p/a+b.jpg",
    "p/a%20b.jpg", "p/a/b.jpg", "p/a-b.jpg", "p/A.JPG", "p/café.jpg", "p/😀.jpg", "p/\uffee.jpg",
    'p/"q",.jpg', "p/x.txt", "p/none", "p", "p.jpg", "p-a/x.jpg", "q/x.jpg", "a.jpg",
)  # fmt: skip
TYPES = {
    "Bucket": ("bucket", pa.string()),
    "Key": ("key", pa.string()),
    "VersionId": ("version_id", pa.string()),
    "IsLatest": ("is_latest", pa.bool_()),
    "IsDeleteMarker": ("is_delete_marker", pa.bool_()),
    "Size": ("size", pa.int64()),
    "ETag": ("e_tag", pa.string()),
}
"""By the names of CSV, the columns of the other formats."""
Rows = list[dict[str, Any]]


@dataclass
class Store:
    """A bucket of images, and one for its inventories."""

    images: str
    call: Callable[..., dict[str, Any]]

    def put(self, *keys: str, data: bytes = b"x") -> None:
        from moto.core import DEFAULT_ACCOUNT_ID
        from moto.s3.models import s3_backends

        for key in keys:
            if "\n" in key:  # which moto finds no way for over HTTP
                s3_backends[DEFAULT_ACCOUNT_ID]["aws"].put_object(self.images, key, data)
            else:
                self.call("put_object", Bucket=self.images, Key=key, Body=data)

    def rows(self, versions: bool = False) -> Rows:
        """What AWS would write of the bucket."""
        if not versions:
            found = self.call("list_objects_v2", Bucket=self.images)["Contents"]
            return [self._row(one) for one in found]
        answer = self.call("list_object_versions", Bucket=self.images)
        some = [self._row(one) | _version(one, False) for one in answer["Versions"]]
        return some + [self._row(one) | _version(one, True) for one in answer["DeleteMarkers"]]

    def _row(self, one: dict[str, Any]) -> dict[str, Any]:
        found = {name: one.get(name) for name in ("Key", "Size", "ETag")}
        return {"Bucket": self.images, **found, "ETag": (found["ETag"] or "").strip('"') or None}

    def report(self, rows: Rows, format: str = "Parquet", **changes: Any) -> str:
        """Write an inventory in files that are in no order: the URI of its manifest."""
        files = []
        rows = sorted(rows, key=lambda row: hashlib.md5(repr(row).encode()).digest())
        for number, some in enumerate((rows[::2], rows[1::2])):
            data, key = WRITERS[format](some), f"data/{number}"
            self.call("put_object", Bucket="reports", Key=key, Body=data)
            md5 = hashlib.md5(data).hexdigest()
            files.append({"key": key, "size": len(data), "MD5checksum": md5})
        columns = rows[0] if format == "CSV" else _names(rows)
        manifest = _manifest(self.images, format, ", ".join(columns), files) | changes
        self.call(
            "put_object", Bucket="reports", Key="manifest.json", Body=json.dumps(manifest).encode()
        )
        return "s3://reports/manifest.json"


def _manifest(bucket: str, format: str, columns: str, files: Any) -> dict[str, Any]:
    return {
        "sourceBucket": bucket, "destinationBucket": "arn:aws:s3:::reports",
        "version": "2016-11-30", "creationTimestamp": "1514944800000", "fileFormat": format,
        "fileSchema": columns, "files": files,
    }  # fmt: skip


def _version(one: dict[str, Any], gone: bool) -> dict[str, Any]:
    return {name: one[name] for name in ("VersionId", "IsLatest")} | {"IsDeleteMarker": gone}


def _names(rows: Rows) -> list[str]:
    return [TYPES[name][0] for name in rows[0]]


def _csv(rows: Rows) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, quoting=csv.QUOTE_ALL, lineterminator="\n")
    for row in rows:
        key = row["Key"]
        cells = row | {"Key": key if isinstance(key, Raw) else quote_plus(key, safe="/")}
        writer.writerow([str(v).lower() if isinstance(v, bool) else v for v in cells.values()])
    return gzip.compress(text.getvalue().encode(), mtime=0)


class Raw(str):
    """A key as it stands in a CSV."""


def _table(rows: Rows) -> pa.Table:
    columns = [[row[name] for row in rows] for name in rows[0]]
    return pa.table(columns, schema=pa.schema([TYPES[name] for name in rows[0]]))


def _written(write: Callable[[pa.Table, Any], None]) -> Callable[[Rows], bytes]:
    def data(rows: Rows) -> bytes:
        file = io.BytesIO()
        write(_table(rows), file)
        return file.getvalue()

    return data


WRITERS = {
    "CSV": _csv,
    "ORC": _written(pyarrow.orc.write_table),
    "Parquet": _written(pq.write_table),
}


@pytest.fixture
def store(conditional: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    monkeypatch.setenv("AWS_ENDPOINT_URL", conditional)
    s3fs.S3FileSystem.clear_instance_cache()
    call = s3fs.S3FileSystem().call_s3
    found = Store("images-" + hashlib.md5(str(tmp_path).encode()).hexdigest(), call)
    for bucket in ("reports", found.images):
        call("create_bucket", Bucket=bucket)
    yield found
    s3fs.S3FileSystem.clear_instance_cache()


def _found(uri: str, images: str) -> tuple[list[Entry], Skipped]:
    skipped = Skipped()
    entries = open_collection(images, {"image": Picture()}, inventory=uri).entries(skipped)
    return list(entries), skipped


def _asked(images: str) -> tuple[list[Entry], Skipped]:
    skipped = Skipped()
    return list(open_collection(images, {"image": Picture()}).entries(skipped)), skipped


@pytest.mark.parametrize("format", READERS)
def test_it_lists_what_s3_lists(store: Store, format: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(merge_sort, "RUN", 300)
    for number, key in enumerate(KEYS):
        store.put(key, data=bytes(number))
    uri = store.report(store.rows(), format)
    for place in ("/p", "/p/", "", "/p-a"):
        images = f"s3://{store.images}{place}"
        entries, skipped = _asked(images)
        assert _found(uri, images) == (entries, skipped), place
        assert [entry.id for entry in entries] == sorted((e.id for e in entries), key=str.encode)
    assert len(_asked(f"s3://{store.images}/p")[0]) == 13


@pytest.mark.parametrize("format", READERS)
def test_of_versions_the_latest_counts(store: Store, format: str) -> None:
    status = {"Status": "Enabled"}
    store.call("put_bucket_versioning", Bucket=store.images, VersioningConfiguration=status)
    store.put("a.jpg", "b.jpg", "c.jpg")
    store.put("b.jpg", data=b"another")
    store.call("delete_object", Bucket=store.images, Key="c.jpg")
    rows = store.rows(versions=True)
    assert len(rows) == 5
    images = f"s3://{store.images}"
    found = _found(store.report(rows, format), images)
    assert found == _asked(images)
    assert [(entry.id, entry.size) for entry in found[0]] == [("a.jpg", 1), ("b.jpg", 7)]


def test_a_data_file_of_csv_may_have_no_row(store: Store) -> None:
    row = {"Bucket": store.images, "Key": "a.jpg", "Size": 1, "ETag": "e"}
    entries, skipped = _found(store.report([row], "CSV"), f"s3://{store.images}")
    assert entries == [Entry("a.jpg", 1, "e")]
    assert not skipped.counts


def test_what_is_not_utf8_or_there_twice_is_counted(store: Store) -> None:
    row = {"Bucket": store.images, "Size": 1, "ETag": "e"}
    rows = [row | {"Key": Raw(key)} for key in ("a%FF.jpg", "%C3%BC.jpg", "%c3%bc.jpg", "x+y.jpg")]
    entries, skipped = _found(store.report(rows, "CSV"), f"s3://{store.images}")
    assert entries == [Entry("x y.jpg", 1, "e"), Entry("ü.jpg", 1, "e")]
    assert skipped.counts == {NOT_UTF8: 1, TWICE: 1}


def _refused(uri: str, images: str) -> str:
    with pytest.raises(UserError) as error:
        _found(uri, images)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"sourceBucket": "theirs"}, "of the bucket theirs, but --images lie in photos; name"),
        ({"fileFormat": "Avro"}, "in the format 'Avro'; configure the inventory for one of CSV"),
        ({"fileSchema": "Bucket, Key"}, "lacks Size and ETag; add"),
        ({"fileSchema": "struct<key:string,size:bigint>"}, "lacks ETag; add"),
        ({"files": [{"key": "x"}]}, "not the manifest of an S3 Inventory (files.0.MD5checksum: "),
    ],
)
def test_a_bad_manifest_is_refused(tmp_path: Path, changes: dict[str, Any], reason: str) -> None:
    path = tmp_path / "manifest.json"
    path.write_text(json.dumps(_manifest("photos", "CSV", "Key, Size, ETag", []) | changes))
    assert f"--inventory {path}: {reason}" in _refused(str(path), "s3://photos/p")


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b'{"files": []}', b"\xff", b"key,size\n"])
def test_what_is_no_manifest_is_refused(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "manifest.json"
    path.write_bytes(data)
    reason = _refused(str(path), "s3://photos/p")
    assert reason.startswith(f"--inventory {path}: not the manifest of an S3 Inventory (")


@pytest.mark.parametrize("format", READERS)
def test_a_damaged_file_is_refused_before_it_is_read(store: Store, format: str) -> None:
    store.put("a.jpg", "b.jpg")
    uri, images = store.report(store.rows(), format), f"s3://{store.images}"
    whole = Folder("s3://reports").read("data/1")
    middle = len(whole) // 2
    for data in (
        whole[:-1],
        b"",
        whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :],
    ):
        store.call("put_object", Bucket="reports", Key="data/1", Body=data)
        assert "s3://reports/data/1: its content differs from the MD5" in _refused(uri, images)
    store.call("delete_object", Bucket="reports", Key="data/1")
    assert "cannot read s3://reports/data/1: it does not exist" in _refused(uri, images)


@pytest.mark.parametrize("format", READERS)
@pytest.mark.parametrize(
    "data", [b"PAR1", gzip.compress(b'"only","three","cells"\n')], ids=["short", "three cells"]
)
def test_a_file_of_another_content_is_refused(store: Store, format: str, data: bytes) -> None:
    store.put("a.jpg", "b.jpg")
    files = [{"key": "odd", "size": len(data), "MD5checksum": hashlib.md5(data).hexdigest()}]
    store.call("put_object", Bucket="reports", Key="odd", Body=data)
    uri = store.report(store.rows(), format, files=files)
    reason = _refused(uri, f"s3://{store.images}")
    assert reason.startswith(f"s3://reports/odd: cannot be read as {format} (")
    assert reason.endswith("leave --inventory off, so that S3 itself is asked")


@pytest.mark.parametrize("format", READERS)
def test_a_row_without_what_is_needed_is_refused(store: Store, format: str) -> None:
    for lacking in ("Size", "ETag"):
        store.put("a.jpg", "b.jpg")
        rows = store.rows()
        rows[1][lacking] = None
        reason = _refused(store.report(rows, format), f"s3://{store.images}")
        assert "it has a row without Key, Size or ETag" in reason


def test_an_inventory_of_another_prefix_is_named(store: Store) -> None:
    store.put("p/a.jpg", "p/b.jpg")
    uri = store.report(store.rows())
    assert "lists nothing below s3://" in _refused(uri, f"s3://{store.images}/q")
    uri = store.report(store.rows(), destinationBucket="no-reports")
    assert "cannot read s3://no-reports/data/0: " in _refused(uri, f"s3://{store.images}/p")


@pytest.mark.parametrize(
    ("cause", "kind", "reason"),
    [
        (PermissionError(errno.EACCES, "Access Denied"), UserError, "kms:Decrypt of its key"),
        (OSError(errno.ENOSPC, "No space left on device"), NoRoom, "set TMPDIR"),
    ],
)
def test_lacking_rights_and_room_are_named(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    cause: OSError,
    kind: type[UserError],
    reason: str,
) -> None:
    path, files = tmp_path / "manifest.json", [{"key": "x", "MD5checksum": "0" * 32}]
    path.write_text(json.dumps(_manifest("photos", "CSV", "Key, Size, ETag", files)))

    def fail(*args: Any, **kwargs: Any) -> None:
        raise cause

    monkeypatch.setattr(s3fs.S3FileSystem, "get_file", fail)
    with pytest.raises(kind, match=reason):
        _found(str(path), "s3://photos/p")


@pytest.mark.parametrize(
    "images", ["folder", "s3://b/x.tar", "s3://b/x-{0..9}.tar", "s3://b/x.csv", "s3://b/x.parquet"]
)
def test_only_a_folder_in_s3_has_an_inventory(images: str) -> None:
    with pytest.raises(UserError, match="an --inventory lists images at s3://BUCKET/PREFIX alone"):
        open_collection(images, {"image": Picture()}, inventory="s3://reports/manifest.json")


def test_a_prediction_has_it_too() -> None:
    uri = "s3://reports/manifest.json"
    config = PredictConfig(images="s3://b/p", output="out", model="model", inventory=uri)
    found: Any = predict._collection(config, {"image": Picture()})
    assert found.inventory == Inventory(uri)
    assert config.identity() == config.model_copy(update={"inventory": None}).identity()
    assert uri in config.read


def test_an_extraction(
    store: Store, photos: Path, tiny_net: TinyNet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that was killed goes on with any inventory or none; another counts what is new."""
    images = Folder(f"s3://{store.images}/photos")
    names = upload(photos, images, 9)
    uri = store.report(store.rows(), "CSV")
    images.remove(names[-1])

    def settings(name: str, inventory: str | None = uri, **changes: Any) -> Any:
        changes = {"shard_size": 4, "max_rejected": 0.2, "inventory": inventory} | changes
        return extracting.settings(tiny_net, images.uri, tmp_path / name, **changes)

    def interrupt() -> None:
        raise KeyboardInterrupt

    with inprocess.jobs():
        with monkeypatch.context() as patch:
            extracting.after(patch, 1, interrupt)
            with pytest.raises(KeyboardInterrupt):
                extract(settings("first"))
        result = extract(settings("first", "s3://reports/gone.json", max_rejected_shard=1))
        assert (result.listed, result.done, result.rejected) == (9, 8, 1)
        assert list(extracting.rows(settings("first"))) == sorted(names[:-1])
        rejected = pq.read_table(next((tmp_path / "first/rejected").glob("*.parquet")))
        assert rejected["reason"].to_pylist() == [
            "missing: it was listed, and is not there any more"
        ]
        assert extract(settings("first", None)).done == 8
        images.write("new.jpg", (photos / names[0]).read_bytes())
        asked = settings("asked", None, except_=[settings("first").output])
        assert extract(asked).done == 1
        images.write("newer.jpg", (photos / names[1]).read_bytes())
        reported = settings(
            "reported", store.report(store.rows()), except_=[settings("first").output]
        )
        assert extract(reported).done == 2
    manifest = read_manifest(Folder(reported.output))
    assert "inventory" not in manifest.config
