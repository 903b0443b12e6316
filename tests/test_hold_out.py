"""Data with a single part: some records of it are held out to validate on."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from conftest import S3
from tinytask import tiny_recipe, write_points

from imgray.artifacts.folder import Folder
from imgray.data.datasets import Dataset
from imgray.data.sources import Source
from imgray.engine.train import check_examples, open_examples
from imgray.errors import UserError
from imgray.training.recipe import DataSettings, Recipe


def _write(folder: Path, count: int = 100) -> Path:
    for number in range(count):
        path = folder / ("cat" if number % 4 else "dog") / "deep" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(str(number).encode())
    return folder


def _parts(folder: Path | str, hold_out: float, **data: Any) -> tuple[Dataset, Dataset]:
    settings = DataSettings.model_validate(
        {"truth": "folders", "train": ".", "hold_out": hold_out, **data}
    )
    source = Source(str(folder))
    return settings.training(source), settings.validation(source)


def test_every_record_is_on_one_side_with_its_own_label(tmp_path: Path) -> None:
    whole = Source(str(_write(tmp_path))).part(".", truth="folders")
    parts = _parts(tmp_path, 0.3)
    assert sorted([*parts[0].names, *parts[1].names]) == list(whole.names)
    assert 20 < len(parts[1]) < 40
    for part in parts:
        assert part.classes == ["cat", "dog"]
        assert part.labels().tolist() == [int("dog" in name) for name in part.names]
        for index, name in enumerate(part.names):
            content = (tmp_path / name).read_bytes()
            assert part[index] == {"id": name, "image": content, "label": int("dog" in name)}


def test_a_record_stays_on_its_side(tmp_path: Path) -> None:
    before = set(_parts(_write(tmp_path, 60), 0.3)[1].names)
    after = set(_parts(_write(tmp_path, 300), 0.3)[1].names)
    less = set(_parts(tmp_path, 0.1)[1].names)
    assert before == {id for id in after if int(Path(id).stem) < 60}
    assert less < after


def test_another_process_has_the_same_parts(tmp_path: Path) -> None:
    for part in _parts(_write(tmp_path), 0.3):
        sent = pickle.loads(pickle.dumps(part))
        assert list(sent.names) == list(part.names)
        assert sent[3] == part[3]


def test_in_s3(s3: S3, tmp_path: Path) -> None:
    folder = Folder(s3.uri("held/out"))
    for path in sorted(_write(tmp_path, 20).rglob("*.png")):
        folder.write(str(path.relative_to(tmp_path)), path.read_bytes())
    for remote, local in zip(_parts(folder.uri, 0.3), _parts(tmp_path, 0.3), strict=True):
        assert list(remote.names) == list(local.names)
        assert remote[0] == local[0]


def test_of_a_table(tmp_path: Path) -> None:
    recipe = Recipe.model_validate(tiny_recipe(data={"hold_out": 0.2}))
    path = write_points(tmp_path) / "train.parquet"
    with pytest.raises(UserError, match="hold_out needs a column 'id' or 'group'"):
        open_examples(recipe, str(tmp_path))
    table = pq.read_table(path)
    pq.write_table(table.append_column("id", [[f"point {n}" for n in range(70)]]), path)
    examples = open_examples(recipe, str(tmp_path))
    assert len(examples.train) + len(examples.val) == 70
    assert 5 < len(examples.val) < 25
    labels = [int(examples.val[row]["label"]) for row in range(len(examples.val))]
    np.testing.assert_array_equal(examples.val.labels(), labels)


@pytest.mark.parametrize(
    ("hold_out", "fault"),
    [
        (1e-9, "4 records: hold_out 1e-09: nothing is held out; hold out more"),
        (1 - 1e-9, "hold_out 1: all is held out; hold out less"),
    ],
)
def test_neither_side_is_empty(tmp_path: Path, hold_out: float, fault: str) -> None:
    with pytest.raises(UserError, match=fault):
        _parts(_write(tmp_path, 4), hold_out)


def test_a_class_that_is_all_held_out_is_named(tmp_path: Path) -> None:
    for number in range(20):
        (tmp_path / f"{number}").mkdir()
        (tmp_path / f"{number}" / "only.png").write_bytes(b"")
    recipe = {
        "task": "imgray.classification.images:Classification",
        "data": {"truth": "folders", "train": ".", "hold_out": 0.5},
        "batch_size": 1,
        "steps": 1,
    }
    with pytest.raises(UserError, match=r"part '\. \(0.5 held out\)': class .* has no image"):
        check_examples(open_examples(Recipe.model_validate(recipe), str(tmp_path)))
