"""How the work of scoring a model is spread over a cluster."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from tinytask import tiny_recipe, write_points

from imgray.artifacts.folder import Folder
from imgray.artifacts.manifest import Manifest, publish
from imgray.engine.evaluate_model import evaluate_model
from imgray.engine.settings import EvaluateModelConfig
from imgray.engine.train import open_examples
from imgray.training.models import save_model
from imgray.training.recipe import Recipe

CORES = 2


class Cluster:
    """Stands for Ray: runs tasks at once, and notes what they ask for."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.tasks: list[dict[str, float]] = []
        self.patch = monkeypatch
        for name in ("remote", "wait", "get"):
            monkeypatch.setattr(ray, name, getattr(self, name))
        monkeypatch.setattr(ray, "is_initialized", lambda: True)
        monkeypatch.setattr(ray, "get_gpu_ids", lambda: [])
        monkeypatch.setattr("imgray.engine.cluster.cores", lambda: CORES)

    def has(self, address: str, **resources: float) -> None:
        """Set its resources, and its address, which is empty on this machine."""
        self.patch.setenv("RAY_ADDRESS", address)
        self.patch.setattr(ray, "cluster_resources", lambda: resources)

    def remote(self, **options: float) -> Callable[..., Any]:
        def submit(function: Callable[..., Any], *arguments: Any) -> Any:
            self.tasks.append({name: options.get(name, 0) for name in ("num_cpus", "num_gpus")})
            return function(*arguments)

        return lambda function: SimpleNamespace(remote=lambda *args: submit(function, *args))

    def wait(self, waiting: list[Any]) -> tuple[list[Any], list[Any]]:
        return waiting[:1], waiting[1:]

    def get(self, found: Any) -> Any:
        return found


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
    cluster.has(address, **resources)
    scores = evaluate_model(config.model_copy(update=flags)).root
    assert cluster.tasks == [{"num_cpus": each[0], "num_gpus": each[1]}] * tasks
    assert 0 <= scores["error"] <= 1
