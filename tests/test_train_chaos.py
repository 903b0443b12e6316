"""Training that loses a worker, a machine or its driver, or is interrupted, ends in the same model.

As on a real cluster: a Ray of three nodes, with data, checkpoints and the model in S3.
"""

import json
import os
import re
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
import yaml
from conftest import S3
from nodes import Nodes
from running import Job, Start, run
from slowtask import Note, read_notes
from tinytask import tiny_recipe, write_points

from imgray.artifacts.folder import Folder
from imgray.artifacts.manifest import NAME, WORK, read_manifest
from imgray.training.loop import CURVES
from imgray.training.models import load_model

pytestmark = [pytest.mark.chaos, pytest.mark.slow]

STEPS, EVERY = 60, 10
"""Steps of a run, and from one checkpoint to the next."""
PAUSE = 0.1
"""Seconds that a step takes."""
KILL_AT = 27
"""A step between two checkpoints, in mid-epoch: an epoch is 70 / 12 steps."""
TOLERANCE = 1e-5
"""Between two runs with as many workers, which add up their gradients in any order."""

REPLACED = ["train: 2 workers", "train: lost a worker", "train: goes on with 2 workers"]


@dataclass(frozen=True)
class Training:
    """A training job: its flags, its output, its workers' notes, the cluster that it joins."""

    flags: list[str]
    output: Folder
    notes: Path
    address: str | None

    def start(self, start: Start) -> Job:
        return start("train", self.output.uri, *self.flags, address=self.address)

    def seen(self, since: float = 0) -> list[Note]:
        return [note for note in read_notes(self.notes) if note.time > since]

    def reaches(self, step: int) -> Callable[[], bool]:
        return lambda: any(note.step >= step for note in self.seen())

    def process(self, rank: int) -> int:
        """The process that was last the worker of a rank."""
        return [note.pid for note in self.seen() if note.rank == rank][-1]


Prepare = Callable[..., Training]


@pytest.fixture(scope="module")
def _prepare(_s3_server: S3, tmp_path_factory: pytest.TempPathFactory) -> Prepare:
    folder = tmp_path_factory.mktemp("training")
    data = Folder(_s3_server.uri("chaos/points"))
    for path in write_points(folder / "points").iterdir():
        data.write(path.name, path.read_bytes())

    def prepare(name: str, address: str | None, *flags: str, **changes: Any) -> Training:
        notes, recipe = folder / name, folder / f"{name}.yaml"
        notes.mkdir()
        own = {"task": "slowtask:SlowTask", "settings": {"notes": str(notes), "pause": PAUSE}}
        content = tiny_recipe(**own, **{"steps": STEPS, "checkpoint_every": EVERY, **changes})
        recipe.write_text(yaml.safe_dump(content))
        given = ["--recipe", str(recipe), "--data", data.uri, *flags]
        return Training(given, Folder(_s3_server.uri(f"chaos/{name}")), notes, address)

    return prepare


@pytest.fixture
def prepare(_prepare: Prepare, s3: S3) -> Prepare:
    """A function that writes a recipe, for a job that has not run yet."""
    return _prepare


@pytest.fixture
def on_cluster(prepare: Prepare, nodes: Nodes) -> Prepare:
    """As `prepare`, for a job on the three nodes."""
    return lambda name, *flags, **changes: prepare(name, nodes.address, *flags, **changes)


@pytest.fixture(scope="module")
def whole(_prepare: Prepare, address: str) -> Training:
    """An undisturbed run of two workers on the tests' own Ray."""
    training = _prepare("whole", address, "--workers", "2")
    _finish(training.start(run))
    return training


def _finish(job: Job) -> str:
    """What a job that succeeds says."""
    code, _, error = job.finish(300)
    assert code == 0, error
    return error


def _said(error: str) -> list[str]:
    """What a job has told of its workers."""
    return [line for line in error.splitlines() if re.match("train: .*worker", line)]


def _check(training: Training, whole: Training) -> None:
    """Every step once, and the numbers of the undisturbed run."""
    made, wanted = (load_model(one.output.uri) for one in (training, whole))
    expected = wanted.learner.modules["net"].state_dict()
    for name, tensor in made.learner.modules["net"].state_dict().items():
        torch.testing.assert_close(tensor, expected[name], atol=TOLERANCE, rtol=0)
    assert int(expected["steps"]) == STEPS
    for line, other in zip(_curves(training), _curves(whole), strict=True):
        assert line == pytest.approx(other, abs=TOLERANCE)
    metrics, other = (
        read_manifest(one.output, "model").about["metrics"] for one in (training, whole)
    )
    assert metrics == pytest.approx(other, abs=TOLERANCE)
    assert not training.output.exists(WORK)


def _curves(training: Training) -> list[dict[str, Any]]:
    return [json.loads(line) for line in training.output.read(CURVES).splitlines()]


def _check_recovery(training: Training, at: float) -> None:
    """What a loss at a time has cost: at most the steps since the last checkpoint."""
    after = training.seen(at)
    before = [note for note in training.seen() if note.time <= at]
    old = {note.pid for note in before}
    first = next(note for note in after if note.pid not in old)
    lost = max(note.step for note in training.seen() if note.pid in old) - first.step + 1
    print(f"{lost} steps lost, the next one after {first.time - at:.1f} s")
    assert 0 <= lost <= EVERY
    assert first.step > EVERY


def _check_replaced(job: Job, training: Training, whole: Training, at: float) -> None:
    """A job that lost a worker at a time tells of it and of two new ones, and ends as if not."""
    assert not training.output.exists(NAME)
    assert _said(_finish(job)) == REPLACED
    _check(training, whole)
    _check_recovery(training, at)


def test_a_killed_worker_is_replaced(
    on_cluster: Prepare, nodes: Nodes, whole: Training, start: Start
) -> None:
    """First one that loads batches, whom nobody misses; then worker 0, which saves checkpoints."""
    training = on_cluster("worker", "--workers", "2")
    job = training.start(start)
    job.wait_until(training.reaches(5))
    nodes.process("MapWorker").kill()
    job.wait_until(training.reaches(KILL_AT))
    at = time.time()
    os.kill(training.process(0), signal.SIGKILL)
    _check_replaced(job, training, whole, at)


@pytest.mark.sweep
def test_a_lost_node_costs_some_steps(
    on_cluster: Prepare, nodes: Nodes, whole: Training, start: Start
) -> None:
    """The other two nodes have as many CPUs as there are workers, and none to spare."""
    training = on_cluster("node", "--workers", "2")
    job = training.start(start)
    job.wait_until(training.reaches(KILL_AT))
    at = time.time()
    nodes.order("remove", training.process(1))
    _check_replaced(job, training, whole, at)


@pytest.mark.sweep
def test_machines_that_do_not_come_back_end_the_wait(
    on_cluster: Prepare, nodes: Nodes, whole: Training, start: Start
) -> None:
    nodes.order("nodes", 2)
    training = on_cluster("patience", "--workers", "2", "--patience", "90")
    job = training.start(start)
    job.wait_until(training.reaches(KILL_AT))
    at = time.time()
    nodes.order("remove", training.process(1))
    code, _, error = job.finish(300)
    assert code == 2
    assert error.splitlines()[-1].startswith("error: no worker started within 90 s")
    assert not training.output.exists(NAME)
    nodes.order("nodes", 2)
    _finish(training.start(start))
    _check(training, whole)
    _check_recovery(training, at)


@pytest.mark.sweep
def test_the_command_of_a_killed_driver_goes_on(
    on_cluster: Prepare, whole: Training, start: Start
) -> None:
    training = on_cluster("driver", "--workers", "2")
    job = training.start(start)
    job.wait_until(training.reaches(KILL_AT))
    at = time.time()
    job.kill()
    assert not training.output.exists(NAME)
    _finish(training.start(start))
    _check(training, whole)
    _check_recovery(training, at)


@pytest.mark.sweep
def test_an_elastic_run_shrinks_and_grows(on_cluster: Prepare, nodes: Nodes, start: Start) -> None:
    """The steps of fewer workers are the same batches; only dropout differs."""
    nodes.order("nodes", 2)
    training = on_cluster("elastic", "--workers", "1-2", "--grow-every", "2", steps=5 * STEPS)
    job = training.start(start)
    job.wait_until(training.reaches(KILL_AT))
    at = time.time()
    nodes.order("remove", training.process(1))
    job.wait_until(lambda: any(note.world == 1 for note in training.seen(at)))
    _check_recovery(training, at)
    at = time.time()
    nodes.order("nodes", 2)
    job.wait_until(lambda: any(note.world == 2 for note in training.seen(at)))
    assert not training.output.exists(NAME)
    error = _finish(job)
    _check_recovery(training, at)
    shrinks = ["train: 2 workers", "train: lost a worker", "train: goes on with 1 worker"]
    assert _said(error) == [*shrinks, "train: goes on with 2 workers"]
    assert [world for world, _ in groupby(note.world for note in training.seen())] == [2, 1, 2]
    model = load_model(training.output.uri)
    assert int(model.learner.modules["net"].state_dict()["steps"]) == 5 * STEPS
    assert read_manifest(training.output, "model").about["metrics"]["error"] < 0.1


@pytest.mark.sweep
@pytest.mark.parametrize("presses", [1, 2])
def test_ctrl_c_ends_at_once_and_the_command_goes_on(
    prepare: Prepare, whole: Training, start: Start, presses: int
) -> None:
    """A terminal sends SIGINT to the job and to the processes of Ray that share its group."""
    training = prepare(f"interrupted-{presses}", None, "--workers", "2")
    job = training.start(start)
    job.wait_until(training.reaches(KILL_AT))
    left, at = job.tree(), time.time()
    for _ in range(presses):
        os.killpg(job.process.pid, signal.SIGINT)
        time.sleep(0.3)
    code, output, error = job.finish(60)
    print(f"ended {time.time() - at:.1f} s after Ctrl-C")
    assert (code, output) == (130, ""), error
    lines = [line for line in error.splitlines() if not line.startswith("train: ")]
    assert lines == [
        f"{training.output.uri}: its store cannot keep two runs apart; let this be the only one",
        "interrupted: nothing half-done is visible; run it again to go on",
    ]
    assert not psutil.wait_procs(left, timeout=30)[1]
    assert not training.output.exists(NAME)
    _finish(training.start(start))
    _check(training, whole)
    _check_recovery(training, at)
