"""Of a collection that grows, only what is new or changed is extracted; what vanished is listed."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import extracting
import inprocess
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import TinyNet

import imgray
from imgray.artifacts.folder import Folder
from imgray.artifacts.manifest import Manifest, entry_of_file, publish, read_manifest
from imgray.artifacts.walk import Entry
from imgray.engine import earlier as module
from imgray.engine.earlier import VANISHED, Earlier
from imgray.engine.extract import extract
from imgray.engine.listing import LISTING, write
from imgray.engine.settings import ExtractConfig
from imgray.errors import UserError


def _features(folder: Path, entries: list[Entry]) -> Folder:
    """An artifact that has a listing and no more."""
    folder.mkdir()
    return _published(folder, write(iter(entries), folder / LISTING))


def _published(folder: Path, count: int) -> Folder:
    """The artifact of a listing that lies there."""
    files = [entry_of_file(folder / LISTING, count)]
    publish(Folder(str(folder)), Manifest(kind="features", config={}, files=files))
    return Folder(str(folder))


@pytest.mark.parametrize("seed", range(6))
def test_it_is_the_difference_of_two_sets(
    tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In any order, and whatever is read together."""
    monkeypatch.setattr(module, "GROUP", 7)
    chance = np.random.default_rng(seed)

    def some(count: int) -> dict[str, Entry]:
        names = chance.choice(60, count, replace=False)
        found = (Entry(f"ü{n}.jpg", int(n % 3), f"{chance.integers(2)}") for n in names)
        return {entry.id: entry for entry in found}

    old, new = some(int(chance.integers(0, 50))), some(int(chance.integers(0, 50)))
    earlier = Earlier([_features(tmp_path / "features", list(old.values()))])
    assert list(earlier.fresh(new.values())) == [e for e in new.values() if old.get(e.id) != e]
    assert earlier.unchanged == sum(old.get(id) == entry for id, entry in new.items())
    gone = [id for id in old if id not in new]
    assert earlier.write_vanished(tmp_path / VANISHED) == len(gone)
    assert pq.read_table(tmp_path / VANISHED)["id"].to_pylist() == gone


def test_ids_whose_first_number_is_the_same_are_told_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = module._digest
    monkeypatch.setattr(
        module, "_digest", lambda text, size: bytes(8) + digest(text, 8) if size == 16 else bytes(8)
    )
    entries = [Entry(f"{n}", 0) for n in range(20)]
    earlier = Earlier([_features(tmp_path / "features", entries[:12])])
    assert list(earlier.fresh(entries[5:])) == entries[12:]
    assert earlier.write_vanished(tmp_path / VANISHED) == 5


def test_of_a_listing_without_versions_the_size_tells(tmp_path: Path) -> None:
    table = pa.table({"id": ["a", "b"], "size": [1, 2]})
    pq.write_table(table, tmp_path / LISTING)
    found = Earlier([_published(tmp_path, 2)]).fresh([Entry("a", 1, "x"), Entry("b", 3, "x")])
    assert [entry.id for entry in found] == ["b"]


def test_of_several_the_last_counts(tmp_path: Path) -> None:
    one = _features(tmp_path / "one", [Entry("a", 1), Entry("b", 1), Entry("c", 1)])
    other = _features(tmp_path / "other", [Entry("d", 1), Entry("a", 2)])
    earlier = Earlier([one, other])
    entries = [Entry("a", 2), Entry("b", 2), Entry("d", 1), Entry("e", 1)]
    assert [entry.id for entry in earlier.fresh(entries)] == ["b", "e"]
    assert earlier.write_vanished(tmp_path / VANISHED) == 1
    assert pq.read_table(tmp_path / VANISHED)["id"].to_pylist() == ["c"]
    (tmp_path / "one" / LISTING).write_bytes(b"PAR1")
    with pytest.raises(UserError, match="not as it was published"):
        Earlier([one, other])


@pytest.fixture(scope="module", autouse=True)
def _in_this_process() -> Iterator[None]:
    with inprocess.jobs():
        yield


@pytest.fixture
def make(tiny_net: TinyNet, tmp_path: Path) -> Callable[..., ExtractConfig]:
    def config(images: Path | str, name: str = "out", **changes: Any) -> ExtractConfig:
        return extracting.settings(tiny_net, images, tmp_path / name, **{"shard_size": 4} | changes)

    return config


def test_a_collection_that_grew(
    photos: Path, tmp_path: Path, make: Callable[..., ExtractConfig], capsys: Any
) -> None:
    images = Path(shutil.copytree(photos, tmp_path / "images"))
    names = sorted(path.relative_to(images).as_posix() for path in images.rglob("*.*"))
    first = make(images, "first")
    extract(first)
    (images / "new").mkdir()
    shutil.copy(images / names[5], images / "new" / "x.jpg")
    shutil.copy(images / names[6], images / names[7])
    (images / names[8]).unlink()
    second = make(images, "second", except_=[first.output])
    assert extract(second).done == 2
    assert "38 images are as they were listed before" in capsys.readouterr().err
    manifest = read_manifest(Folder(second.output), "features")
    listed = read_manifest(Folder(first.output)).file(LISTING)
    assert manifest.made_from[first.output] == listed.sha256
    features = imgray.open_features(second.output)
    found = [id for batch in features.to_batches() for id in batch["id"].to_pylist()]
    assert found == sorted([names[7], "new/x.jpg"])
    assert pq.read_table(Path(second.output, VANISHED))["id"].to_pylist() == [names[8]]
    assert extract(second).done == 2
    third = make(images, "third", except_=[first.output])
    shutil.rmtree(images)
    shutil.copytree(photos, images, copy_function=shutil.copy2)
    assert (extract(third).done, extract(third).listed) == (0, 0)
    with pytest.raises(UserError, match=r"holds an artifact of other settings \(except_"):
        extract(make(images, "third"))


def test_of_a_table_rows_keep_their_places(
    photos: Path, tmp_path: Path, make: Callable[..., ExtractConfig]
) -> None:
    paths = sorted(photos.glob("*.png"))[:6]
    rows = [{"id": path.name, "image": path.read_bytes()} for path in paths]
    for name, some in (("few", rows[:2] + rows[3:5]), ("all", rows)):
        pq.write_table(pa.Table.from_pylist(some), tmp_path / f"{name}.parquet")
    few, every = make(tmp_path / "few.parquet", "few"), make(tmp_path / "all.parquet", "every")
    rest = make(tmp_path / "all.parquet", "rest", except_=[few.output])
    for config in (few, every, rest):
        extract(config)

    def vectors(config: ExtractConfig) -> dict[str, Any]:
        batches = imgray.open_features(config.output).to_batches()
        return {row["id"]: row for batch in batches for row in batch.to_pylist()}

    assert vectors(rest).keys() == {rows[2]["id"], rows[5]["id"]}
    for id, row in vectors(rest).items():
        for name, value in vectors(every)[id].items():
            if name != "id":
                np.testing.assert_allclose(row[name], value, atol=1e-3)


def test_numbers_of_rows_tell_no_row_from_another(
    photos: Path, tmp_path: Path, make: Callable[..., ExtractConfig]
) -> None:
    rows = [{"image": path.read_bytes()} for path in sorted(photos.glob("*.png"))[:3]]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "all.parquet")
    first = make(tmp_path / "all.parquet", "first")
    extract(first)
    with pytest.raises(UserError, match="has no ids but the numbers of its rows"):
        extract(make(tmp_path / "all.parquet", "second", except_=[first.output]))
    again = first.model_copy(update={"retry_rejected": True})
    assert extract(again).done == 3


def test_what_is_no_features_artifact_is_named(
    photos: Path, tmp_path: Path, make: Callable[..., ExtractConfig]
) -> None:
    with pytest.raises(UserError, match=r"no features artifact here"):
        extract(make(photos, "out", except_=[str(tmp_path)]))
    assert not (tmp_path / "out").exists()
