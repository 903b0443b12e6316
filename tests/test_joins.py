"""Features artifacts joined to tables: each row's own vector, or one line that says what lacks."""

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from synthetic import names, write_features
from tabular import write

from imgray.data import joins
from imgray.data.fields import Text, Vector
from imgray.data.layout import Layout
from imgray.data.tables import Table, open_table
from imgray.engine.examples import digests
from imgray.engine.settings import TrainConfig
from imgray.errors import UserError

IMAGES = 250
DIMS = {"one.high": 6, "two.mid": 4}
FIELDS = {"v": Vector(6), "text": Text(optional=True)}


@pytest.fixture(scope="module")
def vectors() -> dict[str, np.ndarray]:
    """Float32 (N, dim) at the precision of artifacts, by column."""
    chance = np.random.default_rng(5)
    found = {name: chance.normal(size=(IMAGES, dim)) for name, dim in DIMS.items()}
    return {name: v.astype(np.float16).astype(np.float32) for name, v in found.items()}


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory, vectors: dict[str, np.ndarray]) -> str:
    """A features artifact in three parts of several row groups."""
    uri = str(tmp_path_factory.mktemp("features") / "artifact")
    write_features(uri, {name: values[:, None] for name, values in vectors.items()})
    return uri


def _table(folder: Path, columns: dict[str, Any], *given: Any, **features: str) -> Table:
    path = write(folder / "t.parquet", columns)
    return Table(*_place(path), FIELDS, *(given or (None,)), features)


def _place(path: Path) -> tuple[Any, str]:
    table = open_table(str(path), {})
    return table.folder, table.name


@pytest.mark.parametrize("seed", range(4))
def test_every_row_has_the_vector_of_its_id(
    tmp_path: Path, artifact: str, vectors: dict[str, np.ndarray], seed: int
) -> None:
    chance = np.random.default_rng(seed)
    chosen = chance.permutation(IMAGES)[: int(chance.integers(1, IMAGES))]
    table = _table(tmp_path, {"id": [names(IMAGES)[n] for n in chosen]}, v=f"{artifact}#one")
    for one in (table, pickle.loads(pickle.dumps(table))):
        one.check(np.arange(len(chosen)))
        for row, n in zip(one.rows(range(len(chosen))), chosen, strict=True):
            assert row["id"] == names(IMAGES)[n]
            assert row["v"].dtype == np.float32
            np.testing.assert_array_equal(row["v"], vectors["one.high"][n])


def test_rows_may_share_a_vector_by_a_column_of_their_own(
    tmp_path: Path, artifact: str, vectors: dict[str, np.ndarray]
) -> None:
    chosen = np.random.default_rng(0).integers(0, IMAGES, 600)
    columns = {"picture": [names(IMAGES)[n] for n in chosen], "text": [str(n) for n in chosen]}
    table = _table(tmp_path, columns, Layout({"v": "picture"}), v=f"{artifact}#one.high")
    table.check(np.arange(600))
    for row, n in zip(table.rows(range(600)), chosen, strict=True):
        assert row["text"] == str(n)
        np.testing.assert_array_equal(row["v"], vectors["one.high"][n])
    assert len(table.joins["v"]._joined[0]) == len(set(chosen.tolist()))


def test_regions_follow_each_other(tmp_path: Path) -> None:
    values = np.random.default_rng(1).normal(size=(30, 14, 3)).astype(np.float16).astype(np.float32)
    uri = str(tmp_path / "artifact")
    write_features(uri, {"net.high": values})
    path = write(tmp_path / "t.csv", {"id": names(30)[::-1]})
    table = Table(*_place(path), {"v": Vector(42)}, None, {"v": uri})
    np.testing.assert_array_equal(table.rows([0])[0]["v"], values[29].ravel())


@pytest.mark.parametrize(
    ("fields", "layout", "flag", "fault"),
    [
        (FIELDS, None, "{}", "several columns; say --features v=.*#COLUMN, one of one.high, two"),
        (FIELDS, None, "{}#three", "no column 'three'; say --features v=.*#COLUMN, one of one.hi"),
        (FIELDS, None, "{}#two.mid", "1 x 4 numbers each, where 6 are expected"),
        (FIELDS, None, "{}#one", "2 of 3 rows have no vector there, first row 1, 'lost'"),
        (FIELDS, Layout({"v": "key"}), "{}#one", "no column 'key'; it has id"),
        (FIELDS, None, "{}/nowhere", "no features artifact here"),
        ({"v": Text()}, None, "{}#one", "--features v=.*: 'v' is no vector; no input is one"),
        ({"w": Vector(6, optional=True)}, None, "{}#one", "nothing is called 'v'; vectors are w"),
    ],
)
def test_what_cannot_be_joined_is_one_line(
    tmp_path: Path, artifact: str, fields: Any, layout: Layout | None, flag: str, fault: str
) -> None:
    path = write(tmp_path / "t.parquet", {"id": [names(IMAGES)[7], "lost", "lost too"]})
    with pytest.raises(UserError, match=fault) as error:
        Table(*_place(path), fields, layout, {"v": flag.format(artifact)}).check(np.arange(3))
    assert "\n" not in str(error.value)


def test_an_optional_vector_may_lack(tmp_path: Path, artifact: str) -> None:
    path = write(tmp_path / "t.parquet", {"id": ["lost", names(IMAGES)[7]]})
    fields = {"v": Vector(6, optional=True)}
    table = Table(*_place(path), fields, None, {"v": f"{artifact}#one"})
    table.check(np.arange(2))
    assert ["v" in row for row in table.rows([0, 1])] == [False, True]


@pytest.mark.parametrize("optional", [True, False])
@pytest.mark.parametrize("keys", [[None, 7, None], [None] * 3])
def test_a_row_without_a_key_has_no_vector(
    tmp_path: Path, artifact: str, vectors: Any, keys: list[int | None], optional: bool
) -> None:
    columns = {"key": [None if n is None else names(IMAGES)[n] for n in keys]}
    path = write(tmp_path / "t.parquet", columns)
    fields = {"v": Vector(6, optional=optional)}
    table = Table(*_place(path), fields, Layout({"v": "key"}), {"v": f"{artifact}#one"})
    if not optional:
        with pytest.raises(UserError, match="row 0, column 'key': empty"):
            table.check(np.arange(3))
        return
    table.check(np.arange(3))
    for row, n in zip(table.rows(range(3)), keys, strict=True):
        assert ("v" in row) == (n is not None)
        if n is not None:
            np.testing.assert_array_equal(row["v"], vectors["one.high"][n])


@pytest.mark.parametrize("column", ["v", "w"])
def test_a_column_that_was_meant_to_hold_the_keys_is_hinted_at(
    tmp_path: Path, artifact: str, column: str
) -> None:
    table = _table(tmp_path, {column: names(3)}, v=f"{artifact}#one")
    hint = "; ids are the rows' own, --columns v=COLUMN takes them from a column"
    faults = []
    for refused in (lambda: table.check(np.arange(3)), lambda: table.rows([0])):
        with pytest.raises(UserError, match="no vector") as error:
            refused()
        faults.append(str(error.value).endswith(hint))
    assert faults == [column == "v"] * 2


def test_none_of_the_rows_is_there(tmp_path: Path, artifact: str) -> None:
    table = _table(tmp_path, {"id": ["lost"]}, v=f"{artifact}#one")
    with pytest.raises(UserError, match="1 of 1 rows have no vector"):
        table.check(np.arange(1))


def _changed(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 4] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("damage", [_changed, Path.unlink, lambda p: p.write_bytes(b"")])
def test_a_damaged_artifact_is_one_line(tmp_path: Path, damage: Callable[[Path], Any]) -> None:
    uri = tmp_path / "artifact"
    write_features(str(uri), {"net.high": np.zeros((50, 1, 6), np.float32)})
    table = _table(tmp_path, {"id": names(50)}, v=str(uri))
    damage(uri / "part-00000.parquet")
    with pytest.raises(UserError, match="artifact") as error:
        table.check(np.arange(50))
    assert "\n" not in str(error.value)


def test_a_vector_that_is_not_finite_is_named(tmp_path: Path) -> None:
    values = np.zeros((50, 1, 6), np.float32)
    values[33, 0, 2] = np.nan
    write_features(str(tmp_path / "artifact"), {"net.high": values})
    table = _table(tmp_path, {"id": names(50)[::-1]}, v=str(tmp_path / "artifact"))
    with pytest.raises(UserError, match=f"the vector of '{names(50)[33]}' holds a number that is"):
        table.check(np.arange(50))


def test_parts_that_no_row_asks_for_are_not_read(
    tmp_path: Path, artifact: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    original = joins.read_file
    monkeypatch.setattr(joins, "read_file", lambda f, e: read.append(e.name) or original(f, e))
    table = _table(tmp_path, {"id": names(IMAGES)[110:150]}, v=f"{artifact}#one")
    table.rows(range(40))
    assert read == ["part-00001.parquet"]


def test_the_settings_of_a_run_know_the_artifact(
    tmp_path: Path, artifact: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(Path(artifact).parent)
    config = TrainConfig(recipe="r", data="d", output="o", features=["v=artifact#one"])
    assert config.joined == {"v": f"{artifact}#one"}
    before = digests(config.joined)
    other = str(tmp_path / "other")
    write_features(other, {"one.high": np.zeros((IMAGES, 1, 6), np.float32)})
    assert digests({"v": other}) != before == digests({"v": artifact})
    with pytest.raises(UserError, match="--features v: expected NAME=URI"):
        TrainConfig(recipe="r", data="d", output="o", features=["v"]).joined  # noqa: B018
