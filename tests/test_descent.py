"""Recipes with several optimizers and networks: rates, clipping, losses, starts, samples."""

import io
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
import torch
from duotask import DuoLearner
from PIL import Image
from tinytask import tiny_recipe, write_points
from torch import Tensor

from imgray.artifacts.folder import Folder
from imgray.artifacts.manifest import Manifest, publish
from imgray.drawing.predictions import HEIGHT, WIDTH, panel_origin
from imgray.engine.train import check_recipe, open_examples
from imgray.errors import UserError
from imgray.training import sheet
from imgray.training.loop import Run, States
from imgray.training.models import load_model, load_start, save_model
from imgray.training.recipe import Recipe, Schedule
from imgray.training.sheet import SAMPLES
from imgray.training.task import Batch, settled_recipe

pytestmark = pytest.mark.usefixtures("undrawn")

RATES = {"generator": 0.01, "critic": 0.1}


@pytest.fixture(scope="module")
def points(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_points(tmp_path_factory.mktemp("points")))


def _recipe(**changes: Any) -> Recipe:
    usual = {"task": "duotask:DuoTask", "steps": 12, "evaluate_every": 9, "checkpoint_every": 50}
    return Recipe.model_validate(tiny_recipe(**{**usual, **changes}))


def _run(points: str, output: Path, states: States | None = None, **changes: Any) -> Run:
    recipe = _recipe(**changes)
    return Run(recipe, open_examples(recipe, points), Folder(str(output)), start=states)


@pytest.fixture
def descents(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[tuple[float, float]]]:
    """By optimizer the rate and the norm of the gradient of each of its steps."""
    found: dict[str, list[tuple[float, float]]] = defaultdict(list)
    make = DuoLearner.__init__

    def made(self: DuoLearner, settings: Any) -> None:
        make(self, settings)
        for name, optimizer in self.optimizers.items():
            optimizer.register_step_pre_hook(
                lambda own, *_, name=name: found[name].append(_of(own))
            )

    monkeypatch.setattr(DuoLearner, "__init__", made)
    return found


def _of(optimizer: torch.optim.Optimizer) -> tuple[float, float]:
    [group] = optimizer.param_groups
    return group["lr"], float(torch.cat([p.grad.flatten() for p in group["params"]]).norm())


def test_optimizers_have_schedules_of_their_own(
    points: str, tmp_path: Path, descents: dict[str, list[tuple[float, float]]]
) -> None:
    own = {"critic": {"schedule": {"kind": "step", "at": [3, 8], "drop": 0.5}}}
    schedule = {"kind": "linear", "hold": 0.25, "warmup": 2}
    _run(points, tmp_path, schedule=schedule, optimizers=own).fit()
    drops = [1.0] * 3 + [0.5] * 5 + [0.25] * 4
    assert [rate for rate, _ in descents["critic"]] == pytest.approx([0.1 * d for d in drops])
    falls = [0.5, 1.0, *(min(1, (1 - step / 10) / 0.75) for step in range(10))]
    assert [rate for rate, _ in descents["generator"]] == pytest.approx([0.01 * f for f in falls])


@pytest.mark.parametrize(
    ("settings", "clips"),
    [
        ({}, {"generator": None, "critic": None}),
        ({"clip": 0.02}, {"generator": 0.02, "critic": 0.02}),
        (
            {"clip": 0.02, "optimizers": {"critic": {"clip": 0.05}}},
            {"generator": 0.02, "critic": 0.05},
        ),
        (
            {"clip": 0.02, "optimizers": {"critic": {"clip": None}}},
            {"generator": 0.02, "critic": None},
        ),
        ({"optimizers": {"critic": {"clip": 0.05}}}, {"generator": None, "critic": 0.05}),
        (
            {"clip": 0.02, "optimizers": {"critic": {"schedule": {"kind": "cosine"}}}},
            {"generator": 0.02, "critic": 0.02},
        ),
    ],
)
def test_gradients_are_clipped_by_optimizer(
    points: str,
    tmp_path: Path,
    descents: dict[str, list[tuple[float, float]]],
    settings: dict[str, Any],
    clips: dict[str, float | None],
) -> None:
    run = _run(points, tmp_path, **settings)
    run.fit()
    for name, clip in clips.items():
        norms = [norm for _, norm in descents[name]]
        assert len(norms) == 12
        assert max(norms) == (pytest.approx(clip, rel=1e-4) if clip else pytest.approx(max(norms)))
        assert clip or max(norms) > 0.06
    dumped = run.recipe.model_dump(mode="json", by_alias=True)
    assert Recipe.model_validate(dumped) == run.recipe


def test_what_an_optimizer_leaves_unset_is_as_for_all() -> None:
    recipe = _recipe(
        clip=2, schedule={"kind": "cosine"}, optimizers={"a": {"clip": 1}, "b": {"schedule": {}}}
    )
    cosine = Schedule(kind="cosine")
    found = {name: recipe.optimizer(name) for name in ("a", "b", "other")}
    assert {k: (v.schedule, v.clip) for k, v in found.items()} == {
        "a": (cosine, 1), "b": (Schedule(), 2), "other": (cosine, 2),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        (
            {"optimizers": {"discriminator": {"clip": 1}}},
            r"optimizers.discriminator: duotask:DuoTask has generator, critic, no 'discriminator'",
        ),
        (
            {"start": {"teacher": "nowhere"}},
            r"start.teacher: duotask:DuoTask has generator, critic, average, no 'teacher'",
        ),
        ({"start": {"critic": "nowhere"}}, "nowhere: no model artifact here"),
        ({"start": "nowhere"}, "nowhere: no model artifact here"),
    ],
)
def test_names_that_a_task_lacks_are_refused(
    points: str, changes: dict[str, Any], fault: str
) -> None:
    recipe = _recipe(**changes)
    with pytest.raises(UserError, match=fault) as error:
        check_recipe(recipe, open_examples(recipe, points).task)
    assert "\n" not in str(error.value)


def test_a_loss_is_averaged_over_the_steps_that_report_it(
    points: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[dict[str, float]] = []
    step = DuoLearner.step

    def noted(self: DuoLearner, *given: Any) -> dict[str, Tensor]:
        values = step(self, *given)
        found.append({name: float(value.detach()) for name, value in values.items()})
        return values

    monkeypatch.setattr(DuoLearner, "step", noted)
    run = _run(points, tmp_path, settings={"every": 5}, steps=12, log_every=2)
    run.fit()
    lines = [line for line in run.lines if line["part"] == "train"]
    assert [line["step"] for line in lines] == [2, 4, 6, 8, 10, 12]
    for line, one, two in zip(lines, found[::2], found[1::2], strict=True):
        for name in ("critic", "generator", "penalty"):
            values = [values[name] for values in (one, two) if name in values]
            assert (name in line) == bool(values)
            if values:
                assert line[name] == pytest.approx(sum(values) / len(values), abs=1e-12)
    assert sum("penalty" in line for line in lines) == 3


def _published(run: Run, folder: Path, *names: str) -> str:
    states = {
        name: net.state_dict() for name, net in run.nets.items() if name in (names or run.nets)
    }
    output = Folder(str(folder))
    files, about = save_model(output, run.recipe, run.examples.task.classes, states, run.lines)
    publish(output, Manifest(kind="model", config={}, about=about, files=files))
    return output.uri


@pytest.fixture(scope="module")
def model(points: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, str]:
    """A trained model of three networks, one of them an average that no optimizer changes."""
    folder = tmp_path_factory.mktemp("model")
    run = _run(points, folder / "run", settings={"norm": True}, steps=12)
    run.fit()
    return run, _published(run, folder / "model")


def test_an_average_is_published_and_checked(model: tuple[Run, str], tmp_path: Path) -> None:
    run, uri = model
    average = load_model(uri).learner.modules["average"].state_dict()
    assert int(average["n_averaged"]) == 12
    for name, tensor in run.nets["average"].state_dict().items():
        assert torch.equal(average[name], tensor), name
    weights = run.nets["generator"].state_dict()["0.weight"]
    assert not torch.equal(average["module.0.weight"], weights)
    broken = {n: dict(net.state_dict()) for n, net in run.nets.items()}
    broken["average"]["module.2.bias"] = torch.tensor([0.0, float("nan")])
    with pytest.raises(UserError, match=r"average: module\.2\.bias is not finite at step 12"):
        save_model(Folder(str(tmp_path)), run.recipe, [], broken, run.lines)


def test_networks_start_from_others(model: tuple[Run, str], points: str, tmp_path: Path) -> None:
    """From one of several networks that of the name, from a single one that, else as made."""
    trained, uri = model
    single = _published(trained, tmp_path / "single", "critic")
    start = {"generator": uri, "critic": single}
    settings = {"norm": True}
    run = _run(points, tmp_path / "run", load_start(start), settings=settings, start=start, steps=1)
    fresh = _run(points, tmp_path / "fresh", settings=settings, steps=1)
    for one in (run, fresh):
        one.steps = 0
        one.fit()
    for name, source in (("generator", trained), ("critic", trained), ("average", fresh)):
        for key, tensor in source.nets[name].state_dict().items():
            assert torch.equal(run.nets[name].state_dict()[key], tensor), (name, key)
    whole = _run(points, tmp_path / "whole", load_start({"": uri}), settings=settings, start=uri)
    whole.steps = 0
    whole.fit()
    for name, net in trained.nets.items():
        for key, tensor in net.state_dict().items():
            assert torch.equal(whole.nets[name].state_dict()[key], tensor), (name, key)


def test_a_start_that_does_not_fit_is_refused(model: tuple[Run, str], points: str) -> None:
    _, uri = model
    with pytest.raises(UserError, match=r"start\.net: .* has generator, critic, average, no 'net'"):
        load_start({"net": uri})
    recipe = _recipe(start={"generator": uri})  # without normalisation
    with pytest.raises(UserError, match="the model to start from: 5 tensors do not fit"):
        check_recipe(recipe, open_examples(recipe, points).task)


def test_starts_are_settled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for start, wanted in (
        ("a", str(tmp_path / "a")),
        ({"critic": "a/b"}, {"critic": str(tmp_path / "a/b")}),
        (None, None),
    ):
        settled = settled_recipe(_recipe(start=start))
        assert settled.start == wanted
        assert settled_recipe(settled) == settled
    assert _recipe(start={"critic": "a"}).starts == {"critic": "a"}
    assert _recipe(start="a").starts == {"": "a"}
    assert _recipe().starts == {}


def test_samples_are_drawn_at_every_evaluation(
    points: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the same six records; and training does not notice."""
    drawn: list[list[str]] = []
    draw = sheet.panel_png

    def watched(panels: Any, *rest: Any) -> bytes:
        drawn.append([panel.id for panel in panels])
        return draw(panels, *rest)

    monkeypatch.setattr(sheet, "panel_png", watched)
    changes: dict[str, Any] = {
        "evaluate_every": 1,
        "settings": {"norm": True, "pool": 5},
        "steps": 14,
    }
    run = _run(points, tmp_path / "with", **changes)
    run.fit()
    evaluations = sum(line["part"] == "validate" for line in run.lines)
    assert drawn == [["0", "6", "12", "17", "23", "29"]] * evaluations
    assert evaluations == 3  # an epoch is 70 / 12 steps
    image = Image.open(io.BytesIO((tmp_path / "with" / SAMPLES).read_bytes()))
    for number, id in enumerate(drawn[0]):
        with torch.no_grad():
            [found] = run.learner.predict(_batch(run, int(id)))
        x, y = panel_origin(number)
        assert found.picture is not None
        assert image.getpixel((x + WIDTH * 3 // 2, y + HEIGHT // 2)) == tuple(found.picture[4, 4])

    without = _run(points, tmp_path / "without", **changes)
    monkeypatch.setattr(Run, "_draw", lambda self: None)
    without.fit()
    assert not (tmp_path / "without" / SAMPLES).exists()
    for name, net in run.nets.items():
        for key, tensor in net.state_dict().items():
            assert torch.equal(without.nets[name].state_dict()[key], tensor), (name, key)
    assert without.lines == run.lines


def _batch(run: Run, index: int) -> Batch:
    point = run.examples.task.prepare({"image": run.examples.val[index]["image"]})["point"]
    return {"point": torch.as_tensor(point)[None]}


def test_a_task_that_paints_nothing_has_no_samples(points: str, tmp_path: Path) -> None:
    run = _run(points, tmp_path, task="tinytask:TinyTask")
    run.fit()
    assert not (tmp_path / SAMPLES).exists()


def test_samples_are_part_of_the_model(model: tuple[Run, str], tmp_path: Path) -> None:
    run, _ = model
    states = {name: net.state_dict() for name, net in run.nets.items()}
    files, _ = save_model(Folder(str(tmp_path)), run.recipe, ["a"], states, run.lines, b"picture")
    assert SAMPLES in [entry.name for entry in files]
    assert (tmp_path / SAMPLES).read_bytes() == b"picture"
