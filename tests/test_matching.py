"""Matching as a task: every layout learns, stops and goes on, and says the same everywhere."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from two import WORLD, both
from vectors import recipe_of, run_of, write_pairs

from imgray.retrieval import fusion
from imgray.retrieval.recall import matching_metrics, matching_ranks
from imgray.training.loop import Loader, Place, Run, in_threads
from imgray.training.task import Arrays

CHANCE = 6 * 100 / 20 * 3
LAYOUTS: dict[str, dict[str, Any]] = {
    "rrf": {"dropout": 0.1},
    "rrf bare": {"layout": "rrf", "steps": None, "norm": False, "norm_inputs": False, "dropout": 0.0},
    "rrf from cca": {"layout": "rrf", "first": "cca", "around": True, "dim": 6, "optimizer": "adam"},
    "ensemble": {"layout": "rrf", "steps": [1, 2, None], "dropout": 0.1},
    "cycle": {"layout": "cycle", "optimizer": "adam", "rate": 0.01},
    "cycle without reconstruction": {"layout": "cycle", "weights": [1, 0, 1], "fusion": "adaptive"},
    "latent alone": {"layout": "cycle", "weights": [0, 0, 1]},
    "linear": {"layout": "linear", "memory": 30},
    "linear from cca": {"layout": "linear", "first": "cca", "loss": "contrast", "dim": 5},
    "linear from ridge": {"layout": "linear", "first": "ridge"},
    "cca": {"layout": "cca", "shrink": [0.1, 0.1]},
    "ridge": {"layout": "ridge", "shrink": [0.1, 0.1]},
}  # fmt: skip


def _recipe(name: str, **changes: Any) -> Any:
    own = {"layout": name.split()[0]} | LAYOUTS[name]
    return recipe_of(**own | changes)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pairs(tmp_path_factory.mktemp("vectors") / "pairs.parquet")


@pytest.fixture(scope="module", params=LAYOUTS)
def run(
    request: pytest.FixtureRequest, data: Path, tmp_path_factory: pytest.TempPathFactory
) -> Run:
    """A finished run of each layout."""
    found = run_of(_recipe(request.param), data, tmp_path_factory.mktemp("run"))
    found.fit()
    return found


def _batch(run: Run, count: int = 60) -> dict[str, Tensor]:
    examples = replace(run.examples, batch_size=count)
    return {k: torch.as_tensor(v) for k, v in examples.validation(0, 0, 1).items()}


def test_it_learns(run: Run) -> None:
    assert run.lines[-1]["rsum"] > 1.8 * CHANCE
    assert 1 <= run.lines[-1]["t2i_median_rank"] < 8


def test_its_metrics_are_those_of_its_embeddings(run: Run) -> None:
    run.learner.modules["net"].eval()
    batch, sizes = _batch(run), run.examples.task._sizes
    with torch.inference_mode():
        found = run.learner.embed(batch)
    ids = [batch[name].numpy() for name in ("image_id", "text_id")]
    adaptive = run.examples.task.settings.fusion == "adaptive"
    parts = [found[s].split(sizes if adaptive else sum(sizes), dim=1) for s in ("image", "text")]
    lists = [[part.numpy() for part in side] for side in parts]
    ranks = matching_ranks(*lists, *ids, fuse=fusion.adaptive if adaptive else sum)
    metrics = matching_metrics(ranks)
    assert {name: run.lines[-1][name] for name in metrics} == pytest.approx(metrics, abs=1e-6)


def test_scores_and_embeddings_say_the_same(run: Run) -> None:
    """Of a pair, of an image or a text alone, and of records in any company."""
    task, learner = run.examples.task, run.learner
    learner.modules["net"].eval()
    batch = _batch(run, 7)
    pairs = {side: batch[side] for side in ("image", "text")}
    with torch.inference_mode():
        found = learner.embed(pairs)
        rows = [prediction.row for prediction in learner.predict(pairs)]
        alone = {side: learner.embed({side: pairs[side]})[side] for side in pairs}
        parts = learner.net(pairs)
        [one] = learner.predict({"text": pairs["text"][:1]})
    assert set(one.row) == {"text_embedding"}
    means = sum((x * y).sum(dim=1) for x, y in zip(*parts.values(), strict=True)) / len(
        parts["text"]
    )
    for side, embedding in found.items():
        assert embedding.dtype == torch.float32
        assert embedding.shape == (7, task.joint)
        torch.testing.assert_close(embedding.norm(dim=1), torch.ones(7), atol=1e-4, rtol=0)
        torch.testing.assert_close(alone[side], embedding)
        assert np.allclose([row[f"{side}_embedding"] for row in rows], embedding)
    assert [row["score"] for row in rows] == pytest.approx(means.tolist(), abs=1e-5)
    assert set(task.columns.names) == set(rows[0])


class _Stopped(BaseException):
    pass


def _begun(
    recipe: Any, data: Path, folder: Path, until: int, rank: int = 0, world: int = 1
) -> None:
    """A run that breaks off behind a checkpoint."""

    def batches(load: Loader, numbers: range) -> Iterator[Arrays]:
        yield from in_threads(load, numbers[:until])
        raise _Stopped

    with pytest.raises(_Stopped):
        run_of(recipe, data, folder, Place(rank, world, batches=batches)).fit()


RESUMED = ("ensemble", "linear", "linear from cca", "cca")


@pytest.mark.parametrize("name", RESUMED)
def test_it_goes_on_as_if_it_had_never_stopped(name: str, data: Path, tmp_path: Path) -> None:
    """Also in the middle of what it gathers, which takes 4.5 steps, and with what it remembers."""
    recipe = _recipe(name, recipe={"steps": 12, "checkpoint_every": 3})
    whole = run_of(recipe, data, tmp_path / "whole")
    whole.fit()
    for stop in (4, 8):
        _begun(recipe, data, tmp_path / str(stop), stop)
        again = run_of(recipe, data, tmp_path / str(stop))
        again.fit()
        assert again.lines == whole.lines
        for name_, tensor in whole.nets["net"].state_dict().items():
            assert torch.equal(tensor, again.nets["net"].state_dict()[name_]), name_


# What two workers do.


def _fit(layout: str) -> Any:
    def fit(rank: int, folder: Path) -> Any:
        folder.mkdir(exist_ok=True)
        data = write_pairs(folder / f"{rank}.parquet")
        run = run_of(_recipe(layout, recipe=SHORT), data, folder / "run", Place(rank, WORLD))
        run.fit()
        return run.nets["net"].state_dict(), run.lines

    return fit


def _resumed(rank: int, folder: Path) -> Any:
    """Begun by two workers, to be finished by one."""
    folder.mkdir(exist_ok=True)
    data = write_pairs(folder / f"{rank}.parquet")
    recipe = _recipe("cca", recipe={"steps": 9, "checkpoint_every": 2})
    _begun(recipe, data, folder / "run", 5, rank, WORLD)


SHORT = {"steps": 9, "checkpoint_every": 4, "evaluate_every": 1}


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, list[Any]], Path]:
    folder = tmp_path_factory.mktemp("two")
    return both(WORK, folder), folder


def _cca(rank: int, folder: Path) -> Any:
    return _fit("cca")(rank, folder)


def _linear(rank: int, folder: Path) -> Any:
    return _fit("linear from ridge")(rank, folder)


WORK = {"cca": _cca, "linear from ridge": _linear, "resumed": _resumed}


@pytest.mark.parametrize("layout", ["cca"])
def test_two_workers_find_the_closed_form_of_one(
    two: tuple[dict[str, list[Any]], Path], data: Path, tmp_path: Path, layout: str
) -> None:
    alone = run_of(_recipe(layout, recipe=SHORT), data, tmp_path)
    alone.fit()
    for state, lines in two[0][layout]:
        for name, tensor in alone.nets["net"].state_dict().items():
            torch.testing.assert_close(state[name], tensor, atol=1e-5, rtol=1e-4)
        assert lines[-1] == pytest.approx(alone.lines[-1], abs=1e-6)


def test_two_workers_stay_alike(two: tuple[dict[str, list[Any]], Path]) -> None:
    """Metrics too, of rows that both have."""
    (state, lines), (other, others) = two[0]["linear from ridge"]
    assert lines == others
    assert all(torch.equal(state[name], other[name]) for name in state)
    assert lines[-1]["rsum"] > CHANCE


def test_one_worker_ends_what_two_have_gathered(
    two: tuple[dict[str, list[Any]], Path], data: Path, tmp_path: Path
) -> None:
    recipe = _recipe("cca", recipe={"steps": 9, "checkpoint_every": 2})
    whole = run_of(recipe, data, tmp_path)
    whole.fit()
    again = run_of(recipe, data, two[1] / "resumed" / "run")
    again.fit()
    for name, tensor in whole.nets["net"].state_dict().items():
        torch.testing.assert_close(
            again.nets["net"].state_dict()[name], tensor, atol=1e-5, rtol=1e-4
        )
