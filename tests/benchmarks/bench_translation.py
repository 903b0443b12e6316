"""Chapter 7's comparison on facades at 64 pixels: CycleGAN, Long and Nest at equal budgets.

    python tests/benchmarks/bench_translation.py train|score --work FOLDER [--seeds N]

`train` gives every variant --minutes of processor time on one core, at a constant rate, and keeps
the networks every 250 steps, so that variants can be read at equal steps and at equal seconds. It
goes on where it was stopped, after the last variant that was done. Pairs are never trained on but
by the variant that is supervised, the upper bound.

`score` first trains a segmenter on the true photographs, then scores what was kept on the pairs of
`val`: into photographs as that segmenter sees them, its own sight of true ones being the ceiling;
into label pictures by the nearest colour; KID in the end alone. A picture of each variant lies in
the work folder.
"""

from __future__ import annotations

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
from imgray.artifacts.manifest import Manifest, publish
from imgray.data import pixels
from imgray.data.unpaired import DOMAINS
from imgray.engine.examples import open_examples
from imgray.engine.train import read_recipe
from imgray.synthesis.segmenter import Palette
from imgray.synthesis.translator import Routes
from imgray.training.examples import Examples
from imgray.training.loop import Run, add_up
from imgray.training.models import load_nets, save_model
from imgray.training.recipe import Recipe
from imgray.training.task import Arrays

SIDE, TOGETHER = 64, 20
PALETTE = {
    "background": "#0000de", "facade": "#0030ff", "window": "#0080ff", "door": "#00cfff",
    "cornice": "#20ffe0", "sill": "#72ff8e", "balcony": "#c0ff3f", "blind": "#fff200",
    "deco": "#ff9e00", "molding": "#ff5000", "pillar": "#ff0000", "shop": "#ae0000",
}  # fmt: skip
LONG, NEST = ("settings.stages=2",), ("settings.stages=2", "settings.inner=true")
ALTERNATING = "settings.reading=alternating"
VARIANTS: dict[str, tuple[str, ...]] = {
    "CycleGAN": (),
    "Long": LONG,
    "Nest": NEST,
    "CycleGAN, as large as Long": ("settings.width=23",),
    "Long, alternating": (*LONG, ALTERNATING),
    "Nest, alternating": (*NEST, ALTERNATING),
    "supervised": ("settings.supervised=100", "settings.cycle=0"),
}


def recipe_of(name: str, seed: int) -> Recipe:
    """The recipe of a variant."""
    own = [f"seed={seed}", "settings.paired=true"]
    return read_recipe("cyclegan-64", [*budget.CHANGES, *own, *VARIANTS[name]])


def train(name: str, seed: int, minutes: float, data: Path, work: Path) -> None:
    """Train a variant until its time is up."""
    folder = budget.folder_of(name, seed, work)
    if not budget.done(folder):
        recipe = recipe_of(name, seed)
        budget.run(recipe, open_examples(recipe, str(data / "facades")), minutes, folder)


def segmenter(data: Path, work: Path) -> Path:
    """A model that knows the classes of label pictures in true photographs, made once."""
    model = work / "segmenter"
    if (model / "manifest.json").exists():
        return model
    for part in ("train", "val"):
        _masks(data / "facades" / part, work / "masks" / part)
    changes = [f"settings.classes={list(PALETTE)}", "settings.void=null", f"settings.crop={SIDE}"]
    recipe = read_recipe("fcfn-camvid-small", [*changes, "epochs=12", "evaluate_every=4"])
    run = Run(recipe, open_examples(recipe, str(work / "masks")), Folder(str(work / "fcfn")))
    run.fit()
    states = {name: net.state_dict() for name, net in run.nets.items()}
    folder, classes = Folder(str(model)), run.examples.task.classes
    files, about = save_model(folder, recipe, classes, states, run.lines)
    publish(folder, Manifest(kind="model", config={}, about=about, files=files))
    return model


def _masks(pairs: Path, folder: Path) -> None:
    """Photographs and class maps at the size of the comparison."""
    palette = Palette(PALETTE)
    for kind in ("images", "labels"):
        (folder / kind).mkdir(parents=True, exist_ok=True)
    for photo in sorted((pairs / "photo").iterdir()):
        label = pairs / "label" / f"{photo.stem}.png"
        seen = (pixels.resize(pixels.decode(one.read_bytes()), SIDE) for one in (photo, label))
        picture, coloured = seen
        classes = palette.classes(torch.tensor(coloured[None]))[0].byte().numpy()
        Image.fromarray(picture).save(folder / f"images/{photo.stem}.png")
        Image.fromarray(classes).save(folder / f"labels/{photo.stem}.png")


def score(name: str, seed: int, data: Path, work: Path) -> list[dict[str, Any]]:
    """Scores of all that was kept of a variant, or what was found before."""
    torch.set_num_threads(1)
    kept = budget.snapshots(budget.folder_of(name, seed, work))
    recipe = recipe_of(name, seed)
    own = {"maps": "label", "palette": PALETTE, "segmenter": str(work / "segmenter")}
    return [
        _scored(recipe, own | ({} if path == kept[-1] else {"kid": None}), data, path)
        for path in kept
    ]


def _scored(recipe: Recipe, settings: dict[str, Any], data: Path, kept: Path) -> dict[str, Any]:
    result = kept.with_suffix(".json")
    if not result.exists():
        recipe = recipe.model_copy(update={"settings": recipe.settings | settings})
        examples = open_examples(recipe, str(data / "facades"))
        state = torch.load(kept, weights_only=False)
        learner = examples.task.learner()
        load_nets(learner.modules, state["nets"], str(kept))
        batches = _stacked(examples)
        sums = add_up(learner.benchmark, learner, batches, "cpu", examples.task.rows)
        scores = examples.task.summarize(sums)
        if "kid" not in settings:
            _sheet(learner, batches[0], kept.with_suffix(".png"))
        size = sum(p.numel() for net in learner.made.values() for p in net.parameters())
        values = {"step": state["step"], "seconds": state["seconds"], "parameters": size}
        result.write_text(json.dumps(values | scores))
    read: dict[str, Any] = json.loads(result.read_text())
    return read


def _stacked(examples: Examples) -> list[Arrays]:
    rows = [examples.example(examples.val[n], None) for n in range(len(examples.val))]
    pieces = (rows[n : n + TOGETHER] for n in range(0, len(rows), TOGETHER))
    return [{key: np.stack([one[key] for one in some]) for key in some[0]} for some in pieces]


@torch.inference_mode()
def _sheet(learner: Any, batch: Arrays, path: Path) -> None:
    """Eight pairs: true label, photograph from it, true photograph, label from that."""
    batch = {name: array[:8] for name, array in batch.items()}
    routes = Routes(
        learner.made, {n: (torch.tensor(batch[n]).permute(0, 3, 1, 2) / 127.5 - 1) for n in DOMAINS}
    )
    shown = []
    for domain in DOMAINS:
        made = routes[learner.wiring.translations[domain]]
        shown += [batch[domain], ((made + 1) * 127.5).byte().permute(0, 2, 3, 1).numpy()]
    rows = [np.concatenate(list(pictures), axis=1) for pictures in shown]
    whole = Image.fromarray(np.concatenate(rows))
    whole.resize((whole.width * 2, whole.height * 2)).save(path)


def report(found: dict[str, list[list[dict[str, Any]]]]) -> None:
    """Tables at the end of the time and, of all runs alike, at the most steps that all have."""
    whole = max(int(o["step"]) for runs in found.values() for one in runs for o in one)
    steps = [
        step
        for step in range(budget.EVERY, whole, budget.EVERY)
        if all(any(o["step"] == step for o in one) for runs in found.values() for one in runs)
    ]
    columns = [
        f"{score}_{domain}"
        for domain in ("photo", "label")
        for score in ("class_accuracy", "miou", "pixel_accuracy", "ssim", "kid_mobilenet_v2")
    ]
    for title, at in (("at equal seconds", None), *((f"at step {n}", n) for n in steps[-1:])):
        print(f"\n{title}")
        rows = []
        for name, runs in found.items():
            some = [next(o for o in reversed(one) if at in (None, o["step"])) for one in runs]
            values = [[o[c] for o in some if c in o] for c in ("step", "parameters", *columns)]
            rows.append([name, *(common.spread(v) if v else "" for v in values)])
        common.table(["", "step", "parameters", *columns], rows)
    last = next(iter(found.values()))[0][-1]
    print({name: round(value, 4) for name, value in last.items() if name.startswith("ceiling")})


def main() -> None:
    given = budget.options(__doc__, ["train", "score"])
    jobs = [
        (name, seed, given.minutes, given.data, given.work)
        for seed in range(given.seeds)
        for name in VARIANTS
    ]
    if given.what == "score":
        segmenter(given.data, given.work)
    with multiprocessing.get_context("spawn").Pool(given.processes, maxtasksperchild=1) as pool:
        if given.what == "train":
            pool.starmap(train, jobs, chunksize=1)
            return
        done = [j for j in jobs if budget.done(budget.folder_of(j[0], j[1], given.work))]
        scores = pool.starmap(score, [(n, s, d, w) for n, s, _, d, w in done], chunksize=1)
    found: dict[str, list[list[dict[str, Any]]]] = {}
    for (name, *_), one in zip(done, scores, strict=True):
        found.setdefault(name, []).append(one)
    report(found)


if __name__ == "__main__":
    main()
