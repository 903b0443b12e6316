"""Parts of data sets: which rows and files they are, their classes, and that they stay frozen."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tabular import write
from tinytask import tiny_recipe, write_points
from trained import RECIPES
from trained import write as write_files

from imgray.artifacts.folder import Folder
from imgray.data.datasets import Dataset
from imgray.data.fields import Label, Picture, Text
from imgray.data.layout import Layout
from imgray.data.names import FROZEN, Snapshot
from imgray.data.sources import Source
from imgray.data.unpaired import Unpaired
from imgray.engine.examples import check_examples, frozen, open_examples
from imgray.errors import UserError
from imgray.training.recipe import DataSettings, Recipe

TEXT = {"text": Text()}


def _settings(**changes: Any) -> DataSettings:
    return DataSettings.model_validate(changes)


def _parts(uri: Path | str, layout: Layout | None = None, **data: Any) -> tuple[Dataset, Dataset]:
    source, settings = Source(str(uri), layout), _settings(**data)
    return settings.training(source, TEXT), settings.validation(source, TEXT)


@pytest.mark.parametrize("suffix", [".parquet", ".csv"])
def test_the_column_split_cuts_a_table_into_parts(tmp_path: Path, suffix: str) -> None:
    splits = ["train", "val", "train", "test", "val"]
    path = write(tmp_path / f"t{suffix}", {"text": list("abcde"), "split": splits})
    for part, wanted in zip(_parts(path), ("ac", "be"), strict=True):
        assert [part[row]["text"] for row in range(len(part))] == list(wanted)
        assert list(part.names) == [str("abcde".index(letter)) for letter in wanted]
    whole, _ = _parts(path, train=".")
    assert len(whole) == 5
    with pytest.raises(UserError, match="no row whose split is 'dev'; there are test, train, val"):
        _parts(path, validate="dev")


def test_domains_have_the_pieces_of_the_larger(tmp_path: Path) -> None:
    """So that a large table is read row group by row group."""
    path = tmp_path / "t.parquet"
    labels = ["x", "y", "y", "y", "x", "y", "y"]
    table = pa.table({"image": [b"."] * 7, "label": labels})
    pq.write_table(table, path, row_group_size=3)
    fields = {"image": Picture(), "label": Label()}
    whole = Source(str(path)).part(".", fields, "columns", whole=True)
    counts, sizes = Unpaired(whole).pieces
    assert counts.tolist() == [2, 2, 1]
    assert np.array_equal(sizes, whole.pieces[1])


@pytest.mark.parametrize("suffix", [".parquet", ".csv"])
@pytest.mark.parametrize(
    ("groups", "wanted"),
    [(["a", "b"], ["a", "b"]), ([7, 8], ["7", "8"]), (["a", None], ["a"])],
)
def test_a_record_brings_its_group(
    tmp_path: Path, suffix: str, groups: list[Any], wanted: list[str]
) -> None:
    columns = {"text": list("xy"), "photo": groups, "split": ["train"] * 2}
    path = write(tmp_path / f"t{suffix}", columns)
    found = Source(str(path), Layout(columns={"group": "photo"})).part("train", TEXT)
    assert [found[row]["group"] for row in range(2) if "group" in found[row]] == wanted
    plain = Source(str(path)).part("train", TEXT)
    assert set(plain[0]) == {"id", "text"}


@pytest.mark.parametrize("suffix", [".parquet", ".csv"])
@pytest.mark.parametrize("held", [{}, {"hold_out": 0.4}])
def test_the_values_of_one_name_are_those_of_the_records(
    tmp_path: Path, suffix: str, held: dict[str, Any]
) -> None:
    """Of a field in a column of its own, which alone is read, and of others."""
    splits = ["val" if n % 5 == 0 else "train" for n in range(40)]
    columns = {"text": [f"text {n}" for n in range(40)], "label": ["one", "two"] * 20}
    options = {"row_group_size": 7} if suffix == ".parquet" else {}
    ids = [f"id {n}" for n in range(40)]
    path = write(tmp_path / f"t{suffix}", {"id": ids, **columns, "split": splits}, **options)
    for part in (
        _settings(**held).training(Source(str(path)), {**TEXT, "label": Label()}),
        _settings(**held).validation(Source(str(path)), {**TEXT, "label": Label()}),
    ):
        for name in ("text", "label", "id"):
            assert list(part.values(name)) == [part[row][name] for row in range(len(part))]


def test_a_value_that_is_missing_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "t.parquet", {"text": ["a", None], "split": ["train"] * 2})
    with pytest.raises(UserError, match=r"t\.parquet: row 1, column 'text': missing"):
        list(Source(str(path)).part("train", TEXT).values("text"))


@pytest.mark.parametrize("suffix", [".parquet", ".csv"])
def test_a_folder_has_a_table_for_each_part(tmp_path: Path, suffix: str) -> None:
    for part, texts in (("train", ["a", "b"]), ("val", ["c"])):
        write(tmp_path / f"{part}{suffix}", {"text": texts})
    train, val = _parts(tmp_path)
    assert [train[0]["text"], train[1]["text"], val[0]["text"]] == ["a", "b", "c"]
    with pytest.raises(UserError, match=r"neither test.parquet nor test.csv is here"):
        _parts(tmp_path, validate="test")


def test_a_table_without_parts_says_how_to_go_on(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", {"text": list("abcde"), "id": list("abcde")})
    with pytest.raises(UserError, match=r"no column 'split', so no part 'train'; .*hold_out=0.1"):
        _parts(path)
    train, val = _parts(path, hold_out=0.4)
    assert sorted([*train.names, *val.names]) == list("abcde")


@pytest.mark.parametrize(
    ("data", "fault"),
    [
        ({}, "data.truth does not say where the truth of files is: folders, masks, boundaries"),
        ({"truth": "columns"}, "neither train.parquet nor train.csv is here"),
        ({"stored": "table", "truth": "masks"}, "neither train.parquet nor train.csv is here"),
        ({"truth": "masks"}, "read as masks"),
    ],
)
def test_where_the_truth_is_has_to_be_said_of_files(
    tmp_path: Path, data: dict[str, Any], fault: str
) -> None:
    write_files("folders", tmp_path)
    with pytest.raises(UserError, match=fault):
        _parts(tmp_path, **data)


def test_a_table_beside_the_files_is_no_part_of_them(tmp_path: Path) -> None:
    write(write_files("folders", tmp_path) / "train.csv", {"text": ["a"]})
    source = Source(str(tmp_path))
    assert len(source.part("train", TEXT, truth="folders")) == 12
    assert len(source.part("train", TEXT, truth="folders", stored="table")) == 1
    assert len(source.part("train", TEXT)) == 1
    with pytest.raises(UserError, match=r"a table, but data.stored says files"):
        Source(f"{tmp_path}/train.csv").part("train", TEXT, truth="folders", stored="files")


@pytest.mark.parametrize(
    ("layout", "features", "flag"),
    [(Layout({"text": "x"}), {}, "--columns"), (Layout({}, "/", None), {}, "--root"),
     (Layout({}, None, "{}.jpg"), {}, "--pattern"), (None, {"v": "x"}, "--features")],
)  # fmt: skip
def test_files_have_no_columns(
    tmp_path: Path, layout: Layout | None, features: dict[str, str], flag: str
) -> None:
    source = Source(str(write_files("folders", tmp_path)), layout, features)
    with pytest.raises(UserError, match=f"{flag}: .* is read as files, which have no columns"):
        source.part("train", truth="folders")


@pytest.mark.parametrize("seed", range(3))
def test_rows_of_a_group_stay_on_one_side(tmp_path: Path, seed: int) -> None:
    chance = np.random.default_rng(seed)
    pictures = [f"{n}.jpg" for n in chance.integers(0, 60, 300)]
    texts = [f"caption {n}" for n in range(300)]
    path = write(tmp_path / "t.csv", {"picture": pictures, "text": texts})
    layout = Layout({"group": "picture"})
    train, val = _parts(path, layout, hold_out=0.3)
    groups = [{pictures[int(id)] for id in part.names} for part in (train, val)]
    assert not groups[0] & groups[1]
    assert len(train) + len(val) == 300
    assert 5 < len(groups[1]) < 35
    alone = write(tmp_path / "u.csv", {"id": sorted(set(pictures)), "text": sorted(set(pictures))})
    assert set(_parts(alone, hold_out=0.3)[1].names) == groups[1]
    with pytest.raises(UserError, match="hold_out needs a column 'id' or 'group'"):
        _parts(path, hold_out=0.3)


@pytest.mark.parametrize(
    ("name", "columns", "classes", "labels"),
    [
        ("t.parquet", {"label": [2, 0, 2]}, ["0", "1", "2"], [2, 0, 2]),
        ("t.parquet", {"label": [1, 0, 1], "class": ["b", "a", "b"]}, ["a", "b"], [1, 0, 1]),
        ("t.parquet", {"label": [1, 0, 1], "class": ["b", None, ""]}, ["0", "b"], [1, 0, 1]),
        ("t.parquet", {"label": [1, 0, 1], "class": [None] * 3}, ["0", "1"], [1, 0, 1]),
        ("t.parquet", {"label": pa.array([1, 0, 1], pa.uint64())}, ["0", "1"], [1, 0, 1]),
        (
            "t.parquet",
            {"label": pa.array(["b", "a", "b"], pa.large_string())},
            ["a", "b"],
            [1, 0, 1],
        ),
        (
            "t.parquet",
            {"label": pa.array(["b", "a", "b"], pa.string_view())},
            ["a", "b"],
            [1, 0, 1],
        ),
        ("t.parquet", {"label": ["dog", "cat", "dog"]}, ["cat", "dog"], [1, 0, 1]),
        ("t.parquet", {"label": ["2", "10", "2"]}, ["10", "2"], [1, 0, 1]),
        ("t.csv", {"label": ["2", "10", "2"]}, [str(n) for n in range(11)], [2, 10, 2]),
        ("t.csv", {"label": ["dog", "cat", "dog"]}, ["cat", "dog"], [1, 0, 1]),
    ],
)
def test_classes_are_numbers_with_names_or_names(
    tmp_path: Path, name: str, columns: dict[str, Any], classes: list[str], labels: list[int]
) -> None:
    path = write(tmp_path / name, columns)
    part = Source(str(path)).part(".", {"label": Label()})
    assert list(part.classes) == classes
    assert part.labels().tolist() == labels == [part[row]["label"] for row in range(3)]
    part.check()


@pytest.mark.parametrize(
    ("columns", "fault"),
    [
        ({"label": [0, -1]}, "column 'label' holds -1, where whole numbers from 0 to 99,999 are"),
        ({"label": [0, 100_000]}, "column 'label' holds 100000, where whole numbers from 0 to 99,"),
        ({"label": pa.array([0, 2**63], pa.uint64())}, f"column 'label' holds {2**63}, where"),
        ({"label": ["a", " "]}, "row 1, column 'label': empty"),
        ({"label": [0, 1], "class": [["a"], ["b"]]}, "column 'class' holds list<.*>, where texts"),
        ({"label": [0.5, 1]}, "column 'label' holds double, where a label is expected"),
        ({"label": [0, None]}, "row 1, column 'label': missing"),
        ({"label": [0, 0], "class": ["a", "b"]}, "a label has two names in column 'class'"),
    ],
)
def test_labels_that_are_none(tmp_path: Path, columns: dict[str, Any], fault: str) -> None:
    path = write(tmp_path / "t.parquet", columns)
    with pytest.raises(UserError, match=fault):
        Source(str(path)).part(".", {"label": Label()}).check()


def test_few_rows_may_have_high_labels(tmp_path: Path) -> None:
    part = Source(str(write(tmp_path / "t.csv", {"label": ["21840", "3"]}))).part(
        ".", {"label": Label()}, whole=True
    )
    assert part.labels().tolist() == [21840, 3]
    assert len(part.classes) == 21841


def test_rows_of_other_parts_may_lack_what_is_needed(tmp_path: Path) -> None:
    columns = {"text": ["a", None], "label": [0, None], "split": ["train", "test"]}
    source = Source(str(write(tmp_path / "t.parquet", columns)))
    source.part("train", TEXT | {"label": Label()}).check()
    with pytest.raises(UserError, match="row 1, column 'text': missing"):
        source.part("test", TEXT | {"label": Label()}).check()


def test_parts_of_a_table_are_sent_with_one_table(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", {"text": list("abcd"), "split": ["train", "val"] * 2})
    train, val = pickle.loads(pickle.dumps(_parts(path)))
    assert train.table is val.table
    assert len(pickle.dumps((train, val))) < 2000
    assert [train[1]["text"], val[0]["text"]] == ["c", "b"]


def _recipe(kind: str, **data: Any) -> Recipe:
    recipe = {**RECIPES[kind], "data": data, "batch_size": 2, "steps": 1}
    return Recipe.model_validate(recipe)


@pytest.mark.parametrize(
    ("kind", "truth"), [("folders", "folders"), ("masks", "masks"), ("edges", "boundaries")]
)
def test_files_are_those_of_the_start(tmp_path: Path, kind: str, truth: str) -> None:
    recipe = _recipe(kind, truth=truth)
    data, output = write_files(kind, tmp_path / "data"), Folder(str(tmp_path / "out"))
    kept = frozen(Source(str(data)), recipe, output)
    before = open_examples(recipe, kept)
    names = [list(part.names) for part in (before.train, before.val)]
    first = next(iter(sorted(data.rglob("train/**/0.png"))))
    first.with_name("added.png").write_bytes(first.read_bytes())
    again = frozen(Source(str(data)), recipe, output)
    for source in (kept, again, pickle.loads(pickle.dumps(again))):
        found = pickle.loads(pickle.dumps(open_examples(recipe, source)))
        assert [list(part.names) for part in (found.train, found.val)] == names
        check_examples(found)
    first.unlink()
    with pytest.raises(UserError, match=r"0\.png: it does not exist"):
        check_examples(open_examples(recipe, again))


@pytest.mark.parametrize("held", [False, True])
def test_a_table_that_has_changed_is_refused(tmp_path: Path, held: bool) -> None:
    changes: dict[str, Any] = {"hold_out": 0.3} if held else {}
    recipe = Recipe.model_validate(tiny_recipe(data=changes))
    data, output = write_points(tmp_path / "data"), Folder(str(tmp_path / "out"))
    table = pq.read_table(data / "train.parquet").append_column("id", pa.array(range(70)))
    pq.write_table(table, data / "train.parquet")
    kept = frozen(Source(str(data)), recipe, output)
    check_examples(pickle.loads(pickle.dumps(open_examples(recipe, kept))))
    pq.write_table(table.slice(0, 69), data / "train.parquet")
    with pytest.raises(UserError, match=r"train.parquet: changed since the run began; .*overwrite"):
        open_examples(recipe, frozen(Source(str(data)), recipe, output))


def test_a_million_names_are_kept_cheaply(tmp_path: Path) -> None:
    snapshot = Snapshot(Folder(str(tmp_path)))
    names = pa.array([f"class {n % 1000:04}/image {n:08}.jpg" for n in range(300_000)])
    snapshot.found = {"train": names, "val": names[:7], "t.parquet": pa.array(["f00"])}
    snapshot.save(Folder(str(tmp_path)))
    assert (tmp_path / FROZEN).stat().st_size < 10 * 300_000
    again = Snapshot(Folder(str(tmp_path)), Folder(str(tmp_path)))
    assert again.images("train").array.equals(names)
    assert list(again.images("val")) == names[:7].to_pylist()
    again.check_table("t.parquet", "f00")
    with pytest.raises(UserError, match="was not looked at as the run began"):
        again.images("test")
    assert len(pickle.dumps(again)) < 1000
