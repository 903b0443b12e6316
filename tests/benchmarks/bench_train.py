"""Training a CFN on CIFAR-10: images/s of `jobs/train.py` and of a plain torch loop.

    python tests/benchmarks/bench_train.py [--images N]

The loop is one process of one thread with torch's DataLoader (one worker process), the same model,
batch, decoding and optimizer, without Ray, checkpoints, curves or resuming. imgray runs with one
and with two workers of one thread. All are run in turn, there and back. Steady is from the first
checkpoint to the last but one; start-up is all else (imports, Ray, checking the data, the last
evaluation and publishing). Then the share of time that a step waits for its batch, fed by Ray Data
and by threads.

Cost at ten times the images: ten times the steady seconds, the same start-up.
"""

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import common
import numpy as np
import ray
import torch
from torch.utils.data import DataLoader, Dataset

from imgray.artifacts.folder import Folder
from imgray.engine.feed import Feed
from imgray.engine.train import open_examples, read_recipe
from imgray.training.examples import Examples
from imgray.training.loop import Batches, Loader, Place, Run, in_threads
from imgray.training.recipe import Recipe
from imgray.training.task import Arrays

RECIPE = "cfn-cifar10-small"
EVERY = 20


class Rate(NamedTuple):
    """Images/s when steady, and seconds of start-up."""

    images: float
    start: float


def settings(images: int) -> list[str]:
    """Changes to the recipe, to learn from so many images."""
    return ["epochs=null", f"steps={images // 100}", f"checkpoint_every={EVERY}", "log_every=20"]


def imgray(
    workers: int, changes: list[str], data: Path, output: Path, recipe: str = RECIPE
) -> Rate:
    """A job, steady from its first checkpoint to the last but one: before the last it evaluates."""
    began = time.time()
    flags = ["--recipe", recipe, "--data", data, "--output", output, "--workers", workers]
    process = common.start("train", *flags, "--set", *changes)
    seen: dict[int, float] = {}
    while process.poll() is None:
        for path in output.glob("_work/checkpoints/step-*"):
            seen.setdefault(int(path.stem.split("-")[1]), time.time())
        time.sleep(0.01)
    assert process.returncode == 0
    wall = time.time() - began
    batch = read_recipe(recipe, changes).batch_size
    first, *_, end, last = sorted(seen)
    rate = (end - first) * batch / (seen[end] - seen[first])
    return Rate(rate, wall - last * batch / rate)


class Steps(Dataset):
    """Batches as a torch data set: item `n` is the batch of step `n`."""

    def __init__(self, examples: Examples, steps: int) -> None:
        self.examples, self.steps = examples, steps

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, step: int) -> Arrays:
        return self.examples.training(step, 0, 1)


def plain(recipe: Recipe, data: Path) -> Rate:
    """The loop that a user would write, steady from its first `EVERY` steps on."""
    began = time.time()
    torch.set_num_threads(1)
    examples = open_examples(recipe, str(data))
    learner = examples.task.learner()
    net, optimizer = learner.modules["net"].train(), learner.optimizers["net"]
    steps = recipe.length(len(examples.train))
    batches = DataLoader(Steps(examples, steps), batch_size=None, num_workers=1, prefetch_factor=4)
    for step, arrays in enumerate(batches):
        if step == EVERY:
            first = time.time()
        images = arrays["image"].permute(0, 3, 1, 2).float().div(255).sub(0.5).div(0.25)
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(net(images), arrays["label"]).backward()
        optimizer.step()
    rate = (steps - EVERY) * recipe.batch_size / (time.time() - first)
    return Rate(rate, time.time() - began - steps * recipe.batch_size / rate)


def waiting(recipe: Recipe, data: Path, batches: Batches) -> float:
    """Share of its time that the loop waits for batches, the first few left out."""
    spent = [0.0, 0.0]

    def timed(load: Loader, numbers: range) -> Iterator[Arrays]:
        source, last = iter(batches(load, numbers)), 0.0
        for step in numbers:
            asked = time.perf_counter()
            arrays = next(source)
            got = time.perf_counter()
            if step > EVERY:
                spent[0] += got - asked
                spent[1] += got - last
            last = got
            yield arrays

    with tempfile.TemporaryDirectory() as folder:
        torch.set_num_threads(1)
        examples = open_examples(recipe, str(data))
        Run(recipe, examples, Folder(folder), Place(batches=timed)).fit()
    return spent[0] / spent[1]


def main() -> None:
    options = common.parser(__doc__, 20_000).parse_args()
    data, changes = options.data / "cifar10", settings(options.images)
    recipe = read_recipe(RECIPE, changes)
    found: dict[str, list[Rate]] = {"plain loop": [], "imgray, 1 worker": [], "imgray, 2": []}
    with common.work_folder(options.work) as work:
        for turn in range(2):
            for name in sorted(found, reverse=bool(turn)):
                output = work / f"{name}-{turn}".replace(" ", "").replace(",", "-")
                workers = 2 if name.endswith("2") else 1
                found[name].append(
                    plain(recipe, data)
                    if name == "plain loop"
                    else imgray(workers, changes, data, output)
                )
    base = np.mean([rate.images for rate in found["plain loop"]])
    rows = []
    for name, rates in found.items():
        images, start = np.mean(rates, axis=0)
        rows.append([name, images, f"{images / base:.2f}", start])
    common.table(["", "images/s", "ratio", "start-up, s"], rows)
    ray.init(num_cpus=4, log_to_driver=False)
    shares = [("Ray Data, one feeder", Feed(1)), ("threads", in_threads)]
    rows = [[name, f"{waiting(recipe, data, feed):.1%}"] for name, feed in shares]
    common.table(["batches by", "waited for, of a step"], rows)


if __name__ == "__main__":
    main()
