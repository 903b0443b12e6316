"""Two optimizers, a pool and an average, on one worker and on two: against torch by hand."""

import shutil
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import duotask
import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from duotask import DuoLearner
from tinytask import tiny_recipe, write_points
from torch import Tensor, nn
from two import WORLD, both

from imgray.artifacts.folder import Folder
from imgray.engine.train import open_examples
from imgray.errors import UserError
from imgray.training import workers
from imgray.training.checkpoints import Keeper
from imgray.training.loop import Loader, Place, Run, in_threads
from imgray.training.recipe import Recipe
from imgray.training.task import Arrays, Batch, Learner

pytestmark = pytest.mark.usefixtures("undrawn")

STEPS, EVERY = 20, 5
STOPS = (5, 12, 15, 20)
FULL = {"pool": 9, "norm": True}


def _run(folder: Path, rank: int = 0, world: int = 1, until: int = STEPS, **changes: Any) -> Run:
    """A run that ends, or breaks off, after some of its steps."""
    content = tiny_recipe(
        task="duotask:DuoTask",
        **{"steps": STEPS, "checkpoint_every": EVERY, "evaluate_every": 9, **changes},
    )
    recipe = Recipe.model_validate(content)
    examples = open_examples(recipe, str(folder / "points"))

    def batches(load: Loader, numbers: range) -> Iterator[Arrays]:
        yield from in_threads(load, numbers[: max(0, until - numbers.start)])
        if until < numbers.stop:
            raise _Stopped

    return Run(recipe, examples, Folder(str(folder / "run")), Place(rank, world, batches=batches))


class _Stopped(BaseException):
    pass


def _begun(folder: Path, *given: Any, **changes: Any) -> Run:
    """As `_run`, after it has broken off."""
    run = _run(folder, *given, **changes)
    with pytest.raises(_Stopped):
        run.fit()
    return run


def _points(folder: Path) -> Path:
    """Written once, before any worker reads it."""
    workers = dist.is_initialized()
    if not workers or dist.get_rank() == 0:
        write_points(folder / "points")
    if workers:
        dist.barrier()
    return folder


def _made(run: Run) -> dict[str, Tensor]:
    """All that a run has made: the tensors of its networks, and its pool."""
    nets = {f"{n}/{k}": v for n, net in run.nets.items() for k, v in net.state_dict().items()}
    return {k: v.clone() for k, v in {**nets, **run.learner.state()}.items()}


def _equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


# What the two workers do.


def _fit(rank: int, folder: Path) -> Any:
    run = _run(_points(folder), rank, WORLD, batch_size=11)
    run.fit()
    return _made(run), run.lines


def _settle(rank: int, folder: Path) -> Any:
    """Statistics at every evaluation and at the end, and the last checkpoint's."""
    run, seen = _run(_points(folder), rank, WORLD, settings=FULL, evaluate_every=0.5), {}
    evaluate = DuoLearner.evaluate

    def watched(self: DuoLearner, batch: Batch) -> dict[str, Tensor]:
        now = deepcopy(dict(self.modules["generator"].named_buffers()))
        seen[int(now["1.num_batches_tracked"])] = now
        return evaluate(self, batch)

    DuoLearner.evaluate = watched
    try:
        run.fit()
    finally:
        DuoLearner.evaluate = evaluate
    found = run.keeper.newest()
    assert found is not None
    return (
        list(seen.values()),
        dict(run.nets["generator"].named_buffers()),
        found.state["modules"]["generator"],
    )


def _resume(rank: int, folder: Path) -> list[bool]:
    """Whether a run that was stopped ends as the whole one; the second looks for no checkpoint."""
    whole = _run(_points(folder / "whole"), rank, WORLD, settings=FULL)
    whole.fit()
    same = []
    for stop in STOPS[:-1]:
        place = _points(folder / str(stop))
        _begun(place, rank, WORLD, stop, settings=FULL)
        again = _run(place, rank, WORLD, settings=FULL)
        if rank:
            again.keeper.newest = lambda: pytest.fail("the first worker says where to resume")
        again.fit()
        same.append(_equal(_made(again), _made(whole)) and again.lines == whole.lines)
    return same


def _deal(rank: int, folder: Path) -> Any:
    """The pool after a checkpoint on two workers, and after one of a single worker is loaded."""
    first = _begun(_points(folder), rank, WORLD, 10, settings=FULL)
    if rank == 0:
        shutil.copytree(folder, folder.with_name("alone"))
        shutil.copytree(folder, folder.with_name("pair"))
        folder = folder.with_name("pair")
        found = Keeper(Folder(str(folder / "run"))).newest()
        items = torch.arange(22.0).view(11, 2)
        Keeper(Folder(str(folder / "run"))).save(20, {**found.state, "workers": [{"pool": items}]})
    torch.distributed.barrier()
    again = _run(folder.with_name("pair"), rank, WORLD, settings=FULL)
    again.fit()
    return first.learner.state()["pool"], again.learner.state()["pool"]


class _Spare(Learner):
    """One parameter that all workers use, one that the second uses, one that none does."""

    def __init__(self) -> None:
        net, other = nn.ParameterDict(), nn.Linear(2, 1)
        for name in ("all", "second", "none"):
            net[name] = nn.Parameter(torch.tensor([1.0, 2.0]))
        net["short"] = nn.Parameter(torch.tensor([3.0], dtype=torch.bfloat16))
        net["turned"] = nn.Parameter(torch.arange(6.0).view(2, 3).T)
        nn.init.ones_(other.weight)
        self.modules = {"net": net, "other": other}
        self.optimizers = {
            "net": torch.optim.SGD(net.parameters(), lr=0.5, weight_decay=0.1),
            "other": torch.optim.SGD(other.parameters(), lr=0.5),
        }

    step = evaluate = predict = None


_Spare.__abstractmethods__ = frozenset()


def _descend(rank: int, folder: Path) -> Any:
    """Gradients and parameters after a descent whose graph reaches the other's too."""
    workers.BUCKET, whole = 16, workers.BUCKET  # several buckets
    learner = _Spare()
    net, other = learner.modules["net"], learner.modules["other"]
    loss = (net["all"] * (rank + 1.0)).sum() + net["short"].float().sum() * (rank + 1)
    loss = loss + (net["turned"] * torch.tensor([[1.0, 2.0]]) * (rank + 1)).sum()
    if rank:
        loss = loss + (net["second"] * 4).sum()
    kept = other.weight.grad = torch.full((1, 2), 7.0)
    loss = loss + other(net["all"] * torch.ones(2)).sum()
    learner.descend("net", loss, keep_graph=True)
    untouched = other.weight.grad is kept and bool((kept == 7).all())
    before = {k: p.grad.clone() for k, p in net.items() if p.grad is not None}
    learner.descend("other", loss)
    after = {k: p.grad for k, p in net.items() if p.grad is not None}
    workers.BUCKET = whole
    tensors = {name: parameter.detach() for name, parameter in net.items()}
    return before, tensors, other.weight.grad, untouched and _equal(before, after)


def _spread(rank: int, folder: Path) -> Any:
    torch.manual_seed(rank)
    net = nn.Sequential(nn.Conv2d(3, 4, 2), nn.BatchNorm2d(4)).to(memory_format=torch.channels_last)
    net.register_buffer("flag", torch.tensor(rank == 0))
    net[1].running_mean += torch.randn(4)
    workers.spread({"net": net})
    same = deepcopy(net.state_dict())
    net[1].running_mean.fill_(0.1)
    net[1].running_var.fill_(rank + 1)
    workers.average_statistics({"net": net})
    means = deepcopy(net.state_dict())
    net[1].num_batches_tracked += rank
    with pytest.raises(UserError) as error:
        workers.average_statistics({"net": net})
    return same, means, str(error.value)


WORK = {
    "fit": _fit, "settle": _settle, "resume": _resume, "deal": _deal, "descend": _descend,
    "spread": _spread,
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("two")


@pytest.fixture(scope="module")
def two(folder: Path) -> dict[str, list[Any]]:
    """What both workers give, by what they do."""
    return both(WORK, folder)


def test_one_worker_does_what_torch_does_by_hand(tmp_path: Path) -> None:
    run = _run(_points(tmp_path), settings=FULL, schedule={"kind": "constant"})
    run.fit()
    torch.manual_seed(0)
    nets = DuoLearner(duotask.DuoSettings(**FULL))
    generator, critic, average = nets.generator, nets.critic, nets.average
    adam = torch.optim.Adam(generator.parameters(), lr=0.01)
    sgd = torch.optim.SGD(critic.parameters(), lr=0.1, momentum=0.9)
    for step in range(STEPS):
        seed = np.random.SeedSequence((0, step, 0)).generate_state(1)[0]
        torch.manual_seed(int(seed))
        real = torch.as_tensor(run.examples.training(step, 0, 1)["point"])
        made = generator(real.flip(1))
        shown = nets.pooled(made.detach())
        sgd.zero_grad()
        (F.softplus(-critic(real)).mean() + F.softplus(critic(shown)).mean()).backward()
        sgd.step()
        adam.zero_grad()
        F.softplus(-critic(made)).mean().backward()
        adam.step()
        with torch.no_grad():
            if step == 0:
                average.module.load_state_dict(generator.state_dict())
            for mean, new in zip(average.parameters(), generator.parameters(), strict=True):
                if step:
                    mean.copy_(duotask.DECAY * mean + (1 - duotask.DECAY) * new)
            for mean, new in zip(average.module.buffers(), generator.buffers(), strict=True):
                mean.copy_(new)
            average.n_averaged += 1
    expected = {"generator": generator, "critic": critic, "average": average}
    for name, net in expected.items():
        for key, tensor in net.state_dict().items():
            assert torch.equal(run.nets[name].state_dict()[key], tensor), (name, key)
    assert torch.equal(run.learner.state()["pool"], nets.pool)


def test_two_workers_do_what_one_does(two: dict[str, list[Any]], tmp_path: Path) -> None:
    """With parts of a batch of 6 and 5 examples, and a loss that not every step reports."""
    run = _run(_points(tmp_path), batch_size=11)
    run.fit()
    for made, lines in two["fit"]:
        for name, tensor in _made(run).items():
            if name != "pool":
                torch.testing.assert_close(made[name], tensor, atol=1e-6, rtol=0)
        assert len(lines) == len(run.lines)
        for line, other in zip(lines, run.lines, strict=True):
            assert line == pytest.approx(other, abs=1e-6)
    assert _equal(two["fit"][0][0], two["fit"][1][0])


def test_statistics_are_those_that_are_saved(two: dict[str, list[Any]]) -> None:
    (seen, end, saved), (others, other_end, _) = two["settle"]
    assert len(seen) == len(others) > 3
    for one, other in zip([*seen, end], [*others, other_end], strict=True):
        assert _equal(one, other)
    assert all(torch.equal(end[name], saved[name]) for name in end)
    assert _equal(seen[-1], end)


def test_a_run_goes_on_as_if_it_had_never_stopped(two: dict[str, list[Any]]) -> None:
    assert two["resume"] == [[True] * len(STOPS[:-1])] * WORLD


@pytest.mark.parametrize("stop", STOPS)
def test_one_worker_goes_on_too(tmp_path: Path, stop: int) -> None:
    whole = _run(_points(tmp_path / "whole"), settings=FULL)
    whole.fit()
    place = _points(tmp_path / "parts")
    if stop < STEPS:
        _begun(place, 0, 1, stop, settings=FULL)
    again = _run(place, settings=FULL)
    again.fit()
    assert _equal(_made(again), _made(whole))


def test_a_worker_whose_group_is_gone_saves_nothing(tmp_path: Path) -> None:
    """Until Ray ends it, it seems to be alone."""
    write_points(tmp_path / "points")
    run = _run(tmp_path, 0, WORLD)
    with pytest.raises(torch.distributed.DistError, match="group of workers is gone"):
        run.fit()
    assert not run.folder.sizes()


def test_pools_are_dealt_anew(two: dict[str, list[Any]], folder: Path) -> None:
    (first, even), (second, odd) = two["deal"]
    assert len(first) == len(second) == FULL["pool"]
    alone = _run(folder / "alone", until=10, settings=FULL)
    with pytest.raises(_Stopped):
        alone.fit()
    assert torch.equal(alone.learner.state()["pool"], torch.cat([first, second]))
    items = torch.arange(22.0).view(11, 2)
    assert torch.equal(even, items[0::2])
    assert torch.equal(odd, items[1::2])


@pytest.mark.parametrize("world", [1, 2, 3, 4, 9])
def test_dealing_loses_and_doubles_nothing(world: int) -> None:
    parts = [{"a": torch.arange(4.0)}, {"b": torch.ones(1)}, {"a": torch.arange(4.0, 7)}]
    shares = [workers.dealt(parts, rank, world) for rank in range(world)]
    if world == 3:
        assert shares == parts
    items = torch.cat([share["a"] for share in shares if "a" in share])
    assert sorted(items.tolist()) == list(range(7))
    sizes = [len(share["a"]) for share in shares if "a" in share]
    assert world == 3 or max(sizes) - min(sizes) <= 1


def test_a_descent_is_its_optimizers_own(two: dict[str, list[Any]]) -> None:
    expected = {
        "all": torch.tensor([2.5, 2.5]), "second": torch.tensor([2.0, 2.0]),
        "short": torch.tensor([1.5], dtype=torch.bfloat16),
        "turned": torch.tensor([[1.5, 3.0]]).expand(3, 2),
    }  # fmt: skip
    for gradients, tensors, other, apart in two["descend"]:
        assert apart
        assert _equal(gradients, expected)
        assert torch.equal(tensors["none"], torch.tensor([1.0, 2.0]))  # not even decayed
        decayed = torch.tensor([1.0, 2.0]) - 0.5 * (2 + 0.1 * torch.tensor([1.0, 2.0]))
        torch.testing.assert_close(tensors["second"], decayed)
        assert torch.equal(other, torch.tensor([[1.0, 2.0]]))


def test_workers_begin_alike_and_average_statistics(two: dict[str, list[Any]]) -> None:
    (one, means, error), (other, other_means, _) = two["spread"]
    torch.manual_seed(0)
    wanted = nn.Conv2d(3, 4, 2)
    assert torch.equal(one["0.weight"], wanted.weight)
    assert bool(one["flag"])
    assert _equal(one, other)
    assert _equal(means, other_means)
    assert torch.equal(means["1.running_mean"], torch.full((4,), 0.1))
    assert torch.equal(means["1.running_var"], torch.full((4,), 1.5))
    assert error.startswith("network net: 1.num_batches_tracked differs between the workers: ")
