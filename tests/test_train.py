"""Training on Ray: workers, losses of workers, resumption, errors, the model artifact."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
import yaml
from conftest import S3
from tinytask import tiny_recipe, write_points

import imgray.engine.train as engine
from imgray.artifacts.folder import Folder
from imgray.artifacts.manifest import NAME, WORK
from imgray.engine.settings import TrainConfig
from imgray.engine.train import train
from imgray.engine.watch import Watch
from imgray.errors import UserError
from imgray.training.loop import CURVES, Run
from imgray.training.models import load_model

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def points(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_points(tmp_path_factory.mktemp("points"))


@pytest.fixture
def make(tmp_path: Path, points: Path) -> Callable[..., TrainConfig]:
    """Settings of a job that trains by a recipe with some changes."""

    def config(changes: dict[str, Any] | None = None, **flags: Any) -> TrainConfig:
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.safe_dump(tiny_recipe(**(changes or {}))))
        given = {"recipe": str(path), "data": str(points), "output": str(tmp_path / "model")}
        return TrainConfig(**{**given, **flags})

    return config


Make = Callable[..., TrainConfig]


def _alone(config: TrainConfig, folder: Path) -> Run:
    """The same training by the plain loop in this process."""
    recipe = engine.read_recipe(config.recipe, config.set)
    run = Run(recipe, engine.open_examples(recipe, config.data), Folder(str(folder)))
    run.fit()
    return run


def _tensors(uri: str) -> dict[str, torch.Tensor]:
    return dict(load_model(uri).learner.modules["net"].state_dict())


def test_one_worker_does_what_the_plain_loop_does(
    ray_cluster: None, make: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = make()
    result = train(config)
    alone = _alone(config, tmp_path / "alone")
    for name, tensor in _tensors(config.output).items():
        assert torch.equal(tensor, alone.nets["net"].state_dict()[name]), name
    made = (Path(config.output) / CURVES).read_bytes()
    assert made == (tmp_path / "alone" / CURVES).read_bytes()
    assert result.metrics == {"error": alone.lines[-1]["error"]}
    before = {p.name: p.stat().st_mtime_ns for p in Path(config.output).iterdir()}
    assert sorted(before) == [
        "config.json", "curves.jsonl", "curves.png", "manifest.json", "model.safetensors",
    ]  # fmt: skip

    assert train(make(workers="2")) == result
    assert "already trained" in capsys.readouterr().err
    assert before == {p.name: p.stat().st_mtime_ns for p in Path(config.output).iterdir()}
    with pytest.raises(UserError, match="other settings"):
        train(make({"seed": 1}))


def test_two_workers_learn_from_the_same_batches_with_all_in_s3(
    ray_cluster: None, s3: S3, make: Make, points: Path, tmp_path: Path
) -> None:
    """Without dropout, whose masks differ by worker, only the order of additions changes."""
    data, output = Folder(s3.uri("train/points")), s3.uri("train/model")
    for path in points.iterdir():
        data.write(path.name, path.read_bytes())
    config = make(
        {"settings": {"dropout": 0.0}, "batch_size": 11},
        data=data.uri, output=output, workers="2", feeders=0,
    )  # fmt: skip
    train(config)
    assert not Folder(output).exists(WORK)
    alone = _alone(config, tmp_path / "alone")
    for name, tensor in _tensors(config.output).items():
        expected = alone.nets["net"].state_dict()[name]
        torch.testing.assert_close(tensor, expected, atol=1e-5, rtol=0)
    lines = [json.loads(line) for line in Folder(output).read(CURVES).splitlines()]
    assert [line["step"] for line in lines] == [line["step"] for line in alone.lines]
    for one, other in zip(lines, alone.lines, strict=True):
        for name in one.keys() - {"step", "epoch", "part"}:
            assert one[name] == pytest.approx(other[name], abs=1e-4)


@pytest.mark.parametrize(
    ("feeders", "settings", "kind", "fault"),
    [
        (1, {"explode": 7}, UserError, "loss is nan at step 8"),
        (0, {"bug": 3}, RuntimeError, "a plain bug"),
    ],
)
def test_an_error_surfaces_at_once_and_leaves_no_model(
    ray_cluster: None,
    make: Make,
    feeders: int,
    settings: dict[str, Any],
    kind: type[Exception],
    fault: str,
) -> None:
    config = make({"settings": settings}, workers="2", feeders=feeders)
    with pytest.raises(kind, match=fault):
        train(config)
    assert not (Path(config.output) / NAME).exists()


@pytest.mark.parametrize(("world", "told"), [(1, True), (2, False)])
def test_an_error_is_not_told_that_comes_of_a_lost_group(
    monkeypatch: pytest.MonkeyPatch, world: int, told: bool
) -> None:
    """Ray takes the group from a worker that still runs: torch raises what it likes."""
    context, watch = Mock(), Mock()
    context.get_world_rank.return_value, context.get_world_size.return_value = 0, world
    watch.look.remote.return_value.error = None
    monkeypatch.setattr(engine.ray, "get", lambda found: found)
    monkeypatch.setattr(engine.ray.train, "get_context", lambda: context)
    monkeypatch.setattr(engine, "given_device", lambda: "cpu")
    monkeypatch.setattr(engine, "open_examples", Mock(side_effect=ValueError("no default group")))
    with pytest.raises(ValueError, match="no default group"):
        engine._work({"watch": watch, "feeders": 0, "recipe": None, "data": None})
    assert watch.fail.remote.called is told


def test_the_user_hears_of_lost_workers_once() -> None:
    watch = Watch()
    watch.begin(2)
    watch.tell(1, 9, None)
    for _ in range(3):
        watch.lose()
    assert watch.look(0).done is None
    watch.begin(1)
    news = ["train: 2 workers", "train: lost a worker", "train: goes on with 1 worker"]
    assert [watch.look(known).news for known in (0, 2)] == [news, news[2:]]


@pytest.mark.parametrize(
    ("flags", "fault"),
    [
        ({"set": ["batchsize=3"]}, "unknown setting 'batchsize'"),
        ({"set": ["settings.rate=fast"]}, "settings: rate: Input should be a valid number"),
        ({"set": ["batch_size"]}, "expected KEY=VALUE"),
        ({"set": ["batch_size.x=1"]}, "batch_size holds no settings"),
        ({"set": ["data.validate=test"]}, "part 'test' of .*neither test.parquet nor test.csv is"),
        ({"set": ["data.truth=folders"]}, "part 'train'"),
        ({"recipe": "missing.yaml"}, "missing.yaml: No such file"),
        ({"workers": "50", "set": ["batch_size=64"]}, "50 workers .* the cluster has"),
        ({"workers": "13", "set": ["batch_size=12"]}, "batch_size 12 is less than 13 workers"),
    ],
)
def test_what_cannot_be_trained_is_refused_before_it_starts(
    ray_cluster: None, make: Make, flags: dict[str, Any], fault: str
) -> None:
    config = make(**{"patience": 0, **flags})
    with pytest.raises(UserError, match=fault):
        train(config)
    assert not list(Path(config.output).parent.glob("model/*"))
