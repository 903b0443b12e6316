"""A model that learnt from features answers pictures: it carries the networks that made them."""

import hashlib
import io
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import inprocess
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from conftest import TinyNet
from vectortask import JOINT

import imgray
from imgray.artifacts.folder import Folder
from imgray.artifacts.manifest import read_file, read_manifest
from imgray.data.fields import Picture, Vector
from imgray.data.joins import Columns
from imgray.engine.evaluate_model import evaluate_model
from imgray.engine.extract import extract
from imgray.engine.predict import predict
from imgray.engine.settings import EvaluateModelConfig, ExtractConfig, PredictConfig, TrainConfig
from imgray.engine.train import train
from imgray.errors import UserError
from imgray.features.extractor import load_extractor
from imgray.training.joint import load_joint
from imgray.training.models import load_model, load_task

TEXT = 6
"""Numbers of a text's vector, which somebody has brought."""
HELD = 10


@pytest.fixture(scope="module", autouse=True)
def without_ray() -> Iterator[inprocess.Cluster]:
    with inprocess.jobs() as cluster:
        yield cluster


@pytest.fixture(scope="module")
def features(photos: Path, tiny_net: TinyNet, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Two layers of a small network for the photographs, with the regions of a pyramid."""
    config = ExtractConfig(
        images=str(photos), output=str(tmp_path_factory.mktemp("features") / "out"),
        extractor=[f"{tiny_net.name}.{layer}" for layer in ("mid", "high")],
        weights=[tiny_net.weights], size=tiny_net.size, regions="pyramid",
    )  # fmt: skip
    extract(config)
    return config.output


@pytest.fixture(scope="module")
def flag(features: str, tiny_net: TinyNet) -> str:
    """What is joined: both layers."""
    return f"image={features}#{tiny_net.name}.mid,{tiny_net.name}"


@pytest.fixture(scope="module")
def data(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table of the photographs with vectors of texts, of which every fifth has none."""
    names = sorted(path.relative_to(photos).as_posix() for path in photos.rglob("*.*"))
    chance = np.random.default_rng(0)
    vectors = [None if n % 5 == 4 else chance.normal(size=TEXT) for n in range(len(names))]
    columns = {
        "id": names,
        "image": names,
        "text": pa.array(vectors, pa.list_(pa.float32(), TEXT)),
        "split": ["val" if n < HELD else "train" for n in range(len(names))],
    }
    path = tmp_path_factory.mktemp("table") / "t.parquet"
    pq.write_table(pa.table(columns), path, row_group_size=7)
    return path


def _recipe(folder: Path, **settings: Any) -> str:
    recipe = {
        "task": "vectortask:Near", "data": {"train": "train", "validate": "val"},
        "batch_size": 1, "steps": 40, "settings": {"dims": {"text": TEXT}, **settings},
    }  # fmt: skip
    path = folder / "near.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return str(path)


@pytest.fixture(scope="module")
def trained(data: Path, flag: str, tmp_path_factory: pytest.TempPathFactory) -> TrainConfig:
    """A training that is done."""
    folder = tmp_path_factory.mktemp("trained")
    config = TrainConfig(
        recipe=_recipe(folder), data=str(data), output=str(folder / "model"), features=[flag]
    )
    train(config)
    return config


@pytest.fixture(scope="module")
def model(trained: TrainConfig) -> str:
    return trained.output


def test_the_published_recipe_says_how_long_vectors_are(model: str, flag: str) -> None:
    recipe, task = load_task(Folder(model), read_manifest(Folder(model), "model"))
    dim = Columns("image", flag.removeprefix("image=")).dim
    assert recipe.settings["dims"] == {"image": dim, "text": TEXT}
    assert task.inputs["image"] == Vector(dim, optional=True)


def test_it_is_found_to_be_done(trained: TrainConfig) -> None:
    before = read_manifest(Folder(trained.output)).digest
    train(trained)
    assert read_manifest(Folder(trained.output)).digest == before


def test_it_carries_what_made_its_features(model: str, features: str, tiny_net: TinyNet) -> None:
    manifest, source = (read_manifest(Folder(uri)) for uri in (model, features))
    own = manifest.about["carried"]
    assert own.keys() == {"image"}
    columns = [f"{tiny_net.name}.{layer}" for layer in ("mid", "high")]
    assert own["image"] == {
        "extractor": source.about["extractor"],
        "columns": columns,
        "features": {name: source.about["features"][name] for name in columns},
    }
    theirs = {file.name: file for file in source.named("extractors/")}
    files = manifest.named("carried/")
    assert {file.name.removeprefix("carried/image/") for file in files} == theirs.keys()
    for file in files:
        data = read_file(Folder(model), file)
        assert data == Path(features, file.name.removeprefix("carried/image/")).read_bytes()
    written = [manifest.file(name).sha256 for name in ("model.safetensors", "config.json")]
    prints = {"image": [[name, source.about["features"][name]] for name in columns]}
    text = "".join(written) + json.dumps(prints, sort_keys=True)
    assert manifest.about["fingerprint"] == hashlib.sha256(text.encode()).hexdigest()


def _vectors(features: str, ids: list[str], columns: list[str]) -> np.ndarray:
    """Both layers of some pictures as they are stored, each scaled to unit length (N, dim)."""
    tables = [pq.read_table(path) for path in sorted(Path(features).glob("part-*.parquet"))]
    rows = {row["id"]: row for row in pa.concat_tables(tables).to_pylist()}
    found = [np.array([rows[id][name] for id in ids], np.float64) for name in columns]
    scaled = [part / np.sqrt((part**2).sum(axis=1, keepdims=True)) for part in found]
    return np.concatenate(scaled, axis=1)


def test_a_picture_is_answered_as_its_stored_features(
    model: str, features: str, photos: Path, data: Path, tiny_net: TinyNet
) -> None:
    rows = pq.read_table(data).to_pylist()
    columns = [f"{tiny_net.name}.{layer}" for layer in ("mid", "high")]
    vectors = _vectors(features, [row["id"] for row in rows], columns)
    opened = imgray.open_model(model)
    assert opened.inputs == {"image": Picture(optional=True), "text": Vector(TEXT, optional=True)}
    records = [{"image": photos / row["id"], "text": row["text"]} for row in rows]
    found = [one.row["score"] for one in opened.predict(records)]
    given = load_model(model, ["image"])
    assert isinstance(given.inputs["image"], Vector)
    texts = [{"text": np.array(r["text"], np.float32)} if r["text"] else {} for r in rows]
    values = [{"image": v.astype(np.float32), **t} for v, t in zip(vectors, texts, strict=True)]
    expected = given.predict([given.prepare(one) for one in values], "cpu")
    np.testing.assert_allclose(found, [one.row["score"] for one in expected], atol=2e-3)
    assert np.ptp(found) > 0.1
    [alone] = given.predict([given.prepare({"text": values[0]["text"]})], "cpu")
    assert opened.predict({"text": rows[0]["text"]}) == alone


def test_pictures_of_a_batch_share_a_forward_pass(
    model: str, photos: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded, sizes = load_model(model), []
    extractor = loaded.extractors["image"].extractor
    run = extractor.run
    monkeypatch.setattr(extractor, "run", lambda batch: sizes.append(len(batch)) or run(batch))
    ids = pq.read_table(data)["id"].to_pylist()[:7]
    items = [loaded.prepare({"image": (photos / id).read_bytes()}) for id in ids]
    items.insert(3, loaded.prepare({"text": np.ones(TEXT, np.float32)}))
    together = loaded.predict(items, "cpu")
    assert sizes == [7]
    alone = [loaded.predict([item], "cpu")[0].row["score"] for item in items]
    np.testing.assert_allclose([one.row["score"] for one in together], alone, atol=1e-3)


def _predicted(config: PredictConfig) -> tuple[dict[str, float], dict[str, str]]:
    """Scores by id, and why records were set aside."""
    predict(config)
    folder = Folder(config.output)
    manifest = read_manifest(folder, "predictions")
    rows: list[list[dict[str, Any]]] = [
        [
            row
            for file in manifest.named(kind)
            for row in pq.read_table(io.BytesIO(read_file(folder, file))).to_pylist()
        ]
        for kind in ("part-", "rejected/")
    ]
    scores = {row["id"]: row["score"] for row in rows[0]}
    return scores, {row["id"]: f"{row['stage']}: {row['reason']}" for row in rows[1]}


def test_predictions_of_pictures_and_of_joined_features_are_the_same(
    model: str, data: Path, photos: Path, flag: str, tmp_path: Path
) -> None:
    rows = pq.read_table(data).to_pylist()
    for row in rows:
        row["jpg"] = (photos / row["id"]).read_bytes()
    rows[2] |= {"jpg": b"no picture", "id": "lost"}
    rows[4]["jpg"] = None
    table = tmp_path / "asked.parquet"
    schema = pq.read_schema(data).append(pa.field("jpg", pa.binary()))
    pq.write_table(pa.Table.from_pylist(rows, schema), table)
    config = PredictConfig(
        model=model, images=str(table), output=str(tmp_path / "pictures"), columns=["image=jpg"],
        workers=1, shard_size=9, max_rejected=1, contact_sheet=str(tmp_path / "sheet.png"),
    )  # fmt: skip
    pictures, refused = _predicted(config)
    assert refused.keys() == {"lost", rows[4]["id"]}
    assert refused["lost"].startswith("decode: image: ")
    given = {"features": [flag], "columns": [], "output": str(tmp_path / "features")}
    joined, lost = _predicted(config.model_copy(update=given))
    assert refused[rows[4]["id"]] == "decode: an image or a text is needed"
    assert (lost, len(joined)) == ({}, len(rows))
    both = [id for id in pictures if id in joined]
    assert len(both) == len(rows) - 2
    np.testing.assert_allclose([pictures[n] for n in both], [joined[n] for n in both], atol=2e-3)
    made_from = read_manifest(Folder(str(tmp_path / "features"))).made_from
    features = flag.removeprefix("image=").partition("#")[0]
    assert made_from[features] == read_manifest(Folder(features)).digest


def test_it_is_evaluated_on_pictures_as_on_features(
    model: str, data: Path, photos: Path, flag: str, tmp_path: Path
) -> None:
    measured = read_manifest(Folder(model)).about["metrics"]["near"]
    config = EvaluateModelConfig(model=model, data=str(data), features=[flag], workers=1)
    assert evaluate_model(config).root["near"] == pytest.approx(measured, abs=1e-6)
    pictures = config.model_copy(update={"features": [], "root": str(photos)})
    assert evaluate_model(pictures).root["near"] == pytest.approx(measured, abs=2e-3)
    rows = pq.read_table(data).to_pylist()
    broken = tmp_path / "broken.csv"
    broken.write_text(f"id,image,split\nwrong,{broken.name},val\nfine,{rows[0]['id']},val\n")
    config = EvaluateModelConfig(model=model, data=str(broken), workers=1)
    with pytest.raises(UserError, match=r"wrong: image: .*; mend or remove it") as error:
        evaluate_model(config)
    assert "\n" not in str(error.value)


def test_it_is_served_with_pictures(model: str, photos: Path, data: Path) -> None:
    row = pq.read_table(data).to_pylist()[0]
    picture = (photos / row["id"]).read_bytes()
    expected = imgray.open_model(model).predict(image=picture, text=row["text"])
    with inprocess.client({"near": model}) as client:
        [described] = client.get("/v1/models").json()["models"]
        assert described["inputs"]["image"] == {"type": "picture", "required": False}
        assert described["inputs"]["text"] == {"type": "vector", "required": False, "dim": TEXT}
        form = {"image": ("x", picture), "text": (None, json.dumps(row["text"]))}
        answer = client.post("/v1/models/near", files=form)
        assert answer.status_code == 200, answer.text
        score = answer.json()["outputs"]["score"]
        assert score == pytest.approx(expected.row["score"], abs=1e-5)
        assert answer.json()["fingerprint"] == read_manifest(Folder(model)).about["fingerprint"]
        for data in (b"none", picture[: len(picture) // 2]):
            broken = client.post("/v1/models/near", files={"image": ("x", data)})
            assert (broken.status_code, broken.json()["error"]["field"]) == (422, "image")
            assert not broken.json()["error"]["message"].startswith("image")
        paths = client.get("/openapi.json").json()["paths"]
        body = paths["/v1/models/near"]["post"]["requestBody"]["content"]["multipart/form-data"]
        assert body["schema"]["properties"]["image"]["format"] == "binary"


@pytest.mark.parametrize(
    ("columns", "fault"),
    [
        ("{0}.high,{0}.mid", "of other fingerprints than .*mid, .*high, which the model learnt"),
        ("{0}.high", "of other fingerprints"),
        ("{0}.high,{0}", "a column is named twice"),
        ("", "several columns; say .*#COLUMN, one of .*, or some of them, joined by commas"),
        ("{0}.high,nowhere", "no column 'nowhere'"),
    ],
)
def test_other_features_than_it_learnt_from_are_refused(
    model: str, data: Path, features: str, tiny_net: TinyNet, tmp_path: Path,
    columns: str, fault: str,
) -> None:  # fmt: skip
    flag = f"image={features}#{columns}".format(tiny_net.name)
    output = str(tmp_path / "out")
    for job, config in (
        (predict, PredictConfig(model=model, images=str(data), output=output, features=[flag])),
        (evaluate_model, EvaluateModelConfig(model=model, data=str(data), features=[flag])),
    ):
        with pytest.raises(UserError, match=fault) as error:
            job(config)
        assert "\n" not in str(error.value)
    assert not Path(output).exists()


def test_a_folder_has_nothing_to_join_features_to(
    model: str, photos: Path, flag: str, tmp_path: Path
) -> None:
    output = str(tmp_path / "out")
    config = PredictConfig(model=model, images=str(photos), output=output, features=[flag])
    with pytest.raises(UserError, match="--features are joined to a table"):
        predict(config)


@pytest.mark.parametrize("damage", [Path.unlink, lambda path: path.write_bytes(b"x")])
def test_what_it_carries_is_verified(model: str, tmp_path: Path, damage: Any) -> None:
    copy = Path(shutil.copytree(model, tmp_path / "model"))
    damage(next((copy / "carried/image/extractors").iterdir()))
    with pytest.raises(UserError, match="carried/image") as error:
        imgray.open_model(str(copy))
    assert "\n" not in str(error.value)
    assert load_model(str(copy), ["image"]).extractors == {}


@pytest.mark.parametrize(
    ("settings", "fault"),
    [
        ({"dims": {"text": TEXT, "image": 7}}, r"14 x .* numbers each, where 7 are expected"),
        ({"dims": {"text": TEXT + 1}}, f"vectors of {TEXT} numbers, where {TEXT + 1} are expected"),
        ({"dims": ["image"]}, r"recipe: settings: dims: .*dictionary"),
    ],
)
def test_lengths_that_contradict_each_other_are_refused(
    data: Path, flag: str, tmp_path: Path, settings: dict[str, Any], fault: str
) -> None:
    output = tmp_path / "model"
    config = TrainConfig(
        recipe=_recipe(tmp_path, **settings), data=str(data), output=str(output), features=[flag]
    )
    with pytest.raises(UserError, match=fault) as error:
        train(config)
    assert "\n" not in str(error.value)
    assert not output.exists()


def test_vectors_that_no_network_of_ours_has_made_stay_vectors(
    data: Path, features: str, tiny_net: TinyNet, tmp_path: Path
) -> None:
    from imgray.artifacts.manifest import publish

    brought = Path(shutil.copytree(features, tmp_path / "brought"))
    manifest = read_manifest(Folder(str(brought)))
    about = {key: value for key, value in manifest.about.items() if key != "extractor"}
    (brought / "manifest.json").unlink()
    publish(Folder(str(brought)), manifest.model_copy(update={"about": about}))
    config = TrainConfig(
        recipe=_recipe(tmp_path), data=str(data), output=str(tmp_path / "model"),
        features=[f"image={brought}#{tiny_net.name}"],
    )  # fmt: skip
    train(config)
    found = read_manifest(Folder(config.output))
    assert "carried" not in found.about
    assert found.named("carried/") == []
    assert isinstance(imgray.open_model(config.output).inputs["image"], Vector)
    with pytest.raises(UserError, match="vectors of 'image' were made by no extractor"):
        load_joint(config.output)


def test_the_extractor_that_is_carried_is_the_one_that_extracted(
    model: str, features: str, photos: Path, data: Path
) -> None:
    loaded = load_model(model).extractors["image"]
    original = load_extractor(Folder(features), read_manifest(Folder(features)))
    assert loaded.extractor.describe() == original.describe()
    picture = (photos / pq.read_table(data)["id"][0].as_py()).read_bytes()
    [vector] = loaded.vectors([loaded.prepare(picture)])
    assert vector.dtype == np.float32
    np.testing.assert_allclose(np.sqrt((vector**2).sum()), np.sqrt(2), rtol=1e-3)
    assert load_task(Folder(model), read_manifest(Folder(model)))[1].joint == JOINT
