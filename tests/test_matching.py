"""Matching as a task: every layout learns, stops and goes on, and says the same everywhere."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from trained import count_parameters
from two import WORLD, both
from vectors import IMAGE, TEXT, recipe_of, run_of, write_pairs

from imgray.config import validate
from imgray.data.pixels import Rejected
from imgray.errors import UserError
from imgray.matching.bi_rank import BiRank, Pairs
from imgray.matching.contrast import Contrast
from imgray.matching.matcher import MatchingLearner
from imgray.matching.nets import SIDES, Around
from imgray.matching.settings import MatchingSettings
from imgray.retrieval import fusion
from imgray.retrieval.recall import matching_metrics, matching_ranks
from imgray.training.loop import Loader, Place, Run, in_threads
from imgray.training.task import Arrays, At, task_of

pytestmark = pytest.mark.usefixtures("undrawn")
AT = At(0, 9, 0.0)
ENOUGH = 250
"""An rsum far above that of chance, about 155 among 20 images with 3 texts each."""
ADAM = {"optimizer": "adam", "rate": 0.01}
LAYOUTS: dict[str, dict[str, Any]] = {
    "rrf": {"dropout": 0.0, **ADAM},
    "rrf bare": {
        "layout": "rrf", "steps": None, "norm": False, "norm_inputs": False, "dropout": 0.0, **ADAM,
    },
    "rrf from cca": {"layout": "rrf", "first": "cca", "around": True, **ADAM},
    "ensemble": {"layout": "rrf", "steps": [1, 2, None], "dropout": 0.1},
    "cycle": {"layout": "cycle", **ADAM},
    "cycle without reconstruction": {"layout": "cycle", "weights": [1, 0, 1], "fusion": "adaptive"},
    "latent alone": {"layout": "cycle", "weights": [0, 0, 1]},
    "linear": {"layout": "linear", "memory": 30},
    "linear from cca": {
        "layout": "linear", "first": "cca", "loss": "contrast", "dim": 5, "memory": 30,
    },
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
    assert run.lines[-1]["rsum"] > ENOUGH
    assert 1 <= run.lines[-1]["t2i_median_rank"] < 6


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


@pytest.mark.parametrize("name", ["ensemble", "linear from cca"])
def test_it_goes_on_as_if_it_had_never_stopped(name: str, data: Path, tmp_path: Path) -> None:
    """Also in the middle of what it gathers, which takes 5 steps, and with what it remembers."""
    recipe = _recipe(name, recipe={"steps": 8, "checkpoint_every": 3})
    whole = run_of(recipe, data, tmp_path / "whole")
    whole.fit()
    _begun(recipe, data, tmp_path / "parts", 4)
    again = run_of(recipe, data, tmp_path / "parts")
    again.fit()
    assert again.lines == whole.lines
    for key, tensor in whole.nets["net"].state_dict().items():
        assert torch.equal(tensor, again.nets["net"].state_dict()[key]), key


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


SHORT = {"steps": 9, "checkpoint_every": 4}


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
    assert lines[-1]["rsum"] > ENOUGH


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


def _learner(**settings: Any) -> MatchingLearner:
    recipe = recipe_of(**settings)
    torch.manual_seed(0)
    learner = task_of(recipe, ()).learner()
    assert isinstance(learner, MatchingLearner)
    return learner


def _vectors(count: int, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    found = {
        s: torch.randn(count, n, generator=generator)
        for s, n in zip(SIDES, (IMAGE, TEXT), strict=True)
    }
    return {**found, "image_id": torch.arange(count) // 2, "text_id": torch.arange(count)}


def test_an_ensemble_averages_the_scores_of_its_members() -> None:
    learner = _learner(steps=[0, 2, None])
    learner.net.eval()
    batch = _vectors(5)
    found = learner.embed(batch)
    parts = learner.net({side: batch[side] for side in SIDES})
    scores = [image @ text.T for image, text in zip(parts["image"], parts["text"], strict=True)]
    assert len(scores) == 3
    torch.testing.assert_close(found["image"] @ found["text"].T, torch.stack(scores).mean(dim=0))
    for side in SIDES:
        shapes = [len(list(head.parameters())) for head in learner.net.heads(side)]
        assert len(set(shapes)) == 3


def test_members_learn_as_if_each_were_alone() -> None:
    together = _learner(steps=[1, 2], dropout=0.0, momentum=0.5)
    alone = [_learner(steps=steps, dropout=0.0, momentum=0.5) for steps in (1, 2)]
    for member, one in enumerate(alone):
        for side in SIDES:
            one.net.heads(side)[0].load_state_dict(together.net.heads(side)[member].state_dict())
    for step in range(3):
        for learner in (together, *alone):
            learner.step(_vectors(20, step), At(step, 9, 0.0))
    for member, one in enumerate(alone):
        for side in SIDES:
            other = together.net.heads(side)[member].state_dict()
            for name, tensor in one.net.heads(side)[0].state_dict().items():
                torch.testing.assert_close(other[name], tensor)


def test_a_head_around_a_closed_form_begins_as_it() -> None:
    learner = _learner(layout="rrf", first="cca", around=True)
    batch = _vectors(40)
    learner.step(batch, At(0, 9, 0.0))
    learner._solve()
    learner.net.eval()
    for side, found in learner.embed(batch).items():
        [head] = learner.net.heads(side)
        assert isinstance(head, Around)
        plain = learner.net.first[side](batch[side])
        torch.testing.assert_close(found, F.normalize(plain, dim=1), atol=1e-5, rtol=1e-4)
    learner.net.train()
    learner.step(batch, At(1, 9, 1.0))
    assert all(float(learner.net.heads(side)[0].gain) != 0 for side in SIDES)


def test_losses_are_those_of_the_terms_with_what_is_remembered() -> None:
    learner = _learner(layout="linear", memory=15, negatives=4, alphas=[1, 0.5, 2, 1])
    first, second = _vectors(20), _vectors(12, seed=1)
    learner.objective(first, AT)
    kept = learner.net({s: first[s][-15:] for s in SIDES})
    others = Pairs(kept["image"][0], kept["text"][0], first["image_id"][-15:])
    own = learner.net({s: second[s] for s in SIDES})
    pairs = Pairs(own["image"][0], own["text"][0], second["image_id"])
    found = learner.objective(second, AT)
    torch.testing.assert_close(found["rank"], BiRank(negatives=4)(pairs, others))
    assert {name: len(rows) for name, rows in learner.state().items()} == {
        "image": 15, "text": 15, "image_id": 15,
    }  # fmt: skip
    assert not learner.state()["image"].requires_grad


@pytest.mark.parametrize("weights", [(1, 2, 3), (1, 0, 1), (0, 1, 1), (2, 0, 0), (0, 0, 1)])
def test_the_cycle_ranks_in_every_space(weights: tuple[int, int, int]) -> None:
    """Against its equations, from its mappings."""
    learner = _learner(layout="cycle", weights=list(weights), norm_inputs=False, norm=False)
    net, batch, rank = learner.net, _vectors(14), BiRank(negatives=10)
    v, t, ids = batch["image"], batch["text"], batch["image_id"]

    def mapped(mapper: Any, vectors: Tensor) -> tuple[Tensor, Tensor]:
        latent = F.linear(vectors, mapper.into[0].weight, mapper.into[0].bias)
        return latent, F.linear(latent.relu(), mapper.out[1].weight, mapper.out[1].bias)

    (z_v, t_), (z_t, v_) = mapped(net.dual["image"], v), mapped(net.dual["text"], t)
    v__, t__ = mapped(net.back["image"], t_)[1], mapped(net.back["text"], v_)[1]

    def loss(one: Tensor, other: Tensor) -> Tensor:
        return rank(Pairs(F.normalize(one, dim=1), F.normalize(other, dim=1), ids))

    dual, back, latent = loss(t_, t) + loss(v, v_), loss(v__, v) + loss(t__, t), loss(z_v, z_t)
    expected = {"dual": dual, "reconstructed": back, "latent": latent}
    found = learner.objective(batch, AT)
    kinds = {name: weight for name, weight in zip(expected, weights, strict=True) if weight}
    assert found.keys() == kinds.keys()
    for name, weight in kinds.items():
        torch.testing.assert_close(found[name], weight * expected[name], atol=1e-4, rtol=1e-4)
    spaces = [(t_, t), (v, v_)] if weights[0] else []
    spaces += [(z_v, z_t)] if weights[2] else []
    scores = [F.normalize(x, dim=1) @ F.normalize(y, dim=1).T for x, y in spaces]
    embedded = learner.embed(batch)
    joint = embedded["image"] @ embedded["text"].T
    torch.testing.assert_close(joint, torch.stack(scores).mean(dim=0), atol=1e-4, rtol=1e-4)


def test_the_contrast_is_a_cross_entropy_without_siblings() -> None:
    batch = _vectors(8)
    images, texts = (F.normalize(batch[s][:, :6], dim=1) for s in SIDES)
    ids, total = batch["image_id"], 0.0
    for of, among in ((images, texts), (texts, images)):
        for i in range(8):
            logits = {
                j: float(of[i] @ among[j]) / 0.2 for j in range(8) if j == i or ids[j] != ids[i]
            }
            total += np.log(sum(np.exp(s) for s in logits.values())) - logits[i]
    assert float(Contrast(0.2)(Pairs(images, texts, ids))) == pytest.approx(total / 16, rel=1e-5)


def test_texts_of_one_image_are_told_by_group_or_vector() -> None:
    task = task_of(recipe_of(), ())
    record = {"id": "1", "image": np.ones(IMAGE, np.float32), "text": np.ones(TEXT, np.float32)}
    other = {**record, "id": "2", "text": np.zeros(TEXT, np.float32)}
    one, two = task.example(record, None), task.example(other, None)
    assert one["image_id"] == two["image_id"]
    assert one["text_id"] != two["text_id"]
    named = [task.example({**record, "group": group}, None)["image_id"] for group in "aab"]
    assert named[0] == named[1] != named[2]
    assert one["image_id"].dtype == np.int64


@pytest.mark.parametrize("lacking", SIDES)
def test_a_record_to_learn_from_needs_both(lacking: str) -> None:
    task = task_of(recipe_of(), ())
    record = {"id": "r1", "image": np.ones(IMAGE, np.float32), "text": np.ones(TEXT, np.float32)}
    del record[lacking]
    assert task.prepare(record).keys() == record.keys() - {"id"}
    with pytest.raises(UserError, match=f"^r1: no {lacking}; "):
        task.example(record, None)
    assert not task.fields[lacking].optional
    assert task.inputs[lacking].optional


def test_nothing_at_all_is_rejected() -> None:
    with pytest.raises(Rejected, match="image or text is needed"):
        task_of(recipe_of(), ()).prepare({})


def test_lengths_must_be_known() -> None:
    with pytest.raises(
        UserError, match=r"settings\.dims: .*--features image=URI text=URI"
    ) as error:
        task_of(recipe_of(dims=False), ())
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("settings", "fault"),
    [
        ({"dims": {"image": 4}}, "dims: image, text are needed, not text"),
        (
            {"dims": {"image": 4, "text": 0}},
            r"dims\.text: Input should be greater",
        ),
        ({"layout": "clip"}, "layout"),
        ({"steps": -1}, "steps are from 0"),
        ({"steps": []}, "steps"),
        ({"weights": [0, 1, 0], "layout": "cycle"}, "weights"),
        ({"around": True}, "around: rrf with first maps to dim, 512 numbers"),
        ({"around": True, "first": "cca", "dims": {"image": 9, "text": 4}}, "around"),
        ({"shrink": [-1, 0]}, "shrink"),
        ({"rate": float("nan")}, "rate"),
    ],
)
def test_settings_that_cannot_be_meant(settings: dict[str, Any], fault: str) -> None:
    with pytest.raises(UserError, match=fault) as error:
        validate(MatchingSettings, settings, "recipe: settings")
    assert "\n" not in str(error.value)


def test_the_first_maps_have_a_rate_of_their_own() -> None:
    learner = _learner(layout="linear", first="cca", first_rate=0.0)
    batch = _vectors(40)
    learner.step(batch, At(0, 9, 0.0))
    learner._solve()
    before = [p.clone() for p in learner.net.first.parameters()]
    learner.step(batch, At(1, 9, 1.0))
    assert all(
        torch.equal(p, old) for p, old in zip(learner.net.first.parameters(), before, strict=True)
    )


def test_scores_are_exact_under_autocast() -> None:
    learner = _learner(layout="linear")
    with torch.autocast("cpu", torch.bfloat16):
        found = learner.embed(_vectors(6))
    for embedding in found.values():
        assert embedding.dtype == torch.float32
        torch.testing.assert_close(embedding.norm(dim=1), torch.ones(6), atol=1e-4, rtol=0)


def test_published_networks() -> None:
    """Of Flickr30K: batch normalisation everywhere, 512 numbers."""
    settings = validate(MatchingSettings, {"dims": {"image": 2048, "text": 6000}}, "settings")
    with torch.device("meta"):
        net = settings.net()
    counts = {side: count_parameters(net.heads(side)[0]) for side in SIDES}
    block = 262_656 + 4 * 1_025 + 3
    around = 2049 * 512 + 1024 + 513 * 512 + 1024
    assert counts == {s: 2 * n + (n + 1) * 2048 + around + block for s, n in settings.dims.items()}
    assert sum(isinstance(m, nn.BatchNorm1d) for m in net.modules()) == 2 * 8
    assert net.sizes == (512,)
