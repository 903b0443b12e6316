"""Chapter 8's ablations on street photographs at 96 x 64 pixels, at equal budgets, by seeds.

    python tests/benchmarks/bench_swap.py parser|train|score --work FOLDER [--seeds N]

`parser` trains the FCFN that finds people in pictures, in some twenty minutes. `train` gives every
variant --minutes of processor time on one core, at a constant rate, and keeps the networks every
250 steps. `score` reads the variants at equal seconds and at equal steps on people held out, by the
parser too, and draws a sheet of each. All go on where they were stopped, after the last variant
that was done.
"""

from __future__ import annotations

import csv
import json
import multiprocessing
from pathlib import Path
from typing import Any

import budget
import common
import numpy as np
import torch
from PIL import Image

from imgray.artifacts.folder import Folder
from imgray.data.layout import Layout
from imgray.data.sources import Source
from imgray.engine.examples import open_examples
from imgray.engine.train import read_recipe
from imgray.training.examples import Examples
from imgray.training.loop import Loader, Run, add_up, in_threads
from imgray.training.models import load_model
from imgray.training.recipe import Recipe
from imgray.training.sheet import sample_sheet

VARIANTS: dict[str, tuple[str, ...]] = {
    "SwapGAN": (),
    "one stage": ("settings.stages=1",),
    "one stage, as large": ("settings.stages=1", "settings.width=23"),
    "no mask loss": ("settings.mask=0",),
}
PICTURES, PARSING = "photos/{}.jpg", "parsing/{}.png"


def recipe_of(name: str, seed: int, *more: str) -> Recipe:
    """The recipe of a variant."""
    return read_recipe(
        "swapgan-ccp-small", [*budget.CHANGES, f"seed={seed}", *VARIANTS[name], *more]
    )


def people(data: Path, work: Path) -> Path:
    """A table of the people of `ccp/pose.csv`, but those whose parsing is all background."""
    found = work / "people.csv"
    if not found.exists():
        work.mkdir(parents=True, exist_ok=True)
        with open(data / "ccp/pose.csv") as file:
            head, *rows = csv.reader(file)
        kept = [row for row in rows if np.asarray(Image.open(_file(data, PARSING, row))).any()]
        with open(found, "w", newline="") as file:
            table = csv.writer(file)
            table.writerow(["id", "photo", "parsing", *head[1:]])
            for id, *points in kept:
                table.writerow([id, PICTURES.format(id), PARSING.format(id), *points])
    return found


def _file(data: Path, pattern: str, row: list[str]) -> Path:
    return data / "ccp" / pattern.format(row[0])


def examples_of(recipe: Recipe, data: Path, work: Path) -> Examples:
    """The people, whose landmarks have columns of their own."""
    layout = Layout(root=str(data / "ccp"))
    return open_examples(recipe, Source(str(people(data, work)), layout))


def parser(data: Path, work: Path) -> Path:
    """The model that finds people, made once."""
    output = work / "parser"
    table = ["--data", str(people(data, work)), "--root", str(data / "ccp")]
    columns = ["--columns", "image=photo", "mask=parsing"]
    job = ["--recipe", "fcfn-ccp-small", *table, *columns, "--workers", "1"]
    common.run("train", *job, "--output", str(output))
    return output


def train(name: str, seed: int, minutes: float, data: Path, work: Path) -> None:
    """Train a variant until its time is up."""
    folder = budget.folder_of(name, seed, work)
    if not budget.done(folder):
        recipe = recipe_of(name, seed)
        budget.run(recipe, examples_of(recipe, data, work), minutes, folder)


def steps_of(folder: Path) -> list[int]:
    return [int(path.stem) for path in budget.snapshots(folder)]


def score(name: str, seed: int, step: int, data: Path, work: Path) -> dict[str, float]:
    """The metrics of a variant after so many steps; a sheet of its pictures is drawn."""
    folder = budget.folder_of(name, seed, work)
    kept = folder / f"{step:06d}.json"
    if kept.exists():
        found: dict[str, float] = json.loads(kept.read_text())
        return found
    torch.set_num_threads(1)
    recipe = recipe_of(name, seed, f"settings.parser={work / 'parser'}")
    run = Run(recipe, examples_of(recipe, data, work), Folder(str(folder)))
    task = run.examples.task
    run.learner = task.learner()
    snapshot = torch.load(folder / f"{step:06d}.pt", weights_only=True)
    for net, state in snapshot["nets"].items():
        run.learner.modules[net].load_state_dict(state)
    examples, load = run.examples, Loader(run.examples.validation, 0, 1)
    batches = in_threads(load, range(examples.validations(0, 1)))
    found = task.summarize(add_up(run.learner.benchmark, run.learner, batches, "cpu", task.rows))
    found["seconds"] = snapshot["seconds"]
    (folder / f"{step:06d}.png").write_bytes(sample_sheet(task, examples.val, run._predict))
    kept.write_text(json.dumps(found, indent=1))
    return found


def table(rows: dict[str, list[dict[str, float]]]) -> None:
    """Means and standard deviations over the seeds, of each variant."""
    names = list(dict.fromkeys(name for runs in rows.values() for run in runs for name in run))
    cells = {
        variant: [[run[name] for run in runs if name in run] for name in names]
        for variant, runs in rows.items()
    }
    common.table(
        ["variant", *names],
        [
            [variant, *(common.spread(v) if v else "" for v in some)]
            for variant, some in cells.items()
        ],
    )


def main() -> None:
    given = budget.options(__doc__, ["parser", "train", "score"])
    data, work = given.data.resolve(), given.work.resolve()
    people(data, work)
    runs = [(name, seed) for seed in range(given.seeds) for name in VARIANTS]
    if given.what == "parser":
        print(json.dumps(_metrics(parser(data, work)), indent=1))
        return
    with multiprocessing.get_context("spawn").Pool(given.processes, maxtasksperchild=1) as pool:
        if given.what == "train":
            jobs: list[Any] = [(*run, given.minutes, data, work) for run in runs]
            pool.starmap(train, jobs, chunksize=1)
            return
        runs = [run for run in runs if budget.done(budget.folder_of(*run, work))]
        last = {run: steps_of(budget.folder_of(*run, work))[-1] for run in runs}
        equal = max(budget.EVERY, min(last.values()) // budget.EVERY * budget.EVERY)
        for title, steps in (
            ("equal seconds", last),
            (f"{equal} steps", dict.fromkeys(runs, equal)),
        ):
            found = pool.starmap(score, [(*run, steps[run], data, work) for run in runs], 1)
            rows = {
                name: [one for run, one in zip(runs, found, strict=True) if run[0] == name]
                for name in dict.fromkeys(name for name, _ in runs)
            }
            print(f"\n{title}")
            table(rows)


def _metrics(model: Path) -> dict[str, float]:
    """What a model said of the people held out as it was made."""
    load_model(str(model))
    manifest = json.loads((model / "manifest.json").read_text())
    return {n: v for n, v in manifest["about"]["metrics"].items() if not n.startswith("iou/")}


if __name__ == "__main__":
    main()
