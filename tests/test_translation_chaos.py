"""Translation that is killed in mid-epoch ends in the tensors of an undisturbed run, to the bit.

Of all networks, the average among them, and of optimizers and pools, which no model holds.
"""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from domains import write_domains
from running import Start, kill_train_worker, killed_twice
from trained import check_equal

from imgray.artifacts.folder import Folder
from imgray.engine.examples import open_examples
from imgray.engine.settings import TrainConfig
from imgray.engine.train import read_recipe, train
from imgray.training.checkpoints import unpack
from imgray.training.loop import Run
from imgray.training.models import load_model

pytestmark = [pytest.mark.chaos, pytest.mark.slow]

STEPS, EVERY = 18, 4
"""Steps of a run, and from one checkpoint to the next; an epoch is 3.5 steps."""
PAUSE = 0.15
SETTINGS: dict[str, Any] = {
    "width": 4, "blocks": 1, "judge_width": 4, "judge_layers": 1, "load": 20, "crop": 16,
    "pool": 3, "average": 0.9,
}  # fmt: skip
SYSTEMS: dict[str, dict[str, Any]] = {
    "cyclegan": {},
    "nest": {"stages": 2, "inner": True, "identity": 0.5},
    "projected": {"judge": "projected", "weights": "none", "judge_width": 2, "judge_layers": 3},
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_domains(tmp_path_factory.mktemp("domains"))


def _recipe(folder: Path, left: Path, pause: float = 0.0, **changes: Any) -> str:
    settings = {**SETTINGS, **changes, "pause": pause, "left": str(left)}
    recipe = {
        "task": "slowtranslation:SlowTranslation", "settings": settings, "batch_size": 2,
        "steps": STEPS, "checkpoint_every": EVERY, "log_every": 2, "evaluate_every": 1000,
        "data": {"truth": "folders"}, "schedule": {"kind": "linear", "hold": 0.5},
    }  # fmt: skip
    path = folder / f"{left.name}.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return str(path)


def _check_left(found: Path, wanted: Path) -> None:
    """Each worker has left the same, and all of it has been of use."""
    names = sorted(path.name for path in wanted.iterdir())
    assert sorted(path.name for path in found.iterdir()) == names
    for name in names:
        state = unpack((wanted / name).read_bytes())
        assert {pool: len(items) for pool, items in state["pools"].items()} == {"x": 3, "y": 3}
        assert all(one["state"] for one in state["optimizers"].values())
        assert (found / name).read_bytes() == (wanted / name).read_bytes()


def test_a_killed_worker_ends_as_the_plain_loop_without_ray(
    data: Path, ray_cluster: None, undrawn: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    left, output = tmp_path / "plain", tmp_path / "killed"
    recipe = read_recipe(_recipe(tmp_path, left), [])
    run = Run(recipe, open_examples(recipe, str(data)), Folder(str(tmp_path / "run")))
    run.fit()
    slow = _recipe(tmp_path, tmp_path / "left", PAUSE)
    with ThreadPoolExecutor(1) as pool:
        killed = pool.submit(kill_train_worker, output, EVERY, PAUSE)
        train(TrainConfig(recipe=slow, data=str(data), output=str(output), workers="1", feeders=0))
        killed.result()
    assert "train: lost a worker" in capsys.readouterr().err
    found = load_model(str(output)).learner.modules
    assert found.keys() == run.nets.keys() >= {"averaged"}
    for name, net in run.nets.items():
        for key, tensor in net.state_dict().items():
            assert torch.equal(tensor, found[name].state_dict()[key]), (name, key)
    _check_left(tmp_path / "left", left)


@pytest.mark.sweep
@pytest.mark.parametrize("name", SYSTEMS)
def test_killed_worker_and_driver_change_no_bit(
    name: str, data: Path, start: Start, address: str, tmp_path: Path
) -> None:
    whole, killed = (tmp_path / name for name in ("whole", "killed"))
    flags = ["--data", str(data), "--workers", "2", "--feeders", "0"]
    recipes = [
        _recipe(tmp_path, tmp_path / f"left by {kind}", pause, **SYSTEMS[name])
        for kind, pause in (("whole", 0.0), ("killed", PAUSE))
    ]
    train(TrainConfig(recipe=recipes[0], data=str(data), output=str(whole), workers="2", feeders=0))
    killed_twice(start, address, killed, ["--recipe", recipes[1], *flags], (EVERY, 3 * EVERY))
    check_equal(killed, whole)
    _check_left(tmp_path / "left by killed", tmp_path / "left by whole")
