"""Tars as a data set: the same examples as files and tables, frozen, and what is refused."""

import json
import pickle
from pathlib import Path
from typing import Any

import inprocess
import numpy as np
import pytest
import s3fs
import torch
import yaml
from conftest import S3, upload
from tabular import write
from tarred import packed
from tinytask import tiny_recipe, write_points
from trained import RECIPES
from trained import write as write_files

from imgray.artifacts.folder import Folder
from imgray.data import tars as module
from imgray.data.datasets import Dataset
from imgray.data.fields import Input, Label, Picture, Text
from imgray.data.layout import Layout
from imgray.data.parts import TarPart
from imgray.data.sources import Source
from imgray.data.tables import open_table
from imgray.data.windows import Windows
from imgray.engine.evaluate_model import evaluate_model
from imgray.engine.examples import check_examples, frozen, open_examples
from imgray.engine.settings import EvaluateModelConfig, TrainConfig
from imgray.engine.train import train
from imgray.errors import UserError
from imgray.training.examples import Examples
from imgray.training.loop import Run
from imgray.training.recipe import DataSettings, Recipe

FIELDS: dict[str, Input] = {"image": Picture(), "label": Label()}
Files = list[tuple[str, bytes]]


def _tar(path: Path, files: Files) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(packed(files))
    return path


def _labelled(keys: str, label: str = "cls") -> Files:
    """Records whose picture is their key, and the class before it."""
    return [(f"{k}.{e}", d.encode()) for k in keys for e, d in (("jpg", k), (label, f"c{k}\n"))]


def _part(uri: Path | str, part: str = ".", fields: Any = FIELDS, **more: Any) -> Dataset:
    layout = Layout.parse(more.pop("columns", []), None, [])
    return Source(str(uri), layout).part(part, fields, **more)


def _pictures(part: Dataset) -> list[str]:
    return [part[row]["image"].decode() for row in range(len(part))]


# --- the same as files and tables ------------------------------------------------------------


@pytest.fixture(scope="module")
def same(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same pictures in files, in a table for each part, and in tars of three layouts."""
    folder = tmp_path_factory.mktemp("same")
    files = write_files("folders", folder / "files")
    for part in ("train", "val"):
        paths = sorted((files / part).rglob("*.png"))
        names = [path.relative_to(files / part).with_suffix("").as_posix() for path in paths]
        images, labels = [p.read_bytes() for p in paths], [p.parent.name for p in paths]
        columns = {"id": names, "image": images, "label": labels}
        (folder / "table").mkdir(exist_ok=True)
        write(folder / f"table/{part}.parquet", columns)
        records = [
            [(f"{name}.png", image), (f"{name}.cls", label.encode())]
            for name, image, label in zip(names, images, labels, strict=True)
        ]
        for number, some in enumerate((records[:2], records[2:])):
            members = [member for record in some for member in record]
            _tar(folder / f"numbered/{part}-{number:05}.tar", members)
            _tar(folder / f"below/{part}/deep/{number}.tar", members)
        _tar(folder / f"alone/{part}.tar", [member for record in records for member in record])
    return folder


def _recipe(**data: Any) -> Recipe:
    recipe = {**RECIPES["folders"], "data": data, "batch_size": 5, "steps": 1}
    return Recipe.model_validate(recipe)


def _ends(part: Dataset) -> list[str]:
    """CLASS/NAME of the records."""
    return ["/".join(name.removesuffix(".png").split("/")[-2:]) for name in part.names]


def _batches(examples: Examples) -> list[Any]:
    found = [examples.training(step, rank, 2) for step in range(7) for rank in range(2)]
    return [*found, examples.validation(0, 0, 1)]


@pytest.mark.parametrize("place", ["disk", "s3"])
@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("table", {}),
        ("alone", {}),
        ("numbered", {"truth": "columns"}),
        ("below", {"stored": "tar"}),
    ],
)
def test_files_a_table_and_tars_are_the_same_examples(
    place: str, name: str, data: dict[str, Any], same: Path, request: pytest.FixtureRequest
) -> None:
    uri = str(same / name)
    if place == "s3":
        s3: S3 = request.getfixturevalue("s3")
        folder = Folder(s3.uri(f"tar-parts/{name}"))
        upload(same / name, folder)
        uri = folder.uri
    files = open_examples(_recipe(truth="folders"), str(same / "files"))
    other = open_examples(_recipe(**data), uri)
    check_examples(other)
    assert isinstance(other.train, TarPart) == (name != "table")
    for one, two in ((files.train, other.train), (files.val, other.val)):
        assert list(one.classes) == list(two.classes) == ["left", "right"]
        assert one.labels().tolist() == two.labels().tolist()
        assert _ends(one) == _ends(two)
        for row in range(len(one)):
            assert {**one[row], "id": ""} == {**two[row], "id": ""}
    for one, two in zip(_batches(files), _batches(other), strict=True):
        assert one.keys() == two.keys()
        for key in one:
            np.testing.assert_array_equal(one[key], two[key])


def _points(folder: Path) -> Path:
    """Tables of points, and the same in tars, two for each part, with numbers as labels."""
    points = write_points(folder / "points")
    for part in ("train", "val"):
        table = open_table(str(points / f"{part}.parquet"), FIELDS)
        records = enumerate(table.rows(range(len(table))))
        files = [
            (f"{row:03}.{extension}", data)
            for row, record in records
            for extension, data in (
                ("jpg", record["image"]), ("cls", str(record["label"]).encode())
            )
        ]  # fmt: skip
        for number in range(2):
            _tar(folder / f"tars/{part}-{number}.tar", files[number * 40 :][: 40 + number * 999])
    return folder


def test_a_table_and_tars_train_equal_weights(tmp_path: Path, undrawn: None) -> None:
    _points(tmp_path)
    recipe = Recipe.model_validate(tiny_recipe())
    runs: list[Run] = []
    for name in ("points", "tars"):
        examples = open_examples(recipe, str(tmp_path / name))
        runs.append(Run(recipe, examples, Folder(str(tmp_path / f"run {name}"))))
        runs[-1].fit()
    states = [run.nets["net"].state_dict() for run in runs]
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    assert runs[0].lines == runs[1].lines


def test_jobs_train_on_tars_and_evaluate_on_what_is_held_out(
    tmp_path: Path, undrawn: None, scans: list[str]
) -> None:
    uri, model = f"{_points(tmp_path)}/tars/train-{{0..1}}.tar", str(tmp_path / "model")
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(tiny_recipe()))
    settings = ["data.hold_out=0.3", "data.validate=null"]
    config = TrainConfig(recipe=str(tmp_path / "recipe.yaml"), data=uri, output=model, set=settings)
    with inprocess.jobs():
        trained = train(config)
        assert sorted(scans) == ["train-0.tar", "train-1.tar"]
        assert train(config) == trained
        scored = evaluate_model(EvaluateModelConfig(model=model, data=uri))
        whole = evaluate_model(EvaluateModelConfig(model=model, data=uri, part="."))
    assert scored.root == pytest.approx(trained.metrics, abs=1e-6)
    assert scored.root != whole.root
    assert sorted(scans) == ["train-0.tar"] * 3 + ["train-1.tar"] * 3


# --- which tars are a part -------------------------------------------------------------------


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """A folder of tars, of which some only seem to be those of a part."""
    for name, keys in [
        ("train-00000-of-00002", "ab"), ("train-00001-of-00002", "c"), ("train-clean-000", "x"),
        ("val", "d"), ("valid-000", "y"), (".val-001", "z"), ("test/1", "e"), ("test/in/2", "f"),
        ("test/.3", "g"),
    ]:  # fmt: skip
        _tar(tmp_path / f"{name}.tar", _labelled(keys))
    (tmp_path / "train.txt").touch()
    return tmp_path


def test_a_part_is_the_tars_of_its_name(mixed: Path) -> None:
    assert _pictures(_part(mixed, "train")) == ["a", "b", "c"]
    assert _pictures(_part(mixed, "val", truth="columns")) == ["d"]
    assert _pictures(_part(mixed, "train-clean")) == ["x"]
    with pytest.raises(UserError, match=r"part 'train' of .*, read as folders"):
        _part(mixed, "train", truth="folders")
    test = _part(mixed, "test", truth="folders", stored="tar")
    assert list(test.names) == ["test/1/e", "test/in/2/f"]
    assert test[1] == {"id": "test/in/2/f", "image": b"f", "label": 1}
    whole = _part(mixed, ".", stored="tar")
    assert list(whole.names) == [
        "test/1/e", "test/in/2/f", "train-00000-of-00002/a", "train-00000-of-00002/b",
        "train-00001-of-00002/c", "train-clean-000/x", "val/d", "valid-000/y",
    ]  # fmt: skip
    linked = mixed / "linked"
    linked.mkdir()
    (linked / "train-0.tar").symlink_to(mixed / "val.tar")
    _tar(linked / "train-2-0.tar", _labelled("h"))
    (linked / "train.tar").mkdir()
    assert _pictures(_part(linked, "train")) == ["d"]
    (linked / "train.tar").rmdir()
    _tar(linked / "train.tar", _labelled("h"))
    with pytest.raises(UserError, match=r"train-0\.tar: beside train\.tar, .*; move one away"):
        _part(linked, "train")
    (linked / "train.tar").rename(linked / "train-00000-of-00001.tar")
    with pytest.raises(UserError, match=r"beside train-00000-of-00001\.tar"):
        _part(linked, "train")


def test_a_table_counts_before_tars_unless_it_is_said(mixed: Path) -> None:
    write(mixed / "train.parquet", {"image": [b"t"], "label": [0]})
    assert _pictures(_part(mixed, "train")) == ["t"]
    assert _pictures(_part(mixed, "train", stored="tar")) == ["a", "b", "c"]
    assert _pictures(_part(mixed, "train", stored="table")) == ["t"]


def test_tars_that_are_named_are_one_part(tmp_path: Path) -> None:
    for number in range(3):
        _tar(tmp_path / f"x-{number}.tar", _labelled("abcdefghijkl"))
    uri = str(tmp_path / "x-{0..2}.tar")
    fault = r"x-\{0\.\.2\}\.tar: tars named so are one part, '\.', so no part 'train'; hold some"
    with pytest.raises(UserError, match=fault):
        DataSettings().training(Source(uri), FIELDS)
    with pytest.raises(UserError, match="so no part 'val'"):
        DataSettings().validation(Source(uri), FIELDS)
    assert len(_part(uri)) == 36
    source, settings = Source(uri), DataSettings.model_validate({"hold_out": 0.3})
    train, val = settings.training(source, FIELDS), settings.validation(source, FIELDS)
    assert sorted([*train.names, *val.names]) == list(_part(uri).names)
    assert 4 < len(val) < 18
    for part in (train, val):
        assert _pictures(part) == [id[-1] for id in part.names]
        assert [part.classes[label] for label in part.labels()] == [
            f"c{id[-1]}" for id in part.names
        ]
        counts, sizes = part.pieces
        shards = [id.partition("/")[0] for id in part.names]
        assert counts.tolist() == [shards.count(f"x-{number}") for number in range(3)]
        assert sizes.tolist() == [(tmp_path / f"x-{n}.tar").stat().st_size for n in range(3)]
        assert part.groups is not None
        assert list(part.groups) == list(part.names)


# --- labels and other values -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("labels", "classes", "numbers"),
    [
        (["2", " 0\n", "2"], ["0", "1", "2"], [2, 0, 2]),
        (["dog", "cat\n", "dog"], ["cat", "dog"], [1, 0, 1]),
        (["2", "10", "x"], ["10", "2", "x"], [1, 0, 2]),
        (["0x0a", "0x10", "1"], ["0x0a", "0x10", "1"], [0, 1, 2]),
        (["ü", "雪", "ü"], ["ü", "雪"], [0, 1, 0]),
        (["\ufeff2\r\n", "0", "2"], ["0", "1", "2"], [2, 0, 2]),
    ],
)
def test_classes_are_those_of_a_csv_file(
    tmp_path: Path, labels: list[str], classes: list[str], numbers: list[int]
) -> None:
    members = [(f"{row}.CLS", label.encode()) for row, label in enumerate(labels)]
    part = _part(_tar(tmp_path / "x.tar", members), fields={"label": Label()})
    table = write(tmp_path / "t.csv", {"label": [label.strip("\ufeff \r\n") for label in labels]})
    for one in (part, Source(str(table)).part(".", {"label": Label()})):
        assert list(one.classes) == classes
        assert one.labels().tolist() == numbers == [one[row]["label"] for row in range(3)]
        one.check()


@pytest.mark.parametrize(
    ("label", "fault"),
    [
        (b"-1", "x.tar: member 'cls' holds -1, where whole numbers from 0 to 99,999 are expected"),
        (b" \n", "x.tar: x/2: member 'cls': empty, no class"),
        (b"", "x.tar: x/2: member 'cls': empty, no class"),
        (b"\xff", "x.tar: x/2: member 'cls': a text that is not UTF-8, no class"),
        (b"c" * 1001, "x.tar: x/2: member 'cls': 1,001 bytes, no class"),
        (None, "x.tar: x/2: member 'cls': missing"),
    ],
)
def test_labels_that_are_none(tmp_path: Path, label: bytes | None, fault: str) -> None:
    files = [("1.jpg", b""), ("1.cls", b"0"), ("2.jpg", b"")]
    files += [] if label is None else [("2.cls", label)]
    with pytest.raises(UserError, match=fault):
        _part(_tar(tmp_path / "x.tar", files)).check()


def test_the_extension_of_a_label_may_be_said(tmp_path: Path) -> None:
    path = _tar(tmp_path / "x.tar", _labelled("ab", "KIND.txt"))
    part = _part(path, columns=["label=kind.txt"])
    assert list(part.classes) == ["ca", "cb"]
    with pytest.raises(UserError, match=r"no record has a member 'cls'; say --columns label=EXT"):
        _part(path)


def test_values_come_in_order_by_windows_and_records_directly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = [("1.jpg", b"i"), ("1.txt", b"one"), ("1.more", b"m"), ("2.jpg", b"j"), ("2.txt", b"2")]
    fields = {"image": Picture(), "text": Text(), "more": Text(optional=True)}
    part = _part(_tar(tmp_path / "x.tar", files), fields=fields, columns=["text=txt", "more=more"])
    with monkeypatch.context() as patch:
        patch.setattr(module.Tars, "_directly", None)
        assert list(part.values("text")) == ["one", "2"]
        assert list(part.values("more")) == ["m", None]
    assert list(part.values("id")) == ["x/1", "x/2"]
    monkeypatch.setattr(Windows, "read", None)
    assert part[0] == {"id": "x/1", "image": b"i", "text": "one", "more": "m"}
    assert part[1] == {"id": "x/2", "image": b"j", "text": "2"}
    with pytest.raises(UserError, match="records without a label"):
        part.labels()


def test_a_record_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    files = [("1.jpg", b"i"), ("1.txt", b"\xff"), ("2.txt", b"t"), ("3.txt", b"t")]
    path = _tar(tmp_path / "x.tar", files)
    part = _part(path, fields={"image": Picture(), "text": Text()})
    with pytest.raises(UserError, match=r"x\.tar: x/1: member 'txt': a text that is not UTF-8"):
        part[0]
    with pytest.raises(UserError, match=r"x\.tar: x/2: member 'jpg;.*': missing$"):
        part[1]
    with pytest.raises(UserError, match=r"x\.tar: x/2: member 'jpg;.*': missing \(2 in all\)"):
        part.check()


# --- requests, and what is frozen ------------------------------------------------------------


def test_labels_cost_no_request_and_a_record_one(s3: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    call = s3fs.S3FileSystem._call_s3

    async def noted(self: Any, method: str, *given: Any, **wanted: Any) -> Any:
        asked.append(method)
        return await call(self, method, *given, **wanted)

    folder = Folder(s3.uri("tar-parts/few"))
    folder.write("x.tar", packed(_labelled("abcdefghij")))
    with monkeypatch.context() as patch:
        patch.setattr(s3fs.S3FileSystem, "_call_s3", noted)
        part = _part(f"{folder.uri}/x.tar")
        assert asked == ["head_object", "get_object"]
        assert list(part.classes) == [f"c{key}" for key in "abcdefghij"]
        asked.clear()
        assert part[3]["image"] == b"d"
        assert asked == ["get_object"]


@pytest.fixture
def scans(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The tars whose headers are read."""
    found: list[str] = []
    members = module.members

    def noted(folder: Folder, name: str, *given: Any) -> Any:
        found.append(name)
        return members(folder, name, *given)

    monkeypatch.setattr(module, "members", noted)
    return found


@pytest.mark.parametrize("place", ["disk", "s3"])
@pytest.mark.parametrize(
    ("name", "data"),
    [("numbered", {}), ("below", {"stored": "tar"}), ("numbered/train-{00000..00001}.tar", 0.4)],
)
def test_places_are_those_of_the_start(
    place: str,
    name: str,
    data: Any,
    same: Path,
    tmp_path: Path,
    scans: list[str],
    request: pytest.FixtureRequest,
) -> None:
    data = data if isinstance(data, dict) else {"hold_out": data}
    folder = Folder(str(tmp_path / "data"))
    if place == "s3":
        s3: S3 = request.getfixturevalue("s3")
        folder = Folder(s3.uri(f"tar-parts/{tmp_path.name}"))
    copied = upload(same / name.partition("/")[0], folder)
    recipe, output = _recipe(**data), Folder(str(tmp_path / "out"))
    uri = f"{folder.uri}/{name.partition('/')[2]}".rstrip("/")
    kept = frozen(Source(uri), recipe, output)
    assert len(scans) == (2 if "hold_out" in data else 4)
    scans.clear()
    first = open_examples(recipe, kept)
    records = [[part[row] for row in range(len(part))] for part in (first.train, first.val)]
    added = "train-00002.tar" if name != "below" else "train/deep/2.tar"
    folder.write(added, packed(_labelled("no")))
    again = frozen(Source(uri), recipe, output)
    for source in (kept, again, pickle.loads(pickle.dumps(again))):
        examples = open_examples(recipe, source)
        sent = pickle.dumps(examples)
        assert len(sent) < 5000
        found: Examples = pickle.loads(sent)
        check_examples(found)
        assert records == [[p[row] for row in range(len(p))] for p in (found.train, found.val)]
        for one, two in ((first.train, found.train), (first.val, found.val)):
            assert one.labels().tolist() == two.labels().tolist()
            assert np.array_equal(one.pieces, two.pieces)
    assert not scans
    changed = next(
        path for path in copied if path.endswith(("train-00001.tar", "train/deep/1.tar"))
    )
    data_now = folder.read(changed)
    folder.write(changed, data_now + bytes(10240))
    with pytest.raises(UserError, match=rf"{changed}: changed since the run began; .*--overwrite"):
        check_examples(open_examples(recipe, again))
    moved = packed([("left/new.png", b""), *_labelled("x")])
    folder.write(changed, moved + bytes(len(data_now)))
    examples = open_examples(recipe, again)
    with pytest.raises(UserError, match=rf"{changed}: it was changed after the job began"):
        [part[row] for part in (examples.train, examples.val) for row in range(len(part))]


def test_without_a_run_what_was_found_is_sent_along(mixed: Path, scans: list[str]) -> None:
    """To the tasks of an evaluation."""
    source = Source(str(mixed))
    names = list(source.part("train", FIELDS).names)
    scans.clear()
    part = pickle.loads(pickle.dumps(source)).part("train", FIELDS)
    assert list(part.names) == names
    assert _pictures(part) == ["a", "b", "c"]
    assert not scans


def test_a_listing_in_parts_is_the_whole(mixed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = _part(mixed, "train")
    monkeypatch.setattr("imgray.data.parts.TOGETHER", 2)
    part = _part(mixed, "train")
    assert _pictures(part) == _pictures(whole) == ["a", "b", "c"]
    assert part.pieces[0].tolist() == [2, 1]


def test_what_is_passed_over_is_said_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = Recipe.model_validate(tiny_recipe(data={"stored": "tar"}))
    for part in ("train", "val"):
        _tar(tmp_path / f"data/{part}/x.tar", [*_labelled("abc"), ("README", b"")])
    output = Folder(str(tmp_path / "out"))
    for _ in range(2):
        open_examples(recipe, frozen(Source(str(tmp_path / "data")), recipe, output))
    assert capsys.readouterr().err.count("passed over") == 1


# --- what is refused -------------------------------------------------------------------------


def _refused(uri: Path | str, part: str = "train", **more: Any) -> str:
    layout = Layout(**more.pop("layout", {}))
    with pytest.raises(UserError) as error:
        Source(str(uri), layout, more.pop("features", None)).part(part, FIELDS, **more)
    assert "\n" not in str(error.value)
    return str(error.value).removeprefix(str(uri).rpartition("/")[0] + "/")


@pytest.mark.parametrize(
    ("files", "fault"),
    [
        ([("1.webp2", b""), ("1.cls", b"0")], "part '.' of {}: no record has a member 'jpg;"),
        ([("1.jpg", b"")], "part '.' of {}: no record has a member 'cls'; say --columns label=EXT"),
        ([(".1.jpg", b""), ("a", b"")], "part '.' of {}: no records in tars here, but 2: "
         "1 without suffix, 1 hidden; see data.train, data.validate"),
        ([], "part '.' of {}: no records in tars here; see data.train, data.validate"),
    ],
)  # fmt: skip
def test_tars_without_what_is_wanted(tmp_path: Path, files: Files, fault: str) -> None:
    path = _tar(tmp_path / "x.tar", files)
    with pytest.raises(UserError) as error:
        _part(path)
    assert str(error.value).startswith(fault.format(path))


def test_what_contradicts_itself_is_refused(mixed: Path) -> None:
    val = mixed / "val.tar"
    for flags, fault in [
        ({"layout": {"root": "/"}}, "val.tar: root and pattern are of tables; a tar holds what it"),
        ({"layout": {"pattern": "{}.jpg"}}, "val.tar: root and pattern are of tables"),
        (
            {"layout": {"columns": {"group": "g"}}},
            "--columns group=g: nothing is called 'group' in",
        ),
        ({"features": {"image": "f"}}, f"--features: {val} is read as tars; they are joined to a"),
        ({"stored": "files"}, "val.tar: a tar, but data.stored says files"),
        ({"stored": "table"}, "val.tar: a tar, but data.stored says table"),
    ]:
        assert _refused(val, ".", **flags).startswith(fault)  # type: ignore[arg-type]
    table = write(mixed / "t.csv", {"image": ["a"]})
    assert _refused(table, stored="tar") == "t.csv: a table, but data.stored says tar"


def test_parts_that_are_not_there_or_compressed_are_named(mixed: Path) -> None:
    assert "neither dev.parquet nor dev.csv is here" in _refused(mixed, "dev", truth="columns")
    fault = f"part 'dev' of {mixed}: neither dev.tar, nor dev-00000.tar and so on, nor a folder dev"
    assert _refused(mixed, "dev", stored="tar").startswith(fault)
    (mixed / "dev").mkdir()
    (mixed / "dev" / "readme.md").touch()
    assert "no records in tars here, but 1: 1 .md" in _refused(mixed, "dev", stored="tar")
    (mixed / "dev" / "x.tar.gz").touch()
    assert "dev/x.tar.gz: a compressed tar cannot be" in _refused(mixed, "dev", stored="tar")
    (mixed / "gone-000.tar.gz").touch()
    assert "gone-000.tar.gz: a compressed tar cannot be read in parts" in _refused(mixed, "gone")
    assert _refused(mixed / "x.tgz").startswith("x.tgz: a compressed tar")
    assert "x-1.tar: it does not exist" in _refused(mixed / "x-{1..2}.tar", ".")


def test_a_recipe_takes_tars_by_its_settings(mixed: Path) -> None:
    data = {"stored": "tar", "truth": "folders", "train": ".", "hold_out": 0.5}
    settings = DataSettings.model_validate(data)
    assert json.loads(settings.model_dump_json())["stored"] == "tar"
    source = Source(str(mixed))
    found = settings.training(source, FIELDS), settings.validation(source, FIELDS)
    assert sum(map(len, found)) == 8
