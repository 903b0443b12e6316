"""Matching that loses a worker, then its driver, ends in the tensors of an undisturbed run.

The first kill falls into the epoch in which a closed form is gathered, by each worker from its own
pairs; the second comes when earlier pairs are remembered and the optimizer has its momenta.
"""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import yaml
from running import Start, kill_train_worker, killed_twice
from trained import check_equal
from vectors import recipe_of, write_pairs

from imgray.engine.settings import TrainConfig
from imgray.engine.train import train

pytestmark = [pytest.mark.chaos, pytest.mark.slow]

STEPS, EVERY = 24, 3
"""Steps of a run, and from one checkpoint to the next; an epoch is 9 steps."""
PAUSE = 0.15
"""Seconds that a step takes."""
CLASSES = 4
MATCHING, MMC = "slowmatching:SlowMatching", "slowmatching:SlowMmc"
RRF = {"first": "cca", "around": True, "dropout": 0.5, "dropout_inputs": 0.1, "memory": 30}
SYSTEMS: dict[str, tuple[str, dict[str, Any]]] = {
    "rrf from cca": (MATCHING, RRF),
    "ensemble": (MATCHING, {"steps": [1, None], "memory": 70}),
    "cycle": (MATCHING, {"layout": "cycle", "optimizer": "adam", "rate": 0.01, "memory": 30}),
    "contrast from ridge": (
        MATCHING, {"layout": "linear", "first": "ridge", "loss": "contrast", "memory": 30},
    ),
    "cca": (MATCHING, {"layout": "cca"}),
    "mmc from cca": (MMC, RRF | {"join": "product", "stages": [0.4, 0.45]}),
}  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pairs(tmp_path_factory.mktemp("vectors") / "pairs.parquet", classes=CLASSES)


def _config(name: str, data: Path, folder: Path) -> TrainConfig:
    """Of the undisturbed run of a system."""
    task, settings = SYSTEMS[name]
    recipe = {"batch_size": 20, "steps": STEPS, "checkpoint_every": EVERY, "log_every": 2}
    found = recipe_of(task, recipe=recipe, **settings)
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(found.model_dump(mode="json", exclude_unset=True)))
    output = str(folder / "whole")
    return TrainConfig(recipe=str(path), data=str(data), output=output, workers="2", feeders=0)


@pytest.mark.sweep
def test_a_killed_worker_changes_no_bit(
    data: Path, ray_cluster: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config, output = _config("rrf from cca", data, tmp_path), tmp_path / "killed"
    train(config)
    changes = {"output": str(output), "set": [f"settings.pause={PAUSE}"]}
    with ThreadPoolExecutor(1) as pool:
        killed = pool.submit(kill_train_worker, output, EVERY, PAUSE)
        train(config.model_copy(update=changes))
        killed.result()
    assert "train: lost a worker" in capsys.readouterr().err
    check_equal(output, Path(config.output))


@pytest.mark.sweep
@pytest.mark.parametrize("name", SYSTEMS)
def test_killed_worker_and_driver_change_no_bit(
    name: str, data: Path, start: Start, address: str, tmp_path: Path
) -> None:
    config, output = _config(name, data, tmp_path), tmp_path / "killed"
    train(config)
    flags = ["--recipe", config.recipe, "--data", config.data, "--workers", "2", "--feeders", "0"]
    flags += ["--set", f"settings.pause={PAUSE}"]
    killed_twice(start, address, output, flags, (EVERY, 4 * EVERY))
    check_equal(output, Path(config.output))
