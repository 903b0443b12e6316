"""Artifacts that commit fd99d3d made (`artifacts/make.py`): read, found done, and continued."""

import io
import json
import platform
import re
import shutil
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from pydantic import BaseModel

import imgray.engine.index
from imgray.artifacts.folder import Folder
from imgray.artifacts.manifest import Kind, Manifest, read_file, read_manifest, sha256
from imgray.config import JobConfig
from imgray.engine.extract import extract
from imgray.engine.index import build_index
from imgray.engine.predict import predict
from imgray.engine.search import SearchEngine
from imgray.engine.settings import ExtractConfig, IndexConfig, PredictConfig, TrainConfig
from imgray.engine.train import train
from imgray.errors import UserError
from imgray.features.columns import columns_of, from_table
from imgray.features.extractor import load_extractor
from imgray.training.loop import load_nets
from imgray.training.models import fingerprint_of, load_model, load_states

MADE = Path(__file__).parent / "artifacts/fd99d3d"
EXPECTED: dict[str, Any] = json.loads((MADE / "expected.json").read_text())
KINDS: dict[str, Kind] = {
    "features": "features", "index": "index", "predictions": "predictions",
    "model-classification": "model", "model-segmentation": "model", "model-edges": "model",
}  # fmt: skip
TIMED, CONFIG = "report.json", "config.json"
OTHER = (TIMED, CONFIG, "curves.png")
"""What holds times, says the same in other words, or is drawn otherwise than then."""


def _same_arithmetic() -> bool:
    """Whether this machine and its libraries are those that made the artifacts, to the bit."""
    found = {"machine": platform.machine(), "cpu": torch.backends.cpu.get_cpu_capability()}
    made = EXPECTED["made_with"]
    try:
        return bool(made == found | {name: version(name) for name in made.keys() - found.keys()})
    except ImportError:  # faiss of another wheel
        return False


EXACT = _same_arithmetic()


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the artifacts, as the working folder: they hold their URIs as typed."""
    copy = Path(shutil.copytree(MADE, tmp_path / "made"))
    monkeypatch.chdir(copy)
    return copy


def _manifest(name: str, kind: Kind | None = None) -> Manifest:
    return read_manifest(Folder(name), kind or KINDS[name])


def _tables(name: str, kind: Kind) -> list[Any]:
    folder = Folder(name)
    entries = read_manifest(folder, kind).named("part-")
    return [pq.read_table(io.BytesIO(read_file(folder, entry))) for entry in entries]


def _vectors(name: str = "features") -> tuple[list[str], dict[str, np.ndarray]]:
    """Ids and vectors (N, R, C) by column."""
    tables, columns = _tables(name, "features"), columns_of(_manifest(name, "features"))
    ids = [id for table in tables for id in table["id"].to_pylist()]
    return ids, {
        column: np.concatenate([from_table(table, column, info) for table in tables])
        for column, info in columns.items()
    }


def _files(folder: str) -> dict[str, tuple[int, bytes]]:
    """Time and content of every file."""
    paths = [path for path in Path(folder).rglob("*") if path.is_file()]
    return {str(path): (path.stat().st_mtime_ns, path.read_bytes()) for path in paths}


def _trained(name: str, output: str | None = None) -> TrainConfig:
    data = "data" if name == "classification" else f"data-{name}"
    return TrainConfig(recipe=f"recipe-{name}.yaml", data=data, output=output or f"model-{name}")


JOBS: dict[str, Callable[[], BaseModel]] = {
    "features": lambda: extract(ExtractConfig(output="features", **EXPECTED["jobs"]["extract"])),
    "index": lambda: build_index(IndexConfig(output="index", **EXPECTED["jobs"]["index"])),
    "predictions": lambda: predict(
        PredictConfig(output="predictions", **EXPECTED["jobs"]["predict"])
    ),
    "model-classification": lambda: train(_trained("classification")),
    "model-segmentation": lambda: train(_trained("segmentation")),
    "model-edges": lambda: train(_trained("edges")),
}


@pytest.mark.parametrize("name", KINDS)
def test_manifests_and_their_files_are_read(name: str) -> None:
    manifest = _manifest(name)
    assert manifest.digest == EXPECTED["manifests"][name]
    assert manifest.counts == EXPECTED["counts"][name]
    assert {entry.name: entry.sha256 for entry in manifest.files} == EXPECTED["files"][name]
    for entry in manifest.files:
        assert sha256(read_file(Folder(name), entry)) == entry.sha256
    if manifest.kind == "model":
        assert fingerprint_of(manifest) == EXPECTED["fingerprints"][name]


@pytest.mark.parametrize("name", KINDS)
def test_a_second_run_finds_nothing_to_do(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    before = _files(".")
    result = JOBS[name]().model_dump()
    assert "nothing to do" in capsys.readouterr().err
    assert _files(".") == before
    assert _manifest(name).digest == EXPECTED["manifests"][name]
    counts = EXPECTED["counts"][name]
    known = {key: result[key] for key in counts.keys() & result.keys()}
    assert known
    assert known == {key: counts[key] for key in known}


@pytest.mark.parametrize("name", ["features", "features-unfinished"])
def test_other_settings_are_still_told_from_these(name: str) -> None:
    flags = EXPECTED["jobs"]["extract"] | {"output": name, "shard_size": 8}
    with pytest.raises(UserError, match=r"other settings \(shard_size: 7 there, 8 now\)"):
        extract(ExtractConfig(**flags))


def test_features_are_read() -> None:
    expected = EXPECTED["features"]
    columns = columns_of(_manifest("features"))
    assert {name: info.model_dump() for name, info in columns.items()} == expected["columns"]
    ids, vectors = _vectors()
    assert ids == expected["ids"]
    assert len(ids) == 20
    for name, values in vectors.items():
        info = columns[name]
        assert values.shape == (len(ids), info.regions, info.dim)
        assert np.isfinite(values).all()
        np.testing.assert_allclose(np.linalg.norm(values, axis=2), 1, atol=2e-3)
        for id, wanted in expected["vectors"].items():
            np.testing.assert_allclose(values[ids.index(id)][0], wanted[name], atol=1e-4)
    assert pq.read_table("features/listing.parquet")["id"].to_pylist() == EXPECTED["listed"]
    [rejected] = _manifest("features").named("rejected/")
    assert pq.read_table(f"features/{rejected.name}").to_pylist() == EXPECTED["rejected"]


@pytest.mark.parametrize("name", ["features", "index"])
def test_the_networks_inside_give_the_vectors_again(name: str) -> None:
    manifest = _manifest(name)
    extractor = load_extractor(Folder(name), manifest)
    assert extractor.describe() == columns_of(manifest)
    ids, vectors = _vectors()
    prepared = [extractor.prepare(Path("images", id).read_bytes()) for id in ids]
    for column, values in extractor.run(prepared).items():
        np.testing.assert_allclose(vectors[column], values, atol=2e-3)


def test_the_index_is_searched() -> None:
    images = {id: Path("images", id).read_bytes() for id in EXPECTED["search"]}
    answers = SearchEngine("index").search_images(images, 5)
    for hits, wanted in zip(answers, EXPECTED["search"].values(), strict=True):
        assert list(hits.ids) == [id for id, _ in wanted]
        scores = [score for _, score in wanted]
        assert hits.scores.tolist() == pytest.approx(scores, abs=2e-6 if EXACT else 1e-2)


def test_the_classification_model_predicts_what_it_did() -> None:
    model = load_model("model-classification")
    assert model.fingerprint == EXPECTED["fingerprints"]["model-classification"]
    ids = list(EXPECTED["predictions"])
    prepared = [model.task.prepare({"image": Path("images", id).read_bytes()}) for id in ids]
    for id, found in zip(ids, model.predict(prepared, "cpu"), strict=True):
        wanted = EXPECTED["predictions"][id]
        assert found.row["labels"] == wanted["labels"]
        assert found.row["scores"] == pytest.approx(wanted["scores"], abs=1e-4)


@pytest.mark.parametrize("name", ["segmentation", "edges"])
def test_a_model_paints_what_it_did(name: str) -> None:
    wanted = EXPECTED["pictures"][name]
    model = load_model(f"model-{name}")
    prepared = model.task.prepare({"image": Path("images", wanted["image"]).read_bytes()})
    [found] = model.predict([prepared], "cpu")
    assert found.picture is not None
    assert list(found.picture.shape) == wanted["shape"]
    assert found.picture.mean() == pytest.approx(wanted["mean"], rel=1e-2)
    for key, value in wanted["row"].items():
        close = value if isinstance(value[0] if isinstance(value, list) else value, str) else None
        assert found.row[key] == (close or pytest.approx(value, abs=1e-2))
    if EXACT:
        assert sha256(found.picture.tobytes()) == wanted["sha256"]


def test_a_model_fits_the_networks_to_train_on() -> None:
    for name in ("classification", "segmentation", "edges"):
        uri = f"model-{name}"
        nets = load_model(uri).task.learner(initial=False).modules
        load_nets(nets, load_states(Folder(uri), _manifest(uri)), uri)


def test_predictions_are_read() -> None:
    rows = [row for table in _tables("predictions", "predictions") for row in table.to_pylist()]
    assert [row["id"] for row in rows] == list(EXPECTED["predictions"])
    for row in rows:
        wanted = EXPECTED["predictions"][row["id"]]
        assert row.keys() == wanted.keys()
        assert (row["label"], row["labels"]) == (wanted["label"], wanted["labels"])
        assert row["scores"] == pytest.approx(wanted["scores"], abs=1e-6)


CONFIGS: dict[str, type[JobConfig]] = {
    "features": ExtractConfig,
    "index": IndexConfig,
    "model": TrainConfig,
    "predictions": PredictConfig,
}


def _continued(name: str, finished: str, kind: Kind) -> None:
    """Assert that an artifact is what the old version made when nothing stopped it."""
    assert not Path(name, "_work").exists()
    found, wanted = _manifest(name, kind), _manifest(finished)
    for manifest in (found, wanted):
        if "images" in manifest.about:
            manifest.about["images"] = ""  # where the collection lay
    later = {name: found.config.pop(name) for name in found.config.keys() - wanted.config.keys()}
    assert later.items() <= CONFIGS[kind].defaults().items()  # settings that came later
    assert _as_then(found.config) == wanted.config
    assert _as_then(found.made_from) == wanted.made_from
    assert found.counts == wanted.counts
    assert found.about.keys() == wanted.about.keys()
    assert [_then(entry.name) for entry in found.files] == [entry.name for entry in wanted.files]
    if kind == "model":  # its recipe says what that commit's said, in today's words
        own, then = (json.loads(Path(uri, CONFIG).read_text()) for uri in (name, finished))
        assert _as_then(own) == then
        del found.about["fingerprint"], wanted.about["fingerprint"]
    if EXACT:
        assert found.about == wanted.about
        then = EXPECTED["files"][finished]
        for entry in found.files:
            name = _then(entry.name)
            assert entry.sha256 == then[name] or name in OTHER, name


def _then(name: str) -> str:
    """What a file was called that tells its content now."""
    return re.sub(r"-[0-9a-f]{12}(?=\.parquet$)", "", name)


def _as_then(settings: dict[str, Any]) -> Any:
    """Settings as that commit stored them: URIs as typed, and where the truth is as the form."""
    forms = {"folders": "folders", "columns": "parquet", "masks": "masks", "boundaries": "edges"}

    def older(found: dict[str, Any]) -> dict[str, Any]:
        if "truth" in found:
            assert found.pop("stored") is None
            found["form"] = forms[found.pop("truth")]
        if "batch_size" in found:
            assert not found.pop("clip", None)
            assert not found.pop("optimizers", None)
        return found

    text = json.dumps(settings).replace(f"{Path.cwd()}/", "")
    return json.loads(text, object_hook=older)


def _kept(name: str, *patterns: str) -> dict[str, tuple[int, bytes]]:
    """The files of an unfinished artifact that a run must not make again."""
    found = {k: v for p in patterns for k, v in _files(name).items() if Path(k).match(p)}
    assert found
    return found


@pytest.mark.slow
def test_an_extraction_is_continued(ray_cluster: None, capsys: pytest.CaptureFixture[str]) -> None:
    name = "features-unfinished"
    kept = _kept(name, "part-*.parquet", "listing.parquet")
    assert len(kept) == 4  # two parts, one of them with rejected images, and the listing
    result = extract(ExtractConfig(output=name, **EXPECTED["jobs"]["extract"]))
    assert "14 of 21 images were done by an earlier run" in capsys.readouterr().err
    assert (result.listed, result.done, result.rejected) == (21, 20, 1)
    assert kept.items() <= _files(name).items()
    _continued(name, "features", "features")
    (ids, vectors), (wanted_ids, wanted) = _vectors(name), _vectors()
    assert ids == wanted_ids
    for column, values in vectors.items():
        np.testing.assert_allclose(values, wanted[column], atol=2e-3)


@pytest.mark.slow
@pytest.mark.parametrize("words", [None, (3, 2)])
def test_an_index_is_continued(
    ray_cluster: None, monkeypatch: pytest.MonkeyPatch, words: tuple[int, int] | None
) -> None:
    """With its own codebooks, though by today's defaults there would be fewer words."""
    plan = imgray.engine.index._codebook_settings
    if words:
        fewer = {"codewords": words}
        monkeypatch.setattr(
            imgray.engine.index,
            "_codebook_settings",
            lambda *given: plan(*given).model_copy(update=fewer),
        )
    name = "index-unfinished"
    kept = _kept(name, "codebooks.safetensors", "shard-00000.faiss", "shard-00000.parquet")
    assert len(kept) == 3
    result = build_index(IndexConfig(output=name, **EXPECTED["jobs"]["index"]))
    assert (result.images, result.shards) == (20, 2)
    assert kept.items() <= _files(name).items()
    _continued(name, "index", "index")
    reports = [json.loads(Path(folder, TIMED).read_text()) for folder in (name, "index")]
    for key in ("queries", "recall", "bytes_per_image", "postings_touched"):
        assert reports[0][key] == reports[1][key]
    images = {id: Path("images", id).read_bytes() for id in EXPECTED["search"]}
    ours, theirs = (SearchEngine(uri).search_images(images, 5) for uri in (name, "index"))
    for one, other in zip(ours, theirs, strict=True):
        assert one.ids == other.ids
        np.testing.assert_array_equal(one.scores, other.scores)


@pytest.mark.slow
def test_a_training_is_continued(ray_cluster: None) -> None:
    name = "model-unfinished"
    checkpoint = Path(next(Path(name).rglob("step-*.safetensors")))
    assert checkpoint.name.startswith("step-0000000020-")
    earlier = Path(name, "_work/checkpoints/curves.jsonl").read_bytes()
    result = train(_trained("classification", name))
    assert result.steps == EXPECTED["counts"]["model-classification"]["steps"] == 40
    assert Path(name, "curves.jsonl").read_bytes().startswith(earlier)
    _continued(name, "model-classification", "model")
