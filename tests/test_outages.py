"""What is away for a while is not rejected for good; what was rejected can be tried again."""

import shutil
import socket
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import extracting
import fsspec
import inprocess
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import s3fs
from conftest import S3, S3_KEY, TinyNet, upload
from extracting import after, rows
from fsspec.implementations.local import LocalFileSystem

from imgray.artifacts.folder import S3_OPTIONS, Folder
from imgray.artifacts.manifest import read_manifest
from imgray.artifacts.owner import Claim, Lost
from imgray.engine import collection as passes
from imgray.engine import producer, worker
from imgray.engine.extract import extract
from imgray.engine.receipts import RECEIPTS, Receipt
from imgray.engine.settings import ExtractConfig
from imgray.errors import TooManyRejected, UserError


@pytest.fixture(autouse=True, scope="module")
def _in_this_process() -> Iterator[None]:
    with inprocess.jobs():
        yield


@pytest.fixture
def images(photos: Path, tmp_path: Path) -> Path:
    """A collection that a test may lose."""
    return Path(shutil.copytree(photos, tmp_path / "images"))


@pytest.fixture
def make(tiny_net: TinyNet, tmp_path: Path) -> Callable[..., ExtractConfig]:
    def config(images: Path | str, name: str = "out", **changes: Any) -> ExtractConfig:
        return extracting.settings(tiny_net, images, tmp_path / name, **changes)

    return config


def _receipts(config: ExtractConfig) -> int:
    return sum(name.endswith(".json") for name in Folder(config.output).sizes(RECEIPTS))


def _rejected(config: ExtractConfig) -> dict[str, str]:
    files = Path(config.output, "rejected").glob("*")
    rows = [row for path in files for row in pq.read_table(path).to_pylist()]
    return {row["id"]: row["reason"] for row in rows}


def _moved(images: Path, emptied: bool) -> None:
    images.rename(images.with_name("away"))
    if emptied:
        images.mkdir()


@pytest.mark.parametrize("emptied", [False, True], ids=["gone", "unmounted"])
def test_a_folder_that_is_away_stops_the_job_and_loses_nothing(
    images: Path,
    make: Callable[..., ExtractConfig],
    monkeypatch: pytest.MonkeyPatch,
    emptied: bool,
) -> None:
    config = make(images, max_rejected_shard=1.0)
    with monkeypatch.context() as patch:
        after(patch, 1, lambda: _moved(images, emptied))
        with pytest.raises(UserError, match=r"cannot read .*images/.*: it does not exist"):
            extract(config)
    assert _receipts(config) == 1
    shutil.rmtree(images, ignore_errors=True)
    images.with_name("away").rename(images)
    result = extract(config)
    assert (result.done, result.rejected) == (40, 0)


def test_a_file_that_was_deleted_is_rejected(
    images: Path, make: Callable[..., ExtractConfig], monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    config = make(images, max_rejected=0.1)
    lost = sorted((images / "b").rglob("*.jpg"))[-2:]
    with monkeypatch.context() as patch:
        after(patch, 1, lambda: [path.unlink() for path in lost])
        extract(config)
    assert _rejected(config).keys() == {path.relative_to(images).as_posix() for path in lost}
    assert "rejected: 2 x missing: it was listed" in capsys.readouterr().err


def test_a_store_that_denies_access_stops_the_job(
    s3: S3,
    photos: Path,
    make: Callable[..., ExtractConfig],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    place = Folder(s3.uri("outage/photos"))
    upload(photos, place, 20)
    config = make(place.uri, max_rejected_shard=1.0)
    with monkeypatch.context() as patch:
        denied = fsspec.filesystem("s3", key=S3_KEY, secret="expired", **S3_OPTIONS)
        found = property(lambda folder: denied if folder.is_s3 else LocalFileSystem())
        after(patch, 1, lambda: patch.setattr(Folder, "file_system", found))
        with pytest.raises(UserError, match="access denied"):
            extract(config)
    assert _receipts(config) == 1
    assert extract(config).done == 20


@pytest.fixture
def mute(monkeypatch: pytest.MonkeyPatch) -> Iterator[Folder]:
    """In a store that takes requests and never answers."""
    options = {"read_timeout": 0.2, "retries": {"max_attempts": 0}}
    monkeypatch.setitem(S3_OPTIONS, "config_kwargs", S3_OPTIONS["config_kwargs"] | options)
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.getsockname()[1]}")
        s3fs.S3FileSystem.clear_instance_cache()
        yield Folder("s3://bucket/images")
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    "ask",
    [
        lambda folder: folder.read("a"),
        lambda folder: folder.sizes(),
        lambda folder: folder.write("a", b"x"),
        lambda folder: folder.touch("a", b"x"),
        lambda folder: folder.create("a", b"x"),
        lambda folder: folder.remove_many(["a"]),
    ],
    ids=["read", "sizes", "write", "touch", "create", "remove_many"],
)
def test_a_store_that_never_answers_is_not_waited_for(
    mute: Folder, ask: Callable[..., Any]
) -> None:
    with pytest.raises(UserError, match=r"Read timeout on endpoint URL.*; check AWS_ENDPOINT_URL"):
        ask(mute)


def test_a_folder_in_it_that_is_unmounted_stops_the_job(
    images: Path, make: Callable[..., ExtractConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    config, part = make(images, max_rejected_shard=1.0), images / "b" / "deep"
    with monkeypatch.context() as patch:
        after(patch, 2, lambda: _moved(part, True))
        with pytest.raises(UserError, match=r"cannot read .*b/deep/.*: it does not exist"):
            extract(config)
    part.rmdir()
    (images / "b" / "away").rename(part)
    assert extract(config).done == 40


def test_a_table_that_has_changed_is_not_tried_again(
    images: Path, make: Callable[..., ExtractConfig]
) -> None:
    """The numbers of its rows may be of others by now."""
    table = images / "all.parquet"
    pictures = [{"image": path.read_bytes()} for path in sorted(images.glob("*.png"))[:3]]
    pq.write_table(
        pa.Table.from_pylist([*pictures[:2], {"image": b"no picture"}, *pictures[2:]]), table
    )
    config = make(table, max_rejected=1.0, retry_rejected=True)
    assert extract(config).rejected == 1
    assert extract(config).rejected == 1
    pq.write_table(pa.Table.from_pylist(pictures), table)
    before = read_manifest(Folder(config.output))
    with pytest.raises(UserError, match="it was changed after the job began"):
        extract(config)
    assert read_manifest(Folder(config.output)) == before


def test_a_late_worker_takes_nothing_from_who_tries_again(
    images: Path, make: Callable[..., ExtractConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both make the same part: the old manifest, which is there meanwhile, does not list it."""
    names = ["astronaut.png", "coffee.png"]
    whole = _spoil(images, names)
    config = make(images, max_rejected=1.0)
    extract(config)
    for name, data in whole.items():
        (images / name).write_bytes(data)
    again, kept = config.model_copy(update={"retry_rejected": True}), []

    def late(output: Folder, files: Any, receipt: Receipt, again: bool = False) -> None:
        copies = [(entry, Path(shutil.copy(path, f"{path}.late"))) for entry, path in files]
        keep(output, files, receipt, again)
        lost = replace(output, claim=Claim(run="late"))
        with pytest.raises(Lost):
            keep(lost, copies, receipt, again)
        kept.append(receipt)

    keep = worker.keep
    monkeypatch.setattr(worker, "keep", late)
    assert extract(again).done == 40
    assert kept
    for file in read_manifest(Folder(config.output)).files:
        assert Path(config.output, file.name).stat().st_size == file.size


@pytest.mark.parametrize("bucket", [False, True])
def test_a_lost_prefix_or_bucket_stops_the_job(
    s3: S3,
    photos: Path,
    make: Callable[..., ExtractConfig],
    monkeypatch: pytest.MonkeyPatch,
    bucket: bool,
) -> None:
    store = Folder(s3.uri(f"lost-{bucket}".lower()))
    upload(photos, store.below("photos"), 20)
    config = make(f"{store.uri}/photos", max_rejected_shard=1.0)

    def lose() -> None:
        store.remove("photos")
        if bucket:
            store.file_system.rmdir(store.root)

    with monkeypatch.context() as patch:
        after(patch, 1, lose)
        with pytest.raises(UserError, match="it does not exist"):
            extract(config)
    s3.uri(store.root)
    upload(photos, store.below("photos"), 20)
    assert extract(config).done == 20


def _spoil(images: Path, names: list[str]) -> dict[str, bytes]:
    whole = {name: (images / name).read_bytes() for name in names}
    for number, name in enumerate(names):
        (images / name).write_bytes(b"no picture" * number)
    return whole


def test_a_shard_of_bad_images_stops_the_job_unless_told_otherwise(
    images: Path, make: Callable[..., ExtractConfig]
) -> None:
    names = sorted(path.relative_to(images).as_posix() for path in (images / "a").iterdir())
    assert len(names) >= 10
    _spoil(images, names)
    config = make(images, shard_size=40, max_rejected_shard=0.3)
    with pytest.raises(UserError, match=r"of 40 images in a row.*shard 0\.3.*readable"):
        extract(config)
    assert _receipts(config) == 0
    with pytest.raises(TooManyRejected):
        extract(config.model_copy(update={"max_rejected_shard": 1.0}))
    assert _rejected(config).keys() == set(names)


@pytest.mark.parametrize("stopped", [False, True])
def test_what_was_rejected_is_tried_again(
    images: Path,
    photos: Path,
    make: Callable[..., ExtractConfig],
    monkeypatch: pytest.MonkeyPatch,
    stopped: bool,
) -> None:
    """Afterwards the artifact holds what it would have, and nothing else."""
    pngs = sorted(path.name for path in images.glob("*.png"))
    names = [
        pngs[0],
        pngs[-1],
        *(f"a/{path.name}" for path in sorted((images / "a").iterdir())[:2]),
    ]
    whole = _spoil(images, names)
    config = make(images, max_rejected=1.0)
    assert extract(config).rejected == 4
    before = read_manifest(Folder(config.output), "features")
    assert extract(config).rejected == 4
    for name in names[:3]:
        (images / name).write_bytes(whole[name])
    again = config.model_copy(update={"retry_rejected": True})
    if stopped:
        with monkeypatch.context() as patch:
            patch.setattr(producer, "publish", _stop)
            with pytest.raises(KeyboardInterrupt):
                extract(again)
        assert read_manifest(Folder(config.output), "features") == before
        for file in before.files:
            assert Path(config.output, file.name).stat().st_size == file.size
        assert _receipts(config) > 0
        monkeypatch.setattr(passes, "_run", _nothing_to_run)
    result = extract(again)
    assert (result.done, result.rejected) == (39, 1)
    assert _rejected(config).keys() == {names[3]}
    fresh = make(images, "fresh", max_rejected=1.0)
    monkeypatch.undo()
    with inprocess.jobs():
        extract(fresh)
    one, other = (read_manifest(Folder(c.output), "features") for c in (config, fresh))
    assert one.counts == other.counts
    assert [file.rows for file in one.files] == [file.rows for file in other.files]
    found, expected = rows(config), rows(fresh)
    assert list(found) == list(expected)
    for id, row in expected.items():
        for name, value in row.items():
            np.testing.assert_allclose(found[id][name], value, atol=1e-4)
    there = {p.relative_to(config.output).as_posix() for p in Path(config.output).rglob("*.*")}
    assert there == {file.name for file in one.files} | {"manifest.json"}


def _stop(*_: object) -> None:
    raise KeyboardInterrupt


def _nothing_to_run(pending: list[Any], *_: Any) -> Iterator[Receipt]:
    assert pending == []
    yield from ()
