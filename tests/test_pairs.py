"""A system of two pictures and a text is one file (`pairs`) and a recipe: all jobs know it."""

import io
import json
from pathlib import Path
from typing import Any

import inprocess
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from pairs import SIDE
from PIL import Image
from poison import encoded
from running import Start, killed_twice
from trained import check_equal

import imgray
from imgray.artifacts.folder import Folder
from imgray.artifacts.manifest import read_file, read_manifest
from imgray.engine.evaluate_model import evaluate_model
from imgray.engine.predict import predict
from imgray.engine.settings import EvaluateModelConfig, PredictConfig, TrainConfig
from imgray.engine.train import train
from imgray.training.loop import CURVES
from imgray.training.sheet import SAMPLES

STEPS, EVERY = 24, 4
RECIPE: dict[str, Any] = {
    "task": "pairs:Pairs",
    "data": {"train": "train", "validate": "val"},
    "batch_size": 6,
    "settings": {"rate": 1.0},
    "steps": STEPS,
    "checkpoint_every": EVERY,
    "log_every": 4,
    "optimizers": {"judge": {"schedule": {"kind": "cosine"}, "clip": 0.5}},
}
TRAINED, HELD = 40, 10


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table of triples; every fifth has no second picture."""
    chance, rows = np.random.default_rng(0), []
    for number in range(TRAINED + HELD):
        first, second = (chance.integers(0, 256, (SIDE, SIDE, 3), np.uint8) for _ in range(2))
        words = "ab" if number % 2 else "xyz"
        target = first if number % 2 else second
        rows.append(
            {
                "id": f"{number:03d}",
                "first": encoded(Image.fromarray(first), "PNG"),
                "second": None if number % 5 == 4 else encoded(Image.fromarray(second), "PNG"),
                "caption": f"{words} {number}",
                "target": encoded(Image.fromarray(target), "PNG"),
                "split": "train" if number < TRAINED else "val",
            }
        )
    path = tmp_path_factory.mktemp("pairs") / "pairs.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=8)
    return path


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("recipe") / "pairs.yaml"
    path.write_text(yaml.safe_dump(RECIPE))
    return str(path)


@pytest.fixture(scope="module")
def model(
    data: Path, recipe: str, tmp_path_factory: pytest.TempPathFactory, ray_cluster: None
) -> str:
    """Trained by two workers, undisturbed."""
    output = str(tmp_path_factory.mktemp("trained") / "model")
    train(TrainConfig(recipe=recipe, data=str(data), output=output, workers="2"))
    return output


@pytest.mark.slow
def test_it_is_trained(model: str) -> None:
    lines = [json.loads(line) for line in (Path(model) / CURVES).read_text().splitlines()]
    losses = [line["blend"] for line in lines if line["part"] == "train"]
    assert losses[-1] < losses[0]
    assert Image.open(Path(model) / SAMPLES).width > 500


@pytest.mark.chaos
@pytest.mark.sweep
def test_killed_and_resumed_it_ends_in_the_same_tensors(
    model: str, data: Path, recipe: str, tmp_path: Path, start: Start, address: str
) -> None:
    """First a worker is killed, then the driver; two workers add up in one order only."""
    output = tmp_path / "model"
    flags = ["--recipe", recipe, "--data", str(data), "--workers", "2", "--feeders", "0"]
    flags += ["--set", "settings.pause=0.25"]
    killed_twice(start, address, output, flags, (EVERY, 3 * EVERY))
    check_equal(output, Path(model))


@pytest.mark.slow
def test_it_is_evaluated(model: str, data: Path) -> None:
    scores = evaluate_model(EvaluateModelConfig(model=model, data=str(data), workers=1))
    measured = read_manifest(Folder(model), "model").about["metrics"]["error"]
    assert scores.root["error"] == pytest.approx(measured, abs=1e-6)


@pytest.mark.slow
def test_its_batch_job_and_its_service_answer_as_the_library(
    model: str, data: Path, tmp_path: Path
) -> None:
    rows = pq.read_table(data).to_pylist()[:12]
    rows[3]["first"], rows[7]["caption"] = b"no picture", " "
    table = tmp_path / "asked.parquet"
    pq.write_table(pa.Table.from_pylist(rows), table, row_group_size=5)
    config = PredictConfig(
        model=model, images=str(table), output=str(tmp_path / "out"), shard_size=4,
        workers=1, max_rejected=1, contact_sheet=str(tmp_path / "sheet.png"),
    )  # fmt: skip
    result = predict(config)
    assert (result.listed, result.done, result.rejected) == (12, 10, 2)
    output = Folder(config.output)
    parts = read_manifest(output, "predictions").named("part-")
    found = [
        row
        for part in parts
        for row in pq.read_table(io.BytesIO(read_file(output, part))).to_pylist()
    ]
    assert [row["id"] for row in found] == [r["id"] for n, r in enumerate(rows) if n not in (3, 7)]
    opened = imgray.open_model(model)
    names = opened.inputs.keys() & rows[0].keys()
    by_id = {row["id"]: {name: row[name] for name in names if row[name]} for row in rows}
    with inprocess.client({"pairs": model}) as client:
        for row in found:
            asked = by_id[row["id"]]
            expected = opened.predict(**asked)
            assert {n: row[n] for n in ("alike", "first")} == pytest.approx(expected.row, abs=1e-5)
            assert expected.picture is not None
            painted = np.asarray(Image.open(io.BytesIO(output.read(row["picture"]))))
            np.testing.assert_allclose(painted.astype(int), expected.picture, atol=1)
            form = {n: (None, v) if isinstance(v, str) else ("x", v) for n, v in asked.items()}
            answer = client.post("/v1/models/pairs", files=form)
            assert answer.status_code == 200, answer.text
            verdict = answer.json()["outputs"]["verdict"]
            assert verdict == pytest.approx(expected.row, abs=1e-5)
    assert Image.open(tmp_path / "sheet.png").width > 500
