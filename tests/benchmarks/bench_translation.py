"""Chapter 7's comparison on facades at 64 pixels: CycleGAN, Long and Nest at equal budgets.

    python tests/benchmarks/bench_translation.py train|score --work FOLDER [--seeds N]

`train` gives every variant --minutes of processor time on one core, at a constant rate, and keeps
the generators every 250 steps, so that variants can be read at equal steps and at equal seconds. It
goes on where it was stopped, after the last variant that was done. Pairs are never trained on, but
by the variant that is told to.
"""

from __future__ import annotations

import argparse
import multiprocessing
import time
from pathlib import Path

import common
import torch

from imgray.artifacts.folder import Folder
from imgray.engine.examples import open_examples
from imgray.engine.train import read_recipe
from imgray.training.loop import Line, Place, Run
from imgray.training.recipe import Recipe

EVERY = 250
LONG, NEST = ("settings.stages=2",), ("settings.stages=2", "settings.inner=true")
ALTERNATING = "settings.reading=alternating"
VARIANTS: dict[str, tuple[str, ...]] = {
    "CycleGAN": (),
    "Long": LONG,
    "Nest": NEST,
    "CycleGAN, as large as Long": ("settings.width=23",),
    "Long, alternating": (*LONG, ALTERNATING),
    "Nest, alternating": (*NEST, ALTERNATING),
}


class Enough(Exception):
    """The time of a variant is up."""


def recipe_of(name: str, seed: int) -> Recipe:
    """The recipe of a variant."""
    budget = ["epochs=null", "steps=1000000", "schedule.kind=constant", "checkpoint_every=1000000"]
    own = [f"seed={seed}", "evaluate_every=1000000", "log_every=50", "settings.paired=true"]
    return read_recipe("cyclegan-64", [*budget, *own, *VARIANTS[name]])


def folder_of(name: str, seed: int, work: Path) -> Path:
    return work / f"{name.replace(', ', '-').replace(' ', '-')}-{seed}"


def train(name: str, seed: int, minutes: float, data: Path, work: Path) -> None:
    """Train a variant until its time is up."""
    found = folder_of(name, seed, work)
    if (found / "done").exists():
        return
    torch.set_num_threads(1)
    found.mkdir(parents=True, exist_ok=True)
    recipe = recipe_of(name, seed)
    examples = open_examples(recipe, str(data / "facades"))
    began = time.process_time()

    def report(done: int, steps: int, line: Line | None) -> None:
        spent = time.process_time() - began
        if done % EVERY == 0 or spent > 60 * minutes:
            nets = {n: net.state_dict() for n, net in run.learner.modules.items()}
            kept = {"step": done, "seconds": spent, "nets": nets, "lines": run.lines}
            torch.save(kept, found / f"{done:06d}.pt")
        if spent > 60 * minutes:
            raise Enough

    run = Run(recipe, examples, Folder(str(found)), Place(report=report))
    try:
        run.fit()
    except Enough:
        (found / "done").touch()


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("what", choices=["train", "score"])
    options.add_argument("--work", type=Path, required=True)
    options.add_argument("--data", type=Path, default=common.DATA)
    options.add_argument("--seeds", type=int, default=3)
    options.add_argument("--minutes", type=float, default=10.0)
    options.add_argument("--processes", type=int, default=2)
    given = options.parse_args()
    jobs = [
        (name, seed, given.minutes, given.data, given.work)
        for seed in range(given.seeds)
        for name in VARIANTS
    ]
    with multiprocessing.get_context("spawn").Pool(given.processes, maxtasksperchild=1) as pool:
        pool.starmap(train, jobs, chunksize=1)


if __name__ == "__main__":
    main()
