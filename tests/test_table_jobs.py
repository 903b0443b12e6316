"""Batch jobs over tables: the same as over files, and rows set aside with their reasons."""

import io
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import S3, TinyNet
from PIL import Image
from poison import encoded
from trained import RECIPES, untrained

import imgray
from imgray.artifacts.folder import Folder
from imgray.artifacts.manifest import read_file, read_manifest
from imgray.artifacts.walk import Skipped
from imgray.data.collections import Files, open_collection
from imgray.data.fields import Input, Picture, Text
from imgray.data.pixels import Rejected
from imgray.data.tables import Layout
from imgray.engine import producer
from imgray.engine.extract import extract
from imgray.engine.index import build_index
from imgray.engine.predict import PredictStep, picture_name, predict
from imgray.engine.settings import ExtractConfig, IndexConfig, PredictConfig
from imgray.errors import UserError

IMAGE: dict[str, Input] = {"image": Picture()}


@pytest.fixture(scope="module")
def names(photos: Path) -> list[str]:
    return sorted(path.relative_to(photos).as_posix() for path in photos.rglob("*.*"))


@pytest.fixture(scope="module")
def tables(photos: Path, names: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The photographs as bytes in a Parquet file, and as paths in a CSV file, some rows broken."""
    folder = tmp_path_factory.mktemp("tables")
    images: list[bytes | None] = [(photos / name).read_bytes() for name in names]
    table = pa.table({"key": [*names, "broken", "none"], "jpg": [*images, b"no picture", None]})
    pq.write_table(table, folder / "photos.parquet", row_group_size=7)
    lines = [f'"{name}","{name.rpartition(".")[0]}"' for name in names if name.endswith(".jpg")]
    lines += ['"lost","nowhere"', '"out","../secret"', '"empty",']
    (folder / "photos.csv").write_text("\n".join(["id,stem", *lines]) + "\n")
    return folder


@pytest.fixture
def make(tmp_path: Path, tiny_net: TinyNet) -> Callable[..., ExtractConfig]:
    def config(images: Path | str, **flags: Any) -> ExtractConfig:
        own = {"extractor": [tiny_net.name], "weights": [tiny_net.weights], "size": tiny_net.size}
        given = {"output": str(tmp_path / "out"), "shard_size": 8, "workers": 1, "max_rejected": 1}
        return ExtractConfig(images=str(images), **own, **given | flags)

    return config


def _rows(uri: str) -> tuple[dict[str, Any], dict[str, tuple[str, str]]]:
    """Features and rejections by id."""
    folder = Folder(uri)
    manifest = read_manifest(folder, "features")
    found: list[dict[str, dict[str, Any]]] = []
    for kind in ("part-", "rejected/"):
        tables = [
            pq.read_table(io.BytesIO(read_file(folder, f))).to_pylist()
            for f in manifest.named(kind)
        ]
        found.append({row["id"]: row for table in tables for row in table})
    done, rejected = found
    return done, {id: (row["stage"], row["reason"]) for id, row in rejected.items()}


@pytest.fixture(scope="module")
def expected(
    photos: Path, tiny_net: TinyNet, tmp_path_factory: pytest.TempPathFactory, ray_cluster: None
) -> dict[str, Any]:
    """The features of the photographs as files."""
    output = str(tmp_path_factory.mktemp("expected") / "out")
    own = {"extractor": [tiny_net.name], "weights": [tiny_net.weights], "size": tiny_net.size}
    extract(ExtractConfig(images=str(photos), output=output, workers=1, **own))
    return _rows(output)[0]


@pytest.mark.slow
@pytest.mark.parametrize("place", ["disk", "s3"])
def test_a_parquet_file_gives_the_features_of_its_pictures(
    make: Callable[..., ExtractConfig],
    tables: Path,
    names: list[str],
    expected: dict[str, Any],
    place: str,
    request: pytest.FixtureRequest,
) -> None:
    images = str(tables / "photos.parquet")
    if place == "s3":
        s3: S3 = request.getfixturevalue("s3")
        folder = Folder(s3.uri("tables/photos"))
        folder.write("photos.parquet", Path(images).read_bytes())
        images = f"{folder.uri}/photos.parquet"
    config = make(images, columns=["image=jpg", "id=key"])
    result = extract(config)
    assert (result.listed, result.done, result.rejected) == (len(names) + 2, len(names), 2)
    done, rejected = _rows(config.output)
    assert done == expected
    assert list(done) == names
    assert rejected["none"] == ("read", "column 'jpg': missing")
    assert rejected["broken"][0] == "decode"
    assert extract(config) == result


@pytest.mark.slow
def test_a_csv_file_names_pictures_under_a_root(
    make: Callable[..., ExtractConfig], tables: Path, photos: Path, expected: Any, tiny_net: TinyNet
) -> None:
    """An index of them shows a picture by its id."""
    flags = {"columns": ["image=stem"], "root": str(photos), "pattern": "{}.jpg"}
    config = make(tables / "photos.csv", **flags)
    extract(config)
    done, rejected = _rows(config.output)
    assert done == {id: row for id, row in expected.items() if id.endswith(".jpg")}
    assert rejected.keys() == {"lost", "out", "empty"}
    assert "does not exist" in rejected["lost"][1]
    assert "may lead out of the root" in rejected["out"][1]
    index = f"{config.output}-index"
    own = {"codewords": [4], "sample": 100, "dim": 8}
    build_index(IndexConfig(features=config.output, output=index, feature=[tiny_net.name], **own))
    chosen = min(done)
    assert imgray.open_index(index).search(id=chosen, top=1)[0].id == chosen


class _Stopped(BaseException):
    """Stands for whatever ends a job between its last shard and its manifest."""


@pytest.mark.slow
def test_a_table_that_changes_under_a_job_is_refused(
    make: Callable[..., ExtractConfig], tables: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    def stop(*_: object) -> None:
        raise _Stopped

    table = tmp_path / "photos.csv"
    shutil.copy(tables / "photos.csv", table)
    config = make(table, columns=["image=stem"])
    with monkeypatch.context() as patch:
        patch.setattr(producer, "publish", stop)
        with pytest.raises(_Stopped):
            extract(config)
    table.write_text(table.read_text() + '"more","a"\n')
    with pytest.raises(UserError, match=r"photos\.csv: it was changed after the job began"):
        extract(config)
    shutil.copy(tables / "photos.csv", table)
    assert extract(config).done == 0


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        ({}, r"photos.parquet: no column 'image'; it has key, jpg; say --columns image=COLUMN"),
        ({"columns": ["image=png"]}, r"photos.parquet: no column 'png'; it has key, jpg"),
        ({"columns": ["picture=jpg"]}, "nothing is called 'picture'; there are image, id, group"),
        ({"columns": ["image"]}, "--columns image: expected NAME=COLUMN"),
        ({"columns": ["image=jpg"], "pattern": "x"}, "--pattern x: expected {}"),
    ],
)
def test_what_cannot_be_read_so_is_refused_before_anything_starts(
    make: Callable[..., ExtractConfig], tables: Path, flags: dict[str, Any], reason: str
) -> None:
    config = make(tables / "photos.parquet", **flags)
    with pytest.raises(UserError, match=reason):
        open_collection(config.images, IMAGE, config.layout)


def test_a_folder_has_no_columns_and_no_texts(photos: Path) -> None:
    with pytest.raises(UserError, match="columns, root and pattern are of tables"):
        open_collection(str(photos), IMAGE, Layout({"image": "jpg"}))
    with pytest.raises(UserError, match=r"needed are image \(picture\), said \(text\)"):
        open_collection(str(photos), {**IMAGE, "said": Text()})
    optional = {**IMAGE, "said": Text(optional=True)}
    assert isinstance(open_collection(str(photos), optional), Files)


def test_records_are_read_by_number_and_by_id(tables: Path, photos: Path, names: list[str]) -> None:
    layout = Layout({"image": "jpg", "id": "key"})
    found = open_collection(str(tables / "photos.parquet"), IMAGE, layout)
    entries = list(found.entries(Skipped()))
    assert [entry.id for entry in entries] == [*names, "broken", "none"]
    for number in (0, len(names) - 1):
        data = (photos / names[number]).read_bytes()
        assert found.values(number, entries[number]) == {"image": data}
        assert found.picture(names[number]) == data
    with pytest.raises(Rejected, match="column 'jpg': missing"):
        found.values(len(names) + 1, entries[-1])
    with pytest.raises(UserError, match=r"row 1 is not .* any more"):
        found.values(0, replace(entries[0], where="1"))
    for id in ("none", "no such"):
        with pytest.raises(UserError, match=id):
            found.picture(id)


@pytest.mark.parametrize(
    ("id", "plain"),
    [
        ("a.jpg", True),
        ("a/b c/ü.jpg", True),
        ("../../evil", False),
        ("/etc/x", False),
        ("a//b", False),
        ("./a/b", False),
        ("a\0b", False),
        ("a\nb", False),
        ("a\\..\\b", False),
        ("x" * 300, False),
        ("y/" * 500 + "z", False),
        ("q.png/z", False),
    ],
)
def test_every_id_has_a_picture_of_its_own_in_the_output(id: str, plain: bool) -> None:
    found = picture_name(id)
    assert found == (f"pictures/{id}.png" if plain else found)
    parts = found.split("/")
    assert parts[0] == "pictures"
    assert ".." not in parts
    assert all(0 < len(part.encode()) <= 255 for part in parts)
    assert plain or parts[1] == "by-digest"


def test_names_of_pictures_differ_where_ids_do() -> None:
    ids = ["a/b", "a//b", "./a/b", "q", "q.png/z", "", "..", " "]
    assert len({picture_name(id) for id in ids}) == len(ids)


def test_numbers_that_are_none_set_a_record_aside(tmp_path: Path) -> None:
    untrained("pairs:Pairs", Folder(str(tmp_path / "model")))
    step = PredictStep(str(tmp_path / "model"), Folder(str(tmp_path / "out")))
    judge: Any = step.model.learner.modules["judge"]
    picture = encoded(Image.new("RGB", (30, 20), "red"), "PNG")
    prepared = step.prepare({"first": picture, "caption": "a"})
    both = [prepared, prepared]
    table, refused = step.rows(["a", "../b"], both, step.run(both))
    assert (table["id"].to_pylist(), refused) == (["a", "../b"], [])
    for row in table.to_pylist():
        assert (tmp_path / "out" / row["picture"]).exists()
    judge.bias.data.fill_(float("nan"))
    table, refused = step.rows(["a"], [prepared], step.run([prepared]))
    assert len(table) == 0
    assert refused == [("a", "predict", "numbers that are not finite")]


@pytest.mark.parametrize("job", [extract, predict])
def test_pictures_of_a_table_that_lie_in_the_output_are_left_alone(
    job: Any, make: Callable[..., ExtractConfig], tables: Path, tmp_path: Path
) -> None:
    kept = tmp_path / "out" / "pictures" / "a.png"
    kept.parent.mkdir(parents=True)
    kept.write_bytes(b"a picture")
    flags = {"root": str(kept.parent), "columns": ["image=stem"], "overwrite": True}
    config: Any = make(tables / "photos.csv", **flags)
    if job is predict:
        untrained(RECIPES["folders"]["task"], Folder(str(tmp_path / "model")))
        given = config.model_dump(include={"images", "output", *flags})
        config = PredictConfig(model=str(tmp_path / "model"), **given)
    with pytest.raises(UserError, match="pictures, which is read, lies there"):
        job(config)
    assert kept.exists()
