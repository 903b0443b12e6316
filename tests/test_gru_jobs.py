"""A model that reads texts itself, from one end to the other: trained, asked, and in an index."""

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import inprocess
import numpy as np
import pyarrow.parquet as pq
import pytest
import words
import yaml
from conftest import TinyNet
from stopped import stopped_at

import imgray
import imgray.engine.train as training
from imgray.artifacts.folder import Folder
from imgray.artifacts.manifest import read_manifest
from imgray.data.fields import Picture, Text
from imgray.data.layout import Layout
from imgray.data.pixels import Rejected
from imgray.data.tables import open_table
from imgray.engine.evaluate_model import evaluate_model
from imgray.engine.extract import extract
from imgray.engine.index import build_index
from imgray.engine.predict import predict
from imgray.engine.search import SearchEngine
from imgray.engine.settings import (
    EvaluateModelConfig,
    ExtractConfig,
    IndexConfig,
    PredictConfig,
    TrainConfig,
)
from imgray.engine.train import train
from imgray.errors import UserError
from imgray.features.bags import words_of
from imgray.matching.matcher import Matching
from imgray.training.joint import load_joint

RECIPE: dict[str, Any] = {
    "task": "imgray.matching.matcher:Matching",
    "settings": {
        "layout": "linear", "dim": 8, "optimizer": "adam", "rate": 0.01,
        "words": {"size": 30, "least": 2, "longest": 6, "dim": 8, "hidden": 12},
    },
    "data": {}, "batch_size": 8, "steps": 30, "evaluate_every": 1000,
}  # fmt: skip
TEXTS = ("a photograph of coffee", "rocket", "no word of it is known 犬", "page, jpg " * 9)


@pytest.fixture(scope="module", autouse=True)
def without_ray() -> Iterator[None]:
    with inprocess.jobs():
        yield


@dataclass(frozen=True)
class Made:
    """Photographs with captions, their features, and a model that reads the captions."""

    folder: Path
    photos: Path
    captions: Path
    net: str

    @property
    def features(self) -> str:
        return str(self.folder / "features")

    @property
    def model(self) -> str:
        return str(self.folder / "model")

    def config(self, output: Path | str, **changes: Any) -> TrainConfig:
        given = {
            "recipe": str(self.folder / "recipe.yaml"), "data": str(self.captions),
            "output": str(output), "columns": ["text=caption", "group=image", "image=image"],
            "features": [f"image={self.features}#{self.net}"],
        }  # fmt: skip
        return TrainConfig(**given | changes)


@pytest.fixture(scope="module")
def made(photos: Path, tiny_net: TinyNet, tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("gru")
    captions = words.write_captions(photos, folder / "captions.csv")
    found = Made(folder, photos, captions, tiny_net.name)
    own = {"extractor": [tiny_net.name], "weights": [tiny_net.weights], "size": tiny_net.size}
    extract(ExtractConfig(images=str(photos), output=found.features, **own))
    (folder / "recipe.yaml").write_text(yaml.safe_dump(RECIPE))
    train(found.config(found.model))
    return found


def _recipe_in(model: Path | str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(Folder(str(model)).read("config.json"))["recipe"]
    return found


def test_the_vocabulary_is_in_the_model_and_not_in_what_the_run_is_known_by(made: Made) -> None:
    table = open_table(str(made.captions), {"text": Text()}, Layout({"text": "caption"}))
    rows = zip(table.words("text"), table.texts("split"), strict=True)
    texts = [str(text) for text, split in rows if str(split) == "train"]
    counts = Counter(word for text in texts for word in {*words_of(text)})
    expected = sorted(counts, key=lambda word: (-counts[word], word))[:30]
    own = _recipe_in(made.model)["settings"]["words"]
    assert own.pop("vocabulary") == [word for word in expected if counts[word] >= 2]
    assert own == RECIPE["settings"]["words"] | {"bidirectional": False}
    manifest = read_manifest(Folder(made.model))
    assert manifest.config["recipe"]["settings"]["words"] == RECIPE["settings"]["words"]
    assert not any(entry.name.startswith("carried/text") for entry in manifest.files)


def test_the_same_command_finds_it_done_or_makes_it_again(
    made: Made, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    digest = read_manifest(Folder(made.model)).digest
    first = train(made.config(made.model))
    assert "already trained, nothing to do" in capfd.readouterr().err
    assert read_manifest(Folder(made.model)).digest == digest
    assert train(made.config(tmp_path / "again")).fingerprint == first.fingerprint


def test_a_run_that_goes_on_keeps_its_vocabulary(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = made.config(tmp_path / "model")
    with stopped_at(training, "save_model"):
        train(config)
    monkeypatch.setattr(Matching, "completed", lambda self, train: pytest.fail("asked again"))
    finished = read_manifest(Folder(made.model)).about["fingerprint"]
    assert train(config).fingerprint == finished


def test_a_refusal_leaves_nothing_behind(made: Made, tmp_path: Path) -> None:
    output = tmp_path / "model"
    for change, fault in (
        ("settings.words.least=500", r"words\.least: no word stands in 500"),
        ("settings.first=cca", "words: first cca needs vectors of texts"),
    ):
        with pytest.raises(UserError, match=fault):
            train(made.config(output, set=[change]))
        assert not output.exists()
    texts = [*made.config(output).features, f"text={made.features}#{made.net}"]
    with pytest.raises(UserError, match=r"leave dims\.text or --features text=URI away"):
        train(made.config(output, features=texts))


def test_it_is_asked_with_pictures_and_words(made: Made) -> None:
    opened, joint = imgray.open_model(made.model), load_joint(made.model)
    assert opened.inputs == {"image": Picture(optional=True), "text": Text(optional=True)}
    photo = min(made.photos.rglob("*.jpg"))
    vectors = joint.texts(TEXTS)
    np.testing.assert_allclose((vectors**2).sum(axis=1), 1, rtol=1e-5)
    for text, vector in zip(TEXTS, vectors, strict=True):
        alone = opened.predict(text=text).row
        np.testing.assert_allclose(alone["text_embedding"], vector, atol=1e-6)
        np.testing.assert_allclose(joint.texts([text])[0], vector, atol=1e-6)
        pair = opened.predict(image=photo, text=text).row
        score = np.dot(pair["image_embedding"], vector)
        assert pair["score"] == pytest.approx(score, abs=1e-5)
    assert joint.texts([]).shape == (0, joint.dim)
    for wrong in ("", "\u200b", "a\ud800", 7):
        with pytest.raises(Rejected, match="text"):
            joint.texts(["rocket", wrong])  # type: ignore[list-item]


def test_it_answers_over_http(made: Made) -> None:
    opened = imgray.open_model(made.model)
    photo = min(made.photos.rglob("*.jpg"))
    with inprocess.client({"reader": made.model}) as client:
        described = client.get("/v1/models").json()["models"][0]["inputs"]
        assert (described["image"]["type"], described["text"]["type"]) == ("picture", "text")
        file = {"image": ("x", photo.read_bytes())}
        answer = client.post("/v1/models/reader", files=file, data={"text": TEXTS[0]})
        expected = opened.predict(image=photo, text=TEXTS[0]).row["score"]
        assert answer.json()["outputs"]["score"] == pytest.approx(expected, abs=1e-5)
        matched = client.post("/v1/match", files=file, data={"text": TEXTS[0]})
        assert np.ravel(matched.json()["scores"])[0] == pytest.approx(expected, abs=1e-5)
        refused = client.post("/v1/models/reader", files=file, data={"text": "\u200b"})
        assert refused.status_code == 422
        assert refused.json()["error"] == {"field": "text", "message": "an empty text"}


def test_jobs_read_its_texts(made: Made, tmp_path: Path) -> None:
    measured = read_manifest(Folder(made.model)).about["metrics"]
    own: dict[str, Any] = {"model": made.model, "workers": 1, "data": str(made.captions)}
    columns = ["text=caption", "group=image", "image=image"]
    config = made.config(tmp_path)
    joined = EvaluateModelConfig(**own, columns=columns, features=config.features)
    assert evaluate_model(joined).root == pytest.approx(measured, abs=1e-3)
    pictures = EvaluateModelConfig(**own, columns=columns, root=str(made.photos))
    assert evaluate_model(pictures).root == pytest.approx(measured, abs=2e-3)
    output = str(tmp_path / "out")
    flags: dict[str, Any] = {"workers": 1, "columns": ["text=caption", "image=image"]}
    done = predict(
        PredictConfig(images=str(made.captions), model=made.model, output=output,
                      root=str(made.photos), **flags)
    )  # fmt: skip
    assert (done.done, done.rejected) == (80, 0)
    rows = [row for part in sorted(Path(output).glob("part-*")) for row in _rows(part)]
    texts = [row["text"] for row in _captions(made)]
    vectors = load_joint(made.model).texts(texts)
    for row in rows:
        np.testing.assert_allclose(row["text_embedding"], vectors[int(row["id"])], atol=1e-5)


def _rows(part: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = pq.read_table(part).to_pylist()
    return found


def _captions(made: Made) -> list[dict[str, Any]]:
    table = open_table(str(made.captions), {"text": Text()}, Layout({"text": "caption"}))
    return table.rows(range(len(table)))


def test_an_index_knows_words_by_it(made: Made, tmp_path: Path) -> None:
    index = str(tmp_path / "index")
    build_index(
        IndexConfig(features=made.features, output=index, feature=[made.net], shards=2,
                    codewords=[4], probes=[4], sample=300, dim=8, joint=made.model,
                    joint_codewords=2, joint_probes=2, text_queries=f"{made.captions}#caption")
    )  # fmt: skip
    model, engine = imgray.open_model(made.model), SearchEngine(index)
    scores = {}
    for path in made.photos.rglob("*.*"):
        row = model.predict(image=path, text=TEXTS[0]).row
        scores[path.relative_to(made.photos).as_posix()] = row["score"]
    found = engine.search(text=TEXTS[0], top=5).results()
    assert [one.score for one in found] == pytest.approx(sorted(scores.values())[:-6:-1], abs=0.02)
    with inprocess.client({}, index) as client:
        answer = client.post("/v1/embed", json={"text": TEXTS[0]})
        [vector] = answer.json()["features"]["joint"]["vectors"]
        expected = load_joint(made.model).texts([TEXTS[0]])[0]
        np.testing.assert_allclose(np.ravel(vector), expected, atol=1e-5)
