"""How the work of scoring a model is spread over a cluster."""

from pathlib import Path
from typing import Any

import pytest
import vectors
from inprocess import Cluster
from PIL import Image
from tinytask import tiny_recipe, write_points

from imgray.artifacts.folder import Folder
from imgray.artifacts.manifest import Manifest, publish
from imgray.engine.evaluate_model import evaluate_model
from imgray.engine.settings import EvaluateModelConfig
from imgray.engine.train import open_examples
from imgray.training.models import save_model
from imgray.training.recipe import Recipe

CORES = 2


@pytest.fixture
def config(tmp_path: Path) -> EvaluateModelConfig:
    """Of an untrained model and 30 points in batches of one."""
    data, output = str(write_points(tmp_path / "points")), Folder(str(tmp_path / "model"))
    recipe = Recipe.model_validate(tiny_recipe(batch_size=1))
    task = open_examples(recipe, data).task
    states = {name: net.state_dict() for name, net in task.learner().modules.items()}
    files, about = save_model(output, recipe, task.classes, states, [])
    publish(output, Manifest(kind="model", config={}, about=about, files=files))
    return EvaluateModelConfig(model=output.uri, data=data)


@pytest.mark.parametrize(
    ("address", "resources", "flags", "tasks", "each"),
    [
        ("", {"CPU": 4.0}, {}, CORES, (1, 0)),
        ("10.0.0.1:6379", {"CPU": 12.0}, {}, 12, (1, 0)),
        ("10.0.0.1:6379", {"CPU": 12.0}, {"cpus_per_worker": 4}, 3, (4, 0)),
        ("10.0.0.1:6379", {"CPU": 12.0, "GPU": 3.0}, {}, 3, (1, 1)),
        ("10.0.0.1:6379", {"CPU": 12.0, "GPU": 3.0}, {"gpus_per_worker": 0.5}, 6, (1, 0.5)),
        ("10.0.0.1:6379", {"CPU": 12.0, "GPU": 3.0}, {"gpus_per_worker": 0}, 12, (1, 0)),
        ("10.0.0.1:6379", {"CPU": 99.0}, {}, 30, (1, 0)),
        ("", {"CPU": 4.0}, {"workers": 5}, 5, (1, 0)),
    ],
)
def test_the_cluster_is_used_as_far_as_it_goes(
    config: EvaluateModelConfig,
    monkeypatch: pytest.MonkeyPatch,
    address: str,
    resources: dict[str, float],
    flags: dict[str, Any],
    tasks: int,
    each: tuple[float, float],
) -> None:
    cluster = Cluster(monkeypatch)
    monkeypatch.setattr("imgray.engine.cluster.cores", lambda: CORES)
    cluster.has(address, **resources)
    scores = evaluate_model(config.model_copy(update=flags)).root
    assert cluster.tasks == [{"num_cpus": each[0], "num_gpus": each[1]}] * tasks
    assert 0 <= scores["error"] <= 1


@pytest.mark.parametrize("workers", [1, 3])
def test_rows_of_all_workers_are_scored_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    """As the run itself did, and drawn as a picture."""
    Cluster(monkeypatch)
    data = vectors.write_pairs(tmp_path / "pairs.parquet")
    recipe = vectors.recipe_of(layout="linear", recipe={"steps": 5, "batch_size": 7})
    run = vectors.run_of(recipe, data, tmp_path / "run")
    run.fit()
    output = Folder(str(tmp_path / "model"))
    states = {name: net.state_dict() for name, net in run.nets.items()}
    files, about = save_model(output, recipe, (), states, run.lines)
    publish(output, Manifest(kind="model", config={}, about=about, files=files))
    figure = tmp_path / "recalls.png"
    config = EvaluateModelConfig(
        model=output.uri, data=str(data), workers=workers, figure=str(figure)
    )
    assert evaluate_model(config).root == pytest.approx(about["metrics"], abs=1e-6)
    assert Image.open(figure).width > 300
