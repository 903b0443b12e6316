"""`import imgray`: the same answers as the commands and the service give, without Ray."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import requests
from conftest import S3
from PIL import Image
from service import Artifacts
from synthetic import clustered, names, write_features
from trained import SIZE, train, write

import imgray
from imgray.artifacts.folder import Folder
from imgray.engine.search import SearchEngine, search
from imgray.engine.settings import SearchConfig
from imgray.errors import UserError
from imgray.library import PREDICTED_AT_ONCE, Index, Model, Result
from imgray.training.models import load_model

DIMS = {"a.high": 8, "b.mid": 6}


def _python(code: str, *words: str) -> None:
    """Run code in a process of its own; it must end well."""
    done = subprocess.run(
        [sys.executable, "-c", code, *words], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr


def test_the_package_itself_loads_nothing() -> None:
    heavy = "{'torch', 'ray', 'pyarrow', 'numpy', 'pydantic'}"
    _python(f"import imgray, sys; assert not {heavy} & set(sys.modules)")
    assert {"open_features", "open_index", "open_model"} <= set(dir(imgray))
    with pytest.raises(AttributeError, match="no attribute 'open_door'"):
        imgray.open_door  # noqa: B018


# --- an index ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def index(artifacts: Artifacts) -> Index:
    return imgray.open_index(artifacts.indexes[0])


@pytest.fixture(scope="module")
def engine(artifacts: Artifacts) -> SearchEngine:
    return SearchEngine(artifacts.indexes[0])


@pytest.fixture(scope="module")
def photo(artifacts: Artifacts) -> Path:
    """A PNG: its pixels are its bytes'."""
    return min(artifacts.images.rglob("*.png"))


def test_every_form_of_an_image_finds_what_the_job_finds(
    index: Index, artifacts: Artifacts, photo: Path
) -> None:
    job = SearchConfig(index=artifacts.indexes[0], query=[str(photo)], top=7)
    [answer] = search(job).answers
    assert len(answer.results) == 7
    assert answer.results[0].id == photo.relative_to(artifacts.images).as_posix()
    with Image.open(photo) as picture:
        pixels = np.asarray(picture)
        for image in (photo.read_bytes(), str(photo), photo, picture, pixels):
            assert index.search(image, top=7) == answer.results
    assert all(isinstance(found, Result) for found in answer.results)


def test_the_pixels_of_a_jpeg_find_what_its_bytes_find(index: Index, artifacts: Artifacts) -> None:
    path = min(artifacts.images.rglob("*.jpg"))
    with Image.open(path) as picture:
        assert index.search(picture) == index.search(path)


def test_an_indexed_image_is_asked_by_its_id(
    index: Index, artifacts: Artifacts, photo: Path
) -> None:
    id = photo.relative_to(artifacts.images).as_posix()
    assert index.search(id=id) == index.search(photo)
    assert len(index.search(id=id)) == 10


def test_weights_and_a_prefix_reach_the_ranking(
    index: Index, engine: SearchEngine, photo: Path
) -> None:
    name = engine.extractor.names[0]
    for weights, prefix in (({name: 0.0}, ""), ({}, "a/"), ({name: 3.0}, "b/")):
        [hits] = engine.search_images({"": photo.read_bytes()}, 20, weights, prefix)
        found = index.search(photo, top=20, weights=weights, prefix=prefix)
        assert found == hits.results()
        assert all(one.id.startswith(prefix) for one in found)
        assert found
        assert found != index.search(photo, top=20)


@pytest.mark.parametrize(
    ("asked", "reason"),
    [
        ({}, "an image or an id"),
        ({"image": b"", "id": "a"}, "an image or an id"),
        ({"image": b""}, "^image: empty"),
        ({"image": b"no picture"}, "^image: not a readable"),
        ({"image": "/nowhere/a.jpg"}, "/nowhere/a.jpg: it does not exist"),
        ({"image": Path(__file__)}, r"test_library.py: not a readable"),
        ({"image": [b"a", b"b"]}, "^image of type list: expected bytes, a path, a PIL image"),
        ({"image": 7}, "^image of type int"),
        ({"image": np.zeros((9, 9, 3), np.float32)}, "array of float32, 9 x 9 x 3; expected uint8"),
        ({"image": np.zeros((3, 9, 9), np.uint8)}, "array of uint8, 3 x 9 x 9; expected"),
        ({"image": np.zeros((0, 9), np.uint8)}, "array of uint8, 0 x 9; expected"),
        ({"id": "no such.jpg"}, "has no image 'no such.jpg'"),
        ({"image": np.zeros((9, 9), np.uint8), "top": 0}, "top=0"),
        ({"image": np.zeros((9, 9), np.uint8), "weights": {"x": 1}}, "weight of 'x': the index"),
    ],
)
def test_what_cannot_be_asked_is_a_line(index: Index, asked: dict[str, Any], reason: str) -> None:
    with pytest.raises(UserError, match=reason) as error:
        index.search(**asked)
    assert "\n" not in str(error.value)


def test_an_index_and_a_model_need_no_ray(artifacts: Artifacts, photo: Path) -> None:
    code = """
import sys, imgray
index, model, photo = sys.argv[1:]
assert imgray.open_index(index).search(photo)
assert imgray.open_model(model).predict(photo).row
assert "ray" not in sys.modules
"""
    _python(code, artifacts.indexes[0], artifacts.models["classify"], str(photo))


def test_what_is_no_index_is_refused(artifacts: Artifacts) -> None:
    with pytest.raises(UserError, match="a features artifact, but index is needed"):
        imgray.open_index(artifacts.features)
    with pytest.raises(UserError, match="a features artifact, but model is needed"):
        imgray.open_model(artifacts.features)


def test_an_index_without_faiss_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(UserError, match=r"pip install 'imgray\[cpu\]'"):
        imgray.open_index("nowhere")


@pytest.mark.slow
def test_the_service_answers_the_same(
    index: Index, artifacts: Artifacts, served: str, photo: Path
) -> None:
    answer = requests.post(f"{served}/v1/search", data=photo.read_bytes(), timeout=300)
    assert answer.status_code == 200, answer.text
    found = [Result.model_validate(one) for one in answer.json()["results"]]
    assert found == index.search(photo, top=len(found))


# --- a model ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def segmenter(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("segmenter")
    output = Folder(str(folder / "model"))
    train("masks", write("masks", folder / "data"), output, steps=2)
    return output.uri


@pytest.fixture(scope="module")
def model(segmenter: str) -> Model:
    return imgray.open_model(segmenter)


def _images(count: int) -> list[np.ndarray[Any, Any]]:
    """Pictures of two shapes in turn."""
    chance = np.random.default_rng(0)
    shapes = [(SIZE + 8 * (number % 2), SIZE, 3) for number in range(count)]
    return [chance.integers(0, 256, shape, np.uint8) for shape in shapes]


def test_a_model_says_what_its_task_says(model: Model, segmenter: str, tmp_path: Path) -> None:
    [pixels] = _images(1)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    raw = load_model(segmenter)
    data = (tmp_path / "a.png").read_bytes()
    [expected] = raw.predict([raw.task.prepare({"image": data})], "cpu")
    for image in (data, tmp_path / "a.png", pixels, Image.fromarray(pixels)):
        found = model.predict(image)
        assert found.row == expected.row
        assert found.picture is not None
        np.testing.assert_array_equal(found.picture, expected.picture)
    assert model.classes == ("left", "right")


def test_a_list_gives_a_list_in_its_order(model: Model) -> None:
    images = _images(PREDICTED_AT_ONCE + 3)
    found = model.predict(images)
    assert len(found) == len(images)
    for image, one in zip(images, found, strict=True):
        assert one.picture is not None
        assert one.picture.shape == image.shape[:2]
        alone = model.predict(image).picture
        assert alone is not None
        assert (one.picture == alone).mean() > 0.99
    assert model.predict([]) == []


def test_the_image_of_a_list_that_is_none_is_named(model: Model, tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"none")
    [good] = _images(1)
    for bad, name in ((b"none", r"^image\[1\]: "), (tmp_path / "a.jpg", r"a\.jpg: ")):
        with pytest.raises(UserError, match=name):
            model.predict([good, bad])
    with pytest.raises(UserError, match=r"^image\[1\] of type NoneType"):
        model.predict([good, None])  # type: ignore[list-item]


# --- features ---------------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["disk", "s3"])
def test_features_are_a_table(place: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    s3: S3 | None = request.getfixturevalue("s3") if place == "s3" else None
    uri = s3.uri("library/features") if s3 else str(tmp_path / "features")
    vectors = clustered(0, 230, 14, DIMS)
    write_features(uri, vectors)
    Folder(uri).write("part-00009.parquet", b"left by a run that was killed")
    found = imgray.open_features(uri)
    assert found.count_rows() == 230
    assert found.schema.names == ["id", "width", "height", *DIMS]
    table = found.to_table(columns=["id", "b.mid"])
    assert table["id"].to_pylist() == names(230)
    values = np.array(table["b.mid"].to_pylist(), np.float32).reshape(230, 14, 6)
    np.testing.assert_array_equal(values, vectors["b.mid"])
    assert table["b.mid"].type.value_type == pa.float32()  # DuckDB reads no float16
    assert found.schema.field("b.mid").metadata[b"regions"] == b"14"


def test_features_of_which_a_part_is_missing_are_refused(tmp_path: Path) -> None:
    write_features(str(tmp_path), clustered(0, 230, 1, DIMS))
    (tmp_path / "part-00001.parquet").unlink()
    with pytest.raises(UserError, match=r"part-00001\.parquet is missing or truncated"):
        imgray.open_features(str(tmp_path))


def test_what_is_no_features_artifact_is_refused(segmenter: str) -> None:
    with pytest.raises(UserError, match="a model artifact, but features is needed"):
        imgray.open_features(segmenter)


def test_features_need_neither_torch_nor_ray(tmp_path: Path) -> None:
    write_features(str(tmp_path), clustered(0, 20, 1, DIMS))
    code = """
import sys, imgray
assert imgray.open_features(sys.argv[1]).count_rows() == 20
assert not {"torch", "ray"} & set(sys.modules)
"""
    _python(code, str(tmp_path))
