"""The training loop of every system: plain torch, with or without Ray around it.

The loop knows nothing of what it trains but the `Task`, and does the rest: data parallel workers,
learning rates, mixed precision, checkpoints, curves.

What happens at a step depends on the recipe, the step's number and the number of workers alone: the
order of the examples, their augmentation and all other chance are drawn from the seed and the step.
So a run that is stopped anywhere goes on from its last checkpoint as if nothing had been, and a
checkpoint needs no state of a random number generator.
"""

from __future__ import annotations

import json
import math
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from imgray.artifacts.folder import Folder
from imgray.data.datasets import Record
from imgray.drawing import plots
from imgray.errors import UserError
from imgray.training import workers
from imgray.training.checkpoints import Checkpoint, Keeper, check_finite, load_state
from imgray.training.examples import Examples
from imgray.training.recipe import Recipe
from imgray.training.sheet import SAMPLES, sample_sheet
from imgray.training.task import Arrays, At, Batch, Learner, Prediction, check_names

THREADS, AHEAD = 4, 3
CURVES, CURVES_PNG = "curves.jsonl", "curves.png"
DRAWN = 10.0
"""Seconds from one drawing of the curves to the next, at least: of short runs it would be most of
the work. A model's own are drawn when it is made."""

States = Mapping[str, dict[str, Tensor]]
"""By network the tensors by name."""
Line = dict[str, Any]
"""Of the curves: `step`, `epoch`, `part` (train or validate), and values by name."""


@dataclass(frozen=True)
class Loader:
    """What a worker loads for a number; may be sent to another process."""

    load: Callable[[int, int, int], Arrays]
    rank: int
    world: int

    def __call__(self, number: int) -> Arrays:
        return self.load(number, self.rank, self.world)


Batches = Callable[[Loader, range], Iterator[Arrays]]
"""Calls a loader for every number of a range, ahead of need; results come in order."""


def in_threads(load: Loader, numbers: range) -> Iterator[Arrays]:
    """`Batches` by threads of this process."""
    with ThreadPoolExecutor(THREADS) as pool:
        waiting = [pool.submit(load, number) for number in numbers[:AHEAD]]
        for place in range(len(numbers)):
            yield waiting.pop(0).result()
            if place + AHEAD < len(numbers):
                waiting.append(pool.submit(load, numbers[place + AHEAD]))


@dataclass(frozen=True)
class Place:
    """Where a worker runs: its rank among how many, its device, what feeds it."""

    rank: int = 0
    world: int = 1
    device: str = "cpu"
    batches: Batches = in_threads
    """What loads training batches; validation, being short, is always loaded by threads."""
    report: Callable[[int, int, Line | None], None] = lambda done, steps, line: None
    """Called by worker 0 after every step with steps done and to do, and a new line if any."""


class Run:
    """A training run on one worker.

    Args:
        recipe: what to train, and how.
        examples: its data.
        folder: where checkpoints and curves are kept; the same for all workers.
        place: this worker.
        start: tensors by network and name to start from, instead of the task's own; of some
            networks alone where the recipe says so.
    """

    def __init__(
        self,
        recipe: Recipe,
        examples: Examples,
        folder: Folder,
        place: Place | None = None,
        start: States | None = None,
    ) -> None:
        self.recipe, self.examples, self.folder = recipe, examples, folder
        self.place, self.start = place or Place(), start
        self.keeper = Keeper(folder)
        self.steps = recipe.length(len(examples.train))
        self.lines: list[Line] = []
        self.sums: dict[str, float | Tensor] = {}
        self.counts: Counter[str] = Counter()
        self._drawn = -math.inf

    def fit(self) -> None:
        """Train to the end from the newest checkpoint, or from the beginning.

        Raises:
            UserError: a loss or a tensor that is not finite, a checkpoint of another model, or a
                recipe with names of no optimizer or network.
            DistError: the other workers are gone.
        """
        found = self._newest()
        torch.manual_seed(self.recipe.seed)
        whole = self.start is not None and isinstance(self.recipe.start, str | None)
        self.learner = self.examples.task.learner(initial=found is None and not whole)
        check_names(self.recipe, self.learner)
        own = {name: self.recipe.optimizer(name) for name in self.learner.optimizers}
        self.learner.clips = {name: settings.clip for name, settings in own.items()}
        self.schedules = {name: settings.schedule for name, settings in own.items()}
        self.nets = {name: net.to(self.place.device) for name, net in self.learner.modules.items()}
        self.rates = {
            name: [group["lr"] for group in optimizer.param_groups]
            for name, optimizer in self.learner.optimizers.items()
        }
        steps = range(self._restored(found), self.steps)
        del found  # its networks are copied
        workers.spread(self.nets)
        batches = self.place.batches(self._loader(self.examples.training), steps)
        for step, arrays in zip(steps, batches, strict=True):
            self._step(step, arrays)
            self._after(step + 1)

    def _loader(self, load: Callable[[int, int, int], Arrays]) -> Loader:
        return Loader(load, self.place.rank, self.place.world)

    def _restored(self, found: Checkpoint | None) -> int:
        """Steps done by a checkpoint, after loading it, or what the recipe starts from."""
        if found is None:
            if self.start is not None:
                load_start(self.learner, self.start, self.recipe)
            return 0
        state = found.state
        load_nets(self.nets, state["modules"], f"{self.folder.uri}: checkpoint")
        for name, optimizer in self.learner.optimizers.items():
            optimizer.load_state_dict(state["optimizers"][name])
        if kept := state.get("workers"):  # not in checkpoints of before
            own = workers.dealt(kept, self.place.rank, self.place.world)
            self.learner.load({name: items.to(self.place.device) for name, items in own.items()})
        self.lines = state["lines"]
        return found.step

    def _newest(self) -> Checkpoint | None:
        """The checkpoint that the first worker finds to be the newest: one for all."""
        found = self.keeper.newest() if self.place.rank == 0 else None
        name = workers.from_first(found and found.name)
        return self.keeper.load(name) if name and not found else found

    def _step(self, step: int, arrays: Arrays) -> None:
        torch.manual_seed(_seed(self.recipe.seed, step, self.place.rank))
        self._set_rates(step)
        batch = to_device(arrays, self.place.device)
        size = len(next(iter(batch.values())))
        self.learner.loss_weight = size * self.place.world / self.recipe.batch_size
        for net in self.nets.values():
            net.train()
        with precision(self.recipe, self.place.device):
            found = self.learner.step(batch, At(step, self.steps, self._epoch(step)))
        for name, value in found.items():
            self.sums[name] = self.sums.get(name, 0.0) + value.detach().double() * size
            self.counts[name] += size

    def _set_rates(self, step: int) -> None:
        for name, optimizer in self.learner.optimizers.items():
            factor = self.schedules[name].factor(step, self.steps)
            for group, rate in zip(optimizer.param_groups, self.rates[name], strict=True):
                group["lr"] = rate * factor

    def _after(self, step: int) -> None:
        """Log, evaluate and save, where the count of steps asks for it."""
        line = None
        last = step == self.steps
        saving = last or step % self.recipe.checkpoint_every == 0
        evaluating = last or self._due(step) > self._due(step - 1)
        if saving or evaluating or step % self.recipe.log_every == 0:
            line = self._line(step, "train", self._means(step))
        if saving or evaluating:
            workers.average_statistics(self.nets)
        if saving:
            check_finite({name: net.state_dict() for name, net in self.nets.items()}, step)
        if evaluating:
            line = self._line(step, "validate", self._evaluate())
            self._draw()
        state = self._state() if saving else {}
        workers.check_group(self.place.world)  # behind all that is done together
        if self.place.rank == 0:
            if saving:
                self.keeper.save(step, state)
            if saving or evaluating:
                self.folder.write(CURVES, as_lines(self.lines))
            if evaluating and time.monotonic() - self._drawn > DRAWN:
                self.folder.write(CURVES_PNG, plots.curves(self.lines))
                self._drawn = time.monotonic()
            self.place.report(step, self.steps, line)

    def _due(self, step: int) -> int:
        """How many evaluations are due after so many steps."""
        return int(self._epoch(step) / self.recipe.evaluate_every)

    def _epoch(self, step: int) -> float:
        return step * self.recipe.batch_size / len(self.examples.train)

    def _line(self, step: int, part: str, values: Mapping[str, float]) -> Line:
        line = {"step": step, "epoch": round(self._epoch(step), 4), "part": part, **values}
        self.lines.append(line)
        return line

    def _means(self, step: int) -> dict[str, float]:
        """Means over the examples since the last time for which any worker gave a value."""
        sums = {
            name: torch.tensor([float(value), self.counts[name]], dtype=torch.float64)
            for name, value in self.sums.items()
        }
        self.sums, self.counts = {}, Counter()
        means = {name: float(t[0] / t[1]) for name, t in workers.summed(sums).items()}
        for name, value in means.items():
            if not math.isfinite(value):
                raise UserError(
                    f"{name} is {value} at step {step:,}: training diverged; lower the learning "
                    "rate (--set settings.rate=...), or look at the data of these steps"
                )
        return means

    def _evaluate(self) -> dict[str, float]:
        """Metrics over the validation part, each worker doing its share."""
        count = self.examples.validations(self.place.rank, self.place.world)
        with precision(self.recipe, self.place.device):
            batches = in_threads(self._loader(self.examples.validation), range(count))
            rows = self.examples.task.rows
            sums = add_up(self.learner.evaluate, self.learner, batches, self.place.device, rows)
        return self.examples.task.summarize(workers.summed(sums, rows))

    def _draw(self) -> None:
        """The sheet of samples, written before the checkpoint after which none may follow."""
        task, part = self.examples.task, self.examples.val
        if self.place.rank == 0 and task.painted:
            self.folder.write(SAMPLES, sample_sheet(task, part, self._predict))

    @torch.inference_mode()
    def _predict(self, record: Record) -> Prediction:
        task = self.examples.task
        arrays = task.prepare({name: record[name] for name in task.inputs if name in record})
        batch = {name: np.stack([array]) for name, array in arrays.items()}
        with precision(self.recipe, self.place.device):
            [found] = self.learner.predict(to_device(batch, self.place.device))
        return found

    def _state(self) -> dict[str, Any]:
        """What a checkpoint holds; the first worker's is whole."""
        optimizers = self.learner.optimizers.items()
        own = {name: items.detach().cpu() for name, items in self.learner.state().items()}
        return {
            "modules": {name: net.state_dict() for name, net in self.nets.items()},
            "optimizers": {name: optimizer.state_dict() for name, optimizer in optimizers},
            "workers": workers.gathered(own),
            "lines": self.lines,
        }


Evaluate = Callable[[Batch], dict[str, Tensor]]


@torch.inference_mode()
def add_up(
    evaluate: Evaluate,
    learner: Learner,
    batches: Iterable[Arrays],
    device: str,
    rows: Collection[str] = (),
) -> dict[str, Tensor]:
    """Sums over batches of `evaluate`, a method of the learner: float64 on the CPU, by name.

    Those that are `Task.rows` are not added but follow each other, in their own type.
    """
    for net in learner.modules.values():
        net.eval()
    found = (evaluate(to_device(arrays, device)) for arrays in batches)
    return workers.merged((_on_cpu(one, rows) for one in found), rows)


def _on_cpu(found: Mapping[str, Tensor], rows: Collection[str]) -> dict[str, Tensor]:
    return {name: (v if name in rows else v.double()).cpu() for name, v in found.items()}


def to_device(arrays: Arrays, device: str) -> Batch:
    """Arrays as tensors on a device."""
    return {name: torch.as_tensor(array).to(device) for name, array in arrays.items()}


def precision(recipe: Recipe, device: str) -> torch.autocast:
    """The context in which a recipe's forward passes run."""
    kind = torch.device(device).type
    return torch.autocast(kind, torch.bfloat16, enabled=recipe.precision == "bfloat16")


def load_nets(nets: Mapping[str, nn.Module], states: States, what: str) -> None:
    """Load the tensors of several networks. Raises `UserError` where they do not fit."""
    if nets.keys() != states.keys():
        raise UserError(f"{what} of {', '.join(states)}, but this model has {', '.join(nets)}")
    for name, net in nets.items():
        load_state(net, states[name], what)


def load_start(learner: Learner, start: States, recipe: Recipe) -> None:
    """Load what a recipe starts from, into all networks or those that it names. `UserError`.

    Networks that are `derived` are left as they are where the model to start from lacks them.
    """
    nets = learner.modules
    names = recipe.start if isinstance(recipe.start, dict) else nets.keys()
    chosen = {n: nets[n] for n in names if n in start or n not in learner.derived}
    load_nets(chosen, start, "the model to start from")


def as_lines(lines: Iterable[Line]) -> bytes:
    """JSON lines."""
    return "".join(json.dumps(line) + "\n" for line in lines).encode()


def _seed(seed: int, step: int, rank: int) -> int:
    return int(np.random.SeedSequence((seed, step, rank)).generate_state(1)[0])
