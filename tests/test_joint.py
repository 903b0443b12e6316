"""A model that learnt from features takes pictures and words, and puts them in one space."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import inprocess
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from conftest import TinyNet
from trained import untrained

import imgray
from imgray.artifacts.folder import Folder
from imgray.artifacts.manifest import read_manifest
from imgray.data.fields import Picture, Text
from imgray.data.layout import Layout
from imgray.data.pixels import Rejected
from imgray.data.sources import Source
from imgray.engine.evaluate_model import Embedded, evaluate_model
from imgray.engine.extract import extract
from imgray.engine.settings import EvaluateModelConfig, ExtractConfig, TrainConfig
from imgray.engine.train import train
from imgray.errors import UserError
from imgray.features.columns import Vectors, columns_of, from_table
from imgray.training.joint import load_joint
from imgray.training.models import load_model

MATCHING = "imgray.matching.matcher:Matching"
WORDS = ["red", "green", "blue", "round", "square", "large", "small", "dark", "light", "old"]
LONG = 3


@pytest.fixture(scope="module", autouse=True)
def without_ray() -> Iterator[inprocess.Cluster]:
    with inprocess.jobs() as cluster:
        yield cluster


@pytest.fixture(scope="module")
def captions(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table of the photographs, each with two texts of its own."""
    names = sorted(path.relative_to(photos).as_posix() for path in photos.rglob("*.*")) * 2
    chance = np.random.default_rng(0)
    texts = [" ".join(chance.choice(WORDS, LONG, replace=False)) for _ in names]
    path = tmp_path_factory.mktemp("captions") / "t.parquet"
    columns = {"id": [f"caption {n}" for n in range(len(names))], "image": names, "said": texts}
    split = ["val" if n % 40 < 10 else "train" for n in range(len(names))]
    pq.write_table(pa.table({**columns, "split": split}), path)
    return path


@pytest.fixture(scope="module")
def features(
    photos: Path, captions: Path, tiny_net: TinyNet, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, str]:
    """The features of the photographs and of the texts, by input."""
    folder = tmp_path_factory.mktemp("features")
    own = {"extractor": [tiny_net.name], "weights": [tiny_net.weights], "size": tiny_net.size}
    extract(ExtractConfig(images=str(photos), output=str(folder / "image"), **own))
    said = {"columns": ["text=said"], "extractor": ["tfidf"]}
    extract(ExtractConfig(images=str(captions), output=str(folder / "text"), **said))
    return {name: str(folder / name) for name in ("image", "text")}


RECIPES: dict[str, dict[str, Any]] = {
    "a task of one file": {"task": "vectortask:Near", "settings": {}},
    "cca": {"task": MATCHING, "settings": {"layout": "cca", "dim": 4}},
    "cycle": {"task": MATCHING, "settings": {"layout": "cycle", "dim": 8}},
}


@pytest.fixture(scope="module", params=RECIPES)
def model(
    captions: Path,
    features: dict[str, str],
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
) -> str:
    folder = tmp_path_factory.mktemp("trained")
    recipe = {**RECIPES[request.param], "data": {}, "batch_size": 6, "steps": 20}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    config = TrainConfig(
        recipe=str(folder / "recipe.yaml"), data=str(captions), output=str(folder / "model"),
        features=[f"{name}={uri}" for name, uri in features.items()], columns=["image=image"],
    )  # fmt: skip
    train(config)
    return config.output


def _stored(uri: str) -> tuple[list[str], Vectors]:
    """Ids and features of an artifact."""
    folder = Folder(uri)
    parts = read_manifest(folder).named("part-")
    table = pa.concat_tables([pq.read_table(folder.path(part.name)) for part in parts])
    columns = columns_of(read_manifest(folder))
    vectors = {name: from_table(table, name, info) for name, info in columns.items()}
    return table["id"].to_pylist(), vectors


def test_stored_pictures_and_raw_texts_lie_in_one_space(
    model: str, captions: Path, features: dict[str, str]
) -> None:
    """The dot product is what the model says of the pair."""
    joint = load_joint(model)
    ids, vectors = _stored(features["image"])
    assert joint.columns == columns_of(read_manifest(Folder(features["image"])))
    pictures = dict(zip(ids, joint.pictures(vectors), strict=True))
    rows = pq.read_table(captions).to_pylist()
    texts = joint.texts([row["said"] for row in rows])
    assert (texts.shape, texts.dtype) == ((len(rows), joint.dim), np.float32)
    assert joint.dim == joint.model.task.joint
    np.testing.assert_allclose((texts**2).sum(axis=1), 1, rtol=1e-5)
    scores = [pictures[row["image"]] @ text for row, text in zip(rows, texts, strict=True)]
    [image], [text] = vectors.values(), _stored(features["text"])[1].values()
    given = load_model(model, ["image", "text"])
    pairs = [
        given.prepare({"image": image[ids.index(row["image"]), 0], "text": text[n, 0]})
        for n, row in enumerate(rows)
    ]
    expected = [one.row["score"] for one in given.predict(pairs, "cpu")]
    np.testing.assert_allclose(scores, expected, atol=1e-5)
    assert joint.fingerprint == read_manifest(Folder(model)).about["fingerprint"]


def test_one_text_has_one_vector(model: str, captions: Path) -> None:
    joint, said = load_joint(model), pq.read_table(captions)["said"].to_pylist()
    together = joint.texts(said)
    for order in (np.random.default_rng(0).permutation(len(said)), np.arange(len(said))[::-1]):
        shuffled = joint.texts([said[n] for n in order])
        np.testing.assert_allclose(shuffled, together[order], atol=1e-6)
    assert joint.texts([]).shape == (0, joint.dim)
    assert joint.pictures({name: np.empty((0, 1, 1)) for name in joint.columns}).shape == (
        0,
        joint.dim,
    )


@pytest.mark.parametrize("text", ["", " \n", "x" * 100_000, "a\ud800", 7, None])
def test_a_text_that_is_none_is_refused(model: str, text: Any) -> None:
    with pytest.raises(Rejected, match="text"):
        load_joint(model).texts(["red", text])


def test_a_model_takes_pictures_and_words(
    model: str, captions: Path, photos: Path, features: dict[str, str]
) -> None:
    opened, joint = imgray.open_model(model), load_joint(model)
    assert opened.inputs == {"image": Picture(optional=True), "text": Text(optional=True)}
    ids, vectors = _stored(features["image"])
    pictures = dict(zip(ids, joint.pictures(vectors), strict=True))
    rows = pq.read_table(captions).to_pylist()[:8]
    texts = joint.texts([row["said"] for row in rows])
    expected = [pictures[row["image"]] @ text for row, text in zip(rows, texts, strict=True)]
    records = [{"image": photos / row["image"], "text": row["said"]} for row in rows]
    found = [one.row["score"] for one in opened.predict(records)]
    np.testing.assert_allclose(found, expected, atol=2e-3)
    with inprocess.client({"near": model}) as client:
        described = client.get("/v1/models").json()["models"][0]["inputs"]
        assert (described["image"]["type"], described["text"]["type"]) == ("picture", "text")
        data = {"text": rows[0]["said"]}
        file = {"image": ("x", (photos / rows[0]["image"]).read_bytes())}
        answer = client.post("/v1/models/near", files=file, data=data)
        assert answer.json()["outputs"]["score"] == pytest.approx(found[0], abs=1e-5)
        alone = client.post("/v1/models/near", content=json.dumps(data).encode(),
                            headers={"Content-Type": "application/json"})  # fmt: skip
        expected, outputs = opened.predict(data).row, alone.json()["outputs"]
        assert outputs.keys() == expected.keys()
        for name, value in expected.items():
            assert outputs[name] == pytest.approx(value, abs=1e-5)
        for text in ("\x00\x01", "y" * 20_000, "\u200b"):
            refused = client.post("/v1/models/near", data={"text": text}, files={"none": ""})
            assert (refused.status_code, text) == (422, text)


def test_it_is_scored_on_pictures_and_words_as_on_features(
    model: str, captions: Path, photos: Path, features: dict[str, str], tmp_path: Path
) -> None:
    measured = read_manifest(Folder(model)).about["metrics"]
    given = {"features": [f"{name}={uri}" for name, uri in features.items()]}
    own = {"columns": ["text=said"], "root": str(photos)}
    for flags in ({**given, "columns": ["image=image"]}, own):
        config = EvaluateModelConfig(model=model, data=str(captions), workers=1, **flags)
        assert evaluate_model(config).root == pytest.approx(measured, abs=2e-3)
    loaded, source = load_model(model), Source(str(captions), Layout({"text": "said"}, str(photos)))
    fields = {name: replace(one, optional=False) for name, one in loaded.inputs.items()}
    part = Embedded(source.part("val", fields), loaded)
    groups = [record["group"] for record in part.records(range(20))]
    assert groups[:10] == groups[10:]
    assert len(set(groups)) == 10
    named = pa.table({**pq.read_table(captions).to_pydict(), "group": ["g"] * 80})
    pq.write_table(named, tmp_path / "named.parquet")
    source = Source(str(tmp_path / "named.parquet"), Layout({"text": "said"}, str(photos)))
    assert Embedded(source.part("val", fields), loaded)[7]["group"] == "g"
    if "near" not in measured:
        rows = pq.read_table(captions).to_pylist()
        rows[3]["said"] = None
        table = tmp_path / "t.parquet"
        pq.write_table(pa.Table.from_pylist(rows), table)
        config = EvaluateModelConfig(model=model, data=str(table), workers=1, **own)
        with pytest.raises(UserError, match="row 3, column 'said': missing"):
            evaluate_model(config)


def test_a_model_without_a_joint_embedding_says_so(tmp_path: Path) -> None:
    untrained("pairs:Pairs", Folder(str(tmp_path / "model")))
    with pytest.raises(UserError, match="Pairs has no joint embedding of images and texts; train"):
        load_joint(str(tmp_path / "model"))
    learner: Any = imgray.open_model(str(tmp_path / "model"))._model.learner
    with pytest.raises(UserError, match="PairLearner has no joint embedding"):
        learner.embed({})
