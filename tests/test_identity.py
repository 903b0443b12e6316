"""Whether an output is of these settings, however their URIs are spelt."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from synthetic import clustered, write_features
from tinytask import tiny_recipe, write_points

import imgray.engine.extract
import imgray.engine.index
import imgray.engine.train
from imgray.artifacts.folder import Folder
from imgray.artifacts.identity import settled
from imgray.artifacts.manifest import Manifest, publish
from imgray.config import JobConfig
from imgray.engine.extract import extract
from imgray.engine.index import build_index
from imgray.engine.settings import ExtractConfig, IndexConfig, PredictConfig, TrainConfig
from imgray.engine.train import train
from imgray.errors import UserError
from imgray.training.recipe import Recipe
from imgray.training.task import settled_recipe


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with a folder of photographs."""
    (tmp_path / "photos").mkdir()
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    "spelling",
    ["photos", "./photos", "photos/", "other/../photos", "{here}/photos", "file://{here}/photos"],
)
def test_a_folder_is_the_same_however_it_is_spelt(here: Path, spelling: str) -> None:
    stored = settled({"images": spelling.format(here=here), "size": 3}, {"images"})
    assert stored == {"images": str(here / "photos"), "size": 3}


def test_a_relative_path_is_another_place_from_another_folder(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = settled({"images": "photos"}, {"images"})
    monkeypatch.chdir(here / "other")
    assert settled({"images": "photos"}, {"images"}) != before
    assert settled(before, {"images"}) == before


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("s3://bucket/photos/", "s3://bucket/photos"),
        ("s3://bucket/photos", "s3://bucket/photos"),
        (
            ["net=w/a=b.safetensors", "cfn=s3://b/m/"],
            ["net={here}/w/a=b.safetensors", "cfn=s3://b/m"],
        ),
        ({"models/cfn/": "f00"}, {"{here}/models/cfn": "f00"}),
        ("auto", "{here}/auto"),
        (None, None),
        ([], []),
    ],
)
def test_every_kind_of_setting_that_names_places(here: Path, value: Any, expected: Any) -> None:
    def filled(item: Any) -> Any:
        if isinstance(item, dict):
            return {filled(key): one for key, one in item.items()}
        if isinstance(item, list):
            return [filled(one) for one in item]
        return item.replace("{here}", str(here)) if isinstance(item, str) else item

    assert settled({"x": value}, {"x"}) == {"x": filled(expected)}


@pytest.mark.parametrize("value", ["auto", "none", ["net=auto"]])
def test_words_stand_for_weights_alone(here: Path, value: Any) -> None:
    assert settled({"weights": value}, {"weights"}) == {"weights": value}
    assert settled({"images": value}, {"images"}) != {"images": value}


@pytest.mark.parametrize("kind", [ExtractConfig, PredictConfig, TrainConfig])
def test_places_beside_a_table_are_places(here: Path, kind: type[JobConfig]) -> None:
    stored = {"root": "photos/", "columns": ["id=a"], "features": ["x=f#net.high"]}
    wanted = {"root": str(here / "photos"), "columns": ["id=a"]}
    found = settled(stored, kind.uris)
    assert wanted.items() <= found.items()
    if kind is TrainConfig:
        assert found["features"] == [f"x={here}/f#net.high"]


def test_a_recipe_names_places_too(here: Path) -> None:
    recipe = Recipe(
        task="imgray.classification.edges:EdgeDetection",
        settings={"weights": "vgg/net.safetensors", "trunk": "vgg16"},
        data={"truth": "boundaries"},  # type: ignore[arg-type]
        batch_size=2,
        steps=3,
        start="out/rds-cea/",
    )
    found = settled_recipe(recipe)
    assert found.start == str(here / "out/rds-cea")
    assert found.settings == {"weights": str(here / "vgg/net.safetensors"), "trunk": "vgg16"}
    assert recipe.start == "out/rds-cea/"


def test_a_wrong_recipe_names_no_place() -> None:
    wrong = tiny_recipe(task="imgray.classification.edges:EdgeDetection", settings={"weights": [1]})
    with pytest.raises(UserError, match="settings: weights: "):
        settled_recipe(Recipe.model_validate(wrong))


def _before(output: str, kind: Any, config: JobConfig, more: dict[str, Any], **parts: Any) -> None:
    """Publish an artifact whose settings hold URIs as they were typed."""
    folder, identity = Folder(output), config.identity() | more
    publish(folder, Manifest(kind=kind, config=identity, files=[], **parts))


def _stop(*_: object) -> Manifest:
    raise AssertionError("made again")


def test_an_extraction_is_found_from_elsewhere(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(imgray.engine.extract, "_extract", _stop)
    weights = ["mobilenet_v2=w/net.safetensors"]
    config = ExtractConfig(
        images="./photos/", output="out", extractor=["mobilenet_v2"], weights=weights
    )
    counts = {"listed": 1, "done": 1, "rejected": 0}
    _before("out", "features", config, {}, counts=counts, about={"features": {}})
    changes = {"images": f"{here}/photos", "weights": [f"mobilenet_v2={here}/w/net.safetensors"]}
    assert extract(config).done == 1
    assert extract(config.model_copy(update=changes)).done == 1
    with pytest.raises(UserError, match=f"images: '{here}/photos' there, '{here}/other' now"):
        extract(config.model_copy(update={"images": "other"}))


def test_an_index_is_found_from_elsewhere(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    report = SimpleNamespace(bytes_per_image=1.0, recall={}, modalities={})
    monkeypatch.setattr(imgray.engine.index, "_build", _stop)
    monkeypatch.setattr(imgray.engine.index, "read_report", lambda *_: report)
    digest = write_features("features", clustered(1, 20, 1, {"one.high": 8})).digest
    config = IndexConfig(features="features/", output="out", feature=["one"])
    counts = {"images": 20, "shards": 1}
    _before("out", "index", config, {"features_digest": digest}, counts=counts)
    assert build_index(config.model_copy(update={"features": f"{here}/features"})).images == 20


def test_a_training_is_found_from_elsewhere(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(imgray.engine.train, "_train", _stop)
    write_points(here / "points")
    (here / "recipe.yaml").write_text(yaml.safe_dump(tiny_recipe()))
    config = TrainConfig(recipe="recipe.yaml", data="./points", output="out")
    recipe = Recipe.model_validate(tiny_recipe()).model_dump(mode="json", by_alias=True)
    recipe["data"] = {"form": "parquet", "train": "train", "validate": "val"}  # as of old
    about = {"fingerprint": "f00", "metrics": {}}
    _before("out", "model", config, {"recipe": recipe}, counts={"steps": 40}, about=about)
    assert train(config.model_copy(update={"data": f"{here}/points"})).steps == 40
    with pytest.raises(UserError, match="other settings"):
        train(config.model_copy(update={"set": ["seed=1"]}))
