"""Runs of equal budgets: so many minutes of processor time on one core, with what was kept of each.

The rate is constant, so that runs can be read at equal steps and at equal seconds.
"""

import argparse
import time
from pathlib import Path
from typing import Any

import common
import torch

from imgray.artifacts.folder import Folder
from imgray.training.examples import Examples
from imgray.training.loop import Line, Place, Run
from imgray.training.recipe import Recipe

EVERY = 250
CHANGES = (
    *("epochs=null", "steps=1000000", "schedule.kind=constant", "checkpoint_every=1000000"),
    *("evaluate_every=1000000", "log_every=50"),
)
"""To a recipe."""


def options(what: str | None, parts: list[str]) -> argparse.Namespace:
    """The flags of a comparison that is done in parts."""
    found = argparse.ArgumentParser(description=what)
    found.add_argument("what", choices=parts)
    found.add_argument("--work", type=Path, required=True)
    found.add_argument("--data", type=Path, default=common.DATA)
    found.add_argument("--seeds", type=int, default=3)
    found.add_argument("--minutes", type=float, default=10.0)
    found.add_argument("--processes", type=int, default=2)
    return found.parse_args()


class Enough(Exception):
    """The time of a run is up."""


def folder_of(name: str, seed: int, work: Path) -> Path:
    """Where a variant's run is kept."""
    return work / f"{name.replace(', ', '-').replace(' ', '-')}-{seed}"


def done(folder: Path) -> bool:
    """Whether a run has had its time."""
    return (folder / "done").exists()


def snapshots(folder: Path) -> list[Path]:
    """What was kept of a run, every `EVERY` steps and in the end."""
    return sorted(folder.glob("*.pt"))


def run(recipe: Recipe, examples: Examples, minutes: float, folder: Path) -> None:
    """Train until the time is up, from the beginning."""
    torch.set_num_threads(1)
    folder.mkdir(parents=True, exist_ok=True)
    for old in (*snapshots(folder), *folder.glob("*.json")):
        old.unlink()
    began = time.process_time()

    def report(step: int, steps: int, line: Line | None) -> None:
        spent = time.process_time() - began
        if step % EVERY == 0 or spent > 60 * minutes:
            nets = {n: net.state_dict() for n, net in training.learner.modules.items()}
            kept: dict[str, Any] = {"step": step, "seconds": spent, "nets": nets}
            torch.save(kept, folder / f"{step:06d}.pt")
        if spent > 60 * minutes:
            raise Enough

    training = Run(recipe, examples, Folder(str(folder)), Place(report=report))
    try:
        training.fit()
    except Enough:
        (folder / "done").touch()
