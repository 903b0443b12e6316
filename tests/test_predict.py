"""Trained models over a collection and over labelled data: predictions and scores."""

import io
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from poison import encoded
from trained import RECIPES, TRUTHS, picture, train, write

from imgray.artifacts.folder import Folder
from imgray.artifacts.manifest import read_file, read_manifest, sha256
from imgray.data.datasets import Truth
from imgray.data.sources import Source
from imgray.engine.evaluate_model import evaluate_model
from imgray.engine.predict import predict
from imgray.engine.settings import EvaluateModelConfig, PredictConfig
from imgray.engine.train import check_examples, open_examples
from imgray.errors import UserError
from imgray.training.models import load_model
from imgray.training.recipe import Recipe
from imgray.training.task import task_of


@pytest.fixture(scope="module", params=list(RECIPES))
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A format, its data, and a model trained on them for some steps by the plain loop."""
    format, folder = request.param, tmp_path_factory.mktemp(request.param)
    data, output = write(format, folder / "data"), Folder(str(folder / "model"))
    run = train(format, data, output)
    return format, data, output.uri, run


def test_a_model_learns_its_pictures(made: Any) -> None:
    format, _, _, run = made
    losses = [line["loss"] for line in run.lines if line["part"] == "train"]
    assert losses[-1] < 0.8 * losses[0]
    if format == "folders":
        assert run.lines[-1]["top1_error"] == 0


def test_a_saved_model_is_the_trained_one(made: Any) -> None:
    _, _, uri, run = made
    for name, tensor in load_model(uri).learner.modules["net"].state_dict().items():
        assert torch.equal(tensor, run.nets["net"].state_dict()[name]), name


def test_a_model_shows_its_fusion(made: Any) -> None:
    _, _, uri, _ = made
    folder = Folder(uri)
    entry = read_manifest(folder, "model").file("fusion.png")
    assert Image.open(io.BytesIO(read_file(folder, entry))).width > 400


@pytest.mark.parametrize("fusion", ["none", "sum", "max"])
def test_a_net_without_weights_of_fusion_shows_none(fusion: str) -> None:
    recipe = {**RECIPES["folders"], "data": {"truth": "folders"}, "batch_size": 1, "steps": 1}
    task = task_of(Recipe.model_validate(recipe), ["a", "b"])
    task.settings = task.settings.model_copy(update={"fusion": fusion})
    assert task.portraits({"net": task.learner().modules["net"].state_dict()}) == {}


@pytest.mark.slow
def test_predictions_are_the_models_own(ray_cluster: None, made: Any, tmp_path: Path) -> None:
    format, _, uri, _ = made
    images = tmp_path / "images"
    images.mkdir()
    for number in range(5):
        (images / f"{number}.png").write_bytes(encoded(picture(bool(number % 2), number), "PNG"))
    (images / "broken.jpg").write_bytes(b"no picture")
    flags = {"model": uri, "images": str(images), "output": str(tmp_path / "out")}
    if format != "edges":
        with pytest.raises(UserError, match=r"--encode jpeg: \w+ paints no picture that a JPEG"):
            predict(PredictConfig(**flags, encode="jpeg"))
    config = PredictConfig(**flags, shard_size=2, workers=1, max_rejected=1)
    result = predict(config)
    assert (result.listed, result.done, result.rejected) == (6, 5, 1)
    folder = Folder(config.output)
    rows = {}
    for entry in read_manifest(folder, "predictions").named("part-"):
        table = pq.read_table(io.BytesIO(read_file(folder, entry)))
        rows |= {row["id"]: row for row in table.to_pylist()}
    assert sorted(rows) == [f"{number}.png" for number in range(5)]
    model = load_model(uri)
    for id, row in rows.items():
        arrays = model.task.prepare({"image": (images / id).read_bytes()})
        with torch.inference_mode():
            batch = {name: torch.tensor(array)[None] for name, array in arrays.items()}
            [alone] = model.learner.predict(batch)
        if format == "folders":
            assert row["label"] == ("right" if int(id[0]) % 2 else "left") == alone.row["label"]
            assert row["scores"] == pytest.approx(alone.row["scores"], abs=1e-5)
            assert row["picture"] is None
        else:
            painted = folder.read(row["picture"])
            assert sha256(painted) == row["sha256"]
            assert alone.picture is not None
            np.testing.assert_array_equal(
                np.asarray(Image.open(io.BytesIO(painted))), alone.picture
            )
            assert alone.picture.shape == (36, 40)
    sheet = str(tmp_path / "sheet.png")
    again = predict(config.model_copy(update={"contact_sheet": sheet}))
    assert again == result.model_copy(update={"contact_sheet": sheet})
    assert Image.open(sheet).width > 1000


@pytest.mark.slow
def test_scores_are_those_of_the_validation(ray_cluster: None, made: Any, tmp_path: Path) -> None:
    format, data, uri, run = made
    figure = tmp_path / "figure.png"
    config = EvaluateModelConfig(model=uri, data=str(data), workers=2, figure=str(figure))
    scores = evaluate_model(config).root
    for name, value in run.lines[-1].items():
        if name not in ("step", "epoch", "part"):
            assert scores[name] == pytest.approx(value, abs=1e-4), name
    assert Image.open(figure).width > 200
    assert ("ods" in scores) == (format == "edges")
    with pytest.raises(UserError, match="part 'test'"):
        evaluate_model(config.model_copy(update={"part": "test"}))


@pytest.mark.parametrize(
    ("format", "damage", "fault"),
    [
        ("folders", lambda f: (f / "train/loose.png").write_bytes(b"x"), "outside a class"),
        ("folders", lambda f: (f / "val/left").rename(f / "val/x"), "labels must mean the same"),
        ("folders", lambda f: (f / "train/left/0.png").write_bytes(b"x"), r"left/0.png: not a"),
        ("masks", lambda f: (f / "train/labels/3.png").unlink(), r"labels/3.png: missing"),
        ("masks", lambda f: _paint(f, (9, 9), 0), r"0.png: labels of 9 x 9 pixels .* 40 x 36"),
        ("masks", lambda f: _paint(f, (40, 36), 5), r"0.png: label 5 in its mask"),
        ("edges", lambda f: (f / "boundaries/train/0.npz").write_bytes(b"x"), "no boundary maps"),
    ],
)  # fmt: skip
def test_data_that_cannot_be_learnt_from(
    tmp_path: Path, format: str, damage: Any, fault: str
) -> None:
    damage(write(format, tmp_path))
    recipe = Recipe.model_validate(
        {**RECIPES[format], "data": {"truth": TRUTHS[format]}, "batch_size": 6, "steps": 3}
    )
    with pytest.raises(UserError, match=fault):
        check_examples(open_examples(recipe, str(tmp_path)))


def _paint(folder: Path, size: tuple[int, int], label: int) -> None:
    Image.new("L", size, label).save(folder / "train/labels/0.png")


@pytest.mark.parametrize("truth", [*get_args(Truth), None])
def test_a_missing_part_is_named(tmp_path: Path, truth: Any) -> None:
    with pytest.raises(UserError, match=r"part 'train'|neither train.parquet nor"):
        Source(str(tmp_path)).part("train", truth=truth)
