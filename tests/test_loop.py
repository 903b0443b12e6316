"""The training loop in one process: what it visits, what it learns, and that it can be stopped."""

import dataclasses
import json
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tinytask import TinyTask, tiny_recipe, write_points

from imgray.artifacts.folder import Folder
from imgray.config import validate
from imgray.data.fields import Label, Picture
from imgray.data.sources import Source
from imgray.drawing import plots
from imgray.errors import UserError
from imgray.training import loop
from imgray.training.checkpoints import Keeper
from imgray.training.examples import Examples
from imgray.training.loop import CURVES, Loader, Place, Run, in_threads
from imgray.training.models import save_model
from imgray.training.recipe import Recipe, Schedule
from imgray.training.task import task_of

pytestmark = pytest.mark.usefixtures("undrawn")

FIELDS = {"image": Picture(), "label": Label()}


@pytest.fixture(scope="module")
def points(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    return Folder(str(write_points(tmp_path_factory.mktemp("points"))))


def _run(points: Folder, output: Path, place: Place | None = None, **changes: Any) -> Run:
    recipe = Recipe.model_validate(tiny_recipe(**changes))
    source = Source(points.uri)
    train, val = (source.part(part, FIELDS) for part in ("train", "val"))
    task = task_of(recipe, train.classes)
    examples = Examples(task, train, val, recipe.batch_size, recipe.seed)
    return Run(recipe, examples, Folder(str(output)), place)


def _tensors(run: Run) -> dict[str, torch.Tensor]:
    return {k: v.clone() for k, v in run.nets["net"].state_dict().items()}


class _Stopped(BaseException):
    pass


def _stop_at(step: int) -> Place:
    def report(done: int, steps: int, line: object) -> None:
        if done == step:
            raise _Stopped

    return Place(report=report)


@pytest.mark.parametrize("batch", [1, 7, 12, 70, 100])
@pytest.mark.parametrize("world", [1, 2, 3])
def test_every_epoch_has_every_example_once(points: Folder, batch: int, world: int) -> None:
    run = _run(points, Path("unused"), batch_size=max(batch, world))
    seen: list[int] = []
    stream = dataclasses.replace(run.examples, task=_Numbers(run.examples.task.settings, "abc"))
    for step in range(300 // max(batch, world)):
        for rank in range(world):
            seen += stream.training(step, rank, world)["label"].tolist()
    for epoch in range(len(seen) // 70):
        assert sorted(seen[70 * epoch : 70 * (epoch + 1)]) == list(range(70))
    if len(seen) >= 140:
        assert seen[:70] != seen[70:140]


class _Numbers(TinyTask):
    """Gives the number of a record instead of an example."""

    def example(self, record: Any, chance: Any) -> dict[str, np.ndarray]:
        return {"label": np.array(int(record["id"]))}


@pytest.mark.parametrize("world", [1, 2, 4, 50])
def test_validation_is_shared_out_without_rest(points: Folder, world: int) -> None:
    examples = _run(points, Path("unused")).examples
    examples = dataclasses.replace(examples, task=_Numbers(examples.task.settings, "abc"))
    seen: Counter[int] = Counter()
    for rank in range(world):
        for number in range(examples.validations(rank, world)):
            seen.update(examples.validation(number, rank, world)["label"].tolist())
    assert seen == Counter(range(30))


def test_loading_ahead_keeps_the_order() -> None:
    load = Loader(lambda number, rank, world: {"n": np.array([number])}, 0, 1)
    for numbers in (range(0), range(2), range(7, 30)):
        assert [int(b["n"][0]) for b in in_threads(load, numbers)] == list(numbers)


def test_it_learns_and_tells_how(points: Folder, tmp_path: Path) -> None:
    run = _run(points, tmp_path, steps=120)
    run.fit()
    lines = [json.loads(line) for line in (tmp_path / CURVES).read_text().splitlines()]
    assert lines == run.lines
    train = [line for line in lines if line["part"] == "train"]
    validate = [line for line in lines if line["part"] == "validate"]
    assert train[-1]["step"] == 120
    assert train[-1]["loss"] < 0.5 * train[0]["loss"]
    assert validate[-1]["error"] < 0.1
    assert [line["epoch"] for line in validate] == sorted(line["epoch"] for line in validate)
    assert len(validate) == int(120 * 12 / 70) + 1


@pytest.mark.parametrize("stop", [1, 5, 17, 39])
def test_a_run_goes_on_as_if_it_had_never_stopped(
    points: Folder, tmp_path: Path, stop: int
) -> None:
    whole = _run(points, tmp_path / "whole")
    whole.fit()
    with pytest.raises(_Stopped):
        _run(points, tmp_path / "parts", _stop_at(stop)).fit()
    found = Keeper(Folder(str(tmp_path / "parts"))).newest()
    assert (found[0] if found else 0) == stop // 5 * 5
    again = _run(points, tmp_path / "parts")
    again.fit()
    for name, tensor in _tensors(whole).items():
        assert torch.equal(tensor, _tensors(again)[name]), name
    assert again.lines == whole.lines
    assert (tmp_path / "parts" / CURVES).read_bytes() == (tmp_path / "whole" / CURVES).read_bytes()


def test_a_finished_run_does_nothing(points: Folder, tmp_path: Path) -> None:
    _run(points, tmp_path).fit()
    again = _run(points, tmp_path, _stop_at(1))
    again.fit()
    assert again.lines


def test_seeds_differ_and_repeat(points: Folder, tmp_path: Path) -> None:
    runs = [_run(points, tmp_path / str(n), seed=seed) for n, seed in enumerate((0, 0, 1))]
    for run in runs:
        run.fit()
    first, same, other = (_tensors(run)["1.weight"] for run in runs)
    assert torch.equal(first, same)
    assert not torch.equal(first, other)


def test_a_loss_that_is_no_number_ends_the_run(points: Folder, tmp_path: Path) -> None:
    run = _run(points, tmp_path, settings={"explode": 8})
    with pytest.raises(UserError, match=r"loss is nan at step 8: training diverged"):
        run.fit()
    found = Keeper(Folder(str(tmp_path))).newest()
    assert found is not None
    assert found[0] == 5


@pytest.mark.parametrize(("step", "kept"), [(5, None), (10, 5), (12, 10)])
def test_weights_that_are_no_numbers_end_the_run(
    points: Folder, tmp_path: Path, step: int, kept: int | None
) -> None:
    """After a step whose loss was still finite."""
    run = _run(points, tmp_path, steps=12, settings={"overflow": step})
    with pytest.raises(UserError, match=rf"net: 1\.bias is not finite at step {step}: train"):
        run.fit()
    found = Keeper(Folder(str(tmp_path))).newest()
    assert (found and found[0]) == kept


def test_weights_that_are_no_numbers_are_not_published(points: Folder, tmp_path: Path) -> None:
    run = _run(points, tmp_path / "run", steps=5)
    run.fit()
    states, output = {"net": _tensors(run)}, Folder(str(tmp_path / "model"))
    states["net"]["0.0.weight"][3, 1] = float("inf")
    with pytest.raises(UserError, match=r"net: 0\.0\.weight is not finite at step 5: "):
        save_model(output, run.recipe, run.examples.task.classes, states, run.lines)
    assert not list(tmp_path.glob("model/*"))


def test_a_checkpoint_of_another_model_is_refused(points: Folder, tmp_path: Path) -> None:
    run = _run(points, tmp_path)
    Keeper(run.folder).save(
        5, {"modules": {"net": {"x": torch.zeros(3)}}, "optimizers": {}, "lines": []}
    )
    with pytest.raises(UserError, match="do not fit this model"):
        run.fit()


def test_a_run_starts_from_given_tensors(points: Folder, tmp_path: Path) -> None:
    first = _run(points, tmp_path / "first")
    first.fit()
    second = _run(points, tmp_path / "second", settings={"rate": 1e-12})
    second.start = {"net": _tensors(first)}
    second.fit()
    for name, tensor in _tensors(second).items():
        torch.testing.assert_close(tensor, _tensors(first)[name], atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ({"kind": "constant"}, lambda s: 1.0),
        ({"kind": "step", "every": 30, "drop": 0.1}, lambda s: 0.1 ** (s // 30)),
        ({"kind": "step", "at": [20, 50]}, lambda s: 0.1 ** ((s >= 20) + (s >= 50))),
        ({"kind": "cosine"}, lambda s: 0.5 * (1 + np.cos(np.pi * s / 100))),
        ({"kind": "linear", "hold": 0.5}, lambda s: 1.0 if s <= 50 else (100 - s) / 50),
        ({"kind": "constant", "warmup": 200}, lambda s: (s + 1) / 200),
    ],
)
def test_schedules(schedule: dict[str, Any], expected: Any) -> None:
    made = Schedule.model_validate(schedule)
    for step in range(100):
        assert made.factor(step, 100) == pytest.approx(expected(step))


def test_the_rate_follows_the_schedule(points: Folder, tmp_path: Path) -> None:
    rates: list[float] = []
    run = _run(points, tmp_path, schedule={"kind": "step", "every": 10, "drop": 0.5})
    place = Place(
        report=lambda done, steps, line: rates.append(
            run.learner.optimizers["net"].param_groups[0]["lr"]
        )
    )
    run.place = place
    run.fit()
    assert rates == pytest.approx([0.1 * 0.5 ** (step // 10) for step in range(40)])


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"epochs": 3}, "give either steps or epochs"),
        ({"steps": 0}, "steps"),
        ({"batchsize": 3}, "batchsize"),
        ({"schedule": {"kind": "step"}}, "schedule.every"),
        ({"schedule": {"kind": "step", "every": 9, "at": [5]}}, "either schedule.every or"),
        ({"data": {"truth": "folders", "hold_out": 1}}, "less than 1"),
        ({"data": {"truth": "folders", "hold_out": 0}}, "greater than 0"),
        ({"data": {"truth": "folders", "hold_out": 0.1, "validate": "val"}}, "either validate or"),
        ({"data": {"truth": "folders", "validate": None}}, "either validate or hold_out"),
        ({"data": {"stored": "files"}}, "of files, truth is one of folders"),
        ({"data": {"stored": "files", "truth": "columns"}}, "of files, truth is one of folders"),
        ({"precision": "float8"}, "precision"),
    ],
)
def test_impossible_recipes(changes: dict[str, Any], fault: str) -> None:
    with pytest.raises(ValueError, match=fault):
        Recipe.model_validate(tiny_recipe(**changes))


def test_recipes_and_models_of_before_are_still_read() -> None:
    """They say `form` or `format` where recipes say `truth` today; both at once is a mistake."""
    words = {"folders": "folders", "parquet": "columns", "masks": "masks", "edges": "boundaries"}
    for word in ("form", "format"):
        for earlier, now in words.items():
            before = Recipe.model_validate(tiny_recipe(data={word: earlier}))
            assert before == Recipe.model_validate(tiny_recipe(data={"truth": now}))
        with pytest.raises(UserError, match=f"{word} is truth now"):
            validate(Recipe, tiny_recipe(data={"truth": "masks", word: "masks"}))
        with pytest.raises(UserError, match=f"no {word} 'tar'; give truth instead"):
            validate(Recipe, tiny_recipe(data={word: "tar"}))


@pytest.mark.parametrize(
    ("task", "fault"),
    [
        ("imgray.nothing:Task", "No module"),
        ("tinytask:Nothing", "no attribute"),
        ("tinytask:TinySettings", "not a task"),
        ("", "expected package.module:Class"),
    ],
)
def test_unknown_tasks(task: str, fault: str) -> None:
    with pytest.raises(UserError, match=fault):
        task_of(Recipe.model_validate(tiny_recipe(task=task)), ["a"])


def test_unknown_settings_of_a_task_are_named() -> None:
    recipe = Recipe.model_validate(tiny_recipe(settings={"rats": 1, "noise": -1}))
    with pytest.raises(
        UserError, match=r"settings: noise: .*; recipe: settings: unknown setting 'rats'"
    ):
        task_of(recipe, ["a"])


def test_curves_are_drawn_now_and_then(
    points: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the first evaluation, and at one ten seconds later; their lines are kept at each."""
    clock, drawn = [0.0], list[int]()
    monkeypatch.setattr(plots, "curves", lambda lines: drawn.append(lines[-1]["step"]) or b"")
    monkeypatch.setattr(loop, "time", SimpleNamespace(monotonic=lambda: clock[0]))

    def report(done: int, steps: int, line: object) -> None:
        clock[0] += 1.0

    _run(points, tmp_path, Place(report=report), steps=24, epochs=None, evaluate_every=0.1).fit()
    lines = [json.loads(line) for line in (tmp_path / CURVES).read_text().splitlines()]
    evaluated = [line["step"] for line in lines if line["part"] == "validate"]
    assert len(evaluated) > len(drawn)
    assert drawn[0] == evaluated[0]
    assert drawn[1] == next(step for step in evaluated if step > drawn[0] + loop.DRAWN)
