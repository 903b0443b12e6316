"""The thesis's comparisons of trained models, at equal budgets on this machine.

    python tests/benchmarks/bench_models.py cifar10|camvid|bsds500 [--work FOLDER] [--seeds N]

Every variant is a recipe with changes, trained by the plain loop from several seeds and scored on
the validation part: two processes of one thread each. What is in --work is not trained again.
"""

from __future__ import annotations

import argparse
import functools
import json
import multiprocessing
import operator
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import common
import numpy as np
import torch

from imgray.artifacts.folder import Folder
from imgray.classification.edge_metrics import Counts, count, scores
from imgray.classification.relaxed import canny_maps
from imgray.data.datasets import Record
from imgray.data.pixels import decode_sized
from imgray.data.sources import Source
from imgray.engine.train import open_examples, read_recipe
from imgray.training.checkpoints import Keeper
from imgray.training.examples import Examples
from imgray.training.loop import Loader, Place, Run, States, add_up, in_threads

PROCESSES = 2
CANNY_MULTIPLES = tuple(np.linspace(0.1, 8.0, 80))


@dataclass(frozen=True)
class Variant:
    """A recipe, its data and changes, and the variant whose networks it starts from."""

    recipe: str
    data: str
    changes: tuple[str, ...] = ()
    start: str | None = None


@dataclass(frozen=True)
class Study:
    """Variants by name, in order, the settings they share, and the scores to compare."""

    variants: Mapping[str, Variant]
    shared: tuple[str, ...]
    scores: tuple[str, ...]
    seeds: int


def _cifar(*changes: str) -> Variant:
    return Variant("cfn-cifar10-small", "cifar10", changes)


def _camvid(*changes: str) -> Variant:
    return Variant("fcfn-camvid-small", "camvid", changes)


def _bsds(*changes: str, start: str | None = None) -> Variant:
    return Variant("rds-bsds-small", "bsds500", changes, start)


STUDIES = {
    "cifar10": Study(
        {
            "plain CNN": _cifar("settings.fusion=none"),
            "CFN, locally-connected": _cifar("settings.fusion=local"),
            "CFN, shared weights": _cifar("settings.fusion=shared"),
            "CFN, sum": _cifar("settings.fusion=sum"),
            "CFN, max": _cifar("settings.fusion=max"),
        },
        ("epochs=0.8",),
        ("top1_error", "top5_error"),
        seeds=3,
    ),
    "camvid": Study(
        {
            "FCN, summed": _camvid("settings.fusion=sum"),
            "FCFN, per class": _camvid("settings.fusion=local"),
        },
        ("epochs=null", "steps=120"),
        ("miou", "pixel_accuracy"),
        seeds=2,
    ),
    "bsds500": Study(
        {
            "coarse edges of camvid": Variant(
                "rds-bsds-small",
                "camvid",
                ("data.truth=masks", "settings.void=11", "settings.annotators=1"),
            ),
            "general supervision": _bsds("settings.relaxed=negative"),
            "RDS": _bsds(),
            "relaxed as positives": _bsds("settings.relaxed=positive"),
            "RDS, order reversed": _bsds("settings.order=reversed"),
            "RDS, pretrained": _bsds(start="coarse edges of camvid"),
            "general, pretrained": _bsds(
                "settings.relaxed=negative", start="coarse edges of camvid"
            ),
        },
        ("epochs=null", "steps=80", "settings.crop=192"),
        ("ods", "ois", "ap"),
        seeds=1,
    ),
}


def run(study: Study, name: str, seed: int, data: Path, work: Path) -> dict[str, float]:
    """Train a variant from a seed and score it, or read what was found before."""
    folder = _place(work, name, seed)
    result = folder / "result.json"
    if not result.exists():
        torch.set_num_threads(1)
        began = time.perf_counter()
        variant = study.variants[name]
        examples, trained = _trained(study, variant, seed, data, work, folder)
        spent = time.perf_counter() - began
        found = trained.learner
        batches = in_threads(Loader(examples.validation, 0, 1), range(examples.validations(0, 1)))
        scored = examples.task.summarize(add_up(found.benchmark, found, batches, "cpu"))
        result.write_text(json.dumps({**scored, "minutes": spent / 60}))
    values: dict[str, float] = json.loads(result.read_text())
    return values


def _trained(
    study: Study, variant: Variant, seed: int, data: Path, work: Path, folder: Path
) -> tuple[Examples, Run]:
    recipe = read_recipe(
        variant.recipe,
        [*study.shared, "checkpoint_every=1000000", *variant.changes, f"seed={seed}"],
    )
    examples = open_examples(recipe, str(data / variant.data))
    start = _states(_place(work, variant.start, seed)) if variant.start else None
    trained = Run(recipe, examples, Folder(str(folder)), Place(), start)
    trained.fit()
    return examples, trained


def _states(folder: Path) -> States:
    newest = Keeper(Folder(str(folder))).newest()
    assert newest is not None
    states: States = newest[1]["modules"]
    return states


def _place(work: Path, name: str, seed: int) -> Path:
    return work / f"{name.replace(' ', '-').replace(',', '')}-{seed}"


def canny(record: Record) -> Counts:
    """A pixel's value is the share of thresholds of Canny's detector that leave it."""
    image = np.asarray(decode_sized(record["image"])[0])
    share = canny_maps(image, CANNY_MULTIPLES, dilation=0).mean(axis=0)
    return count(share, record["boundaries"])


def annotator(record: Record) -> Counts:
    """The first annotator's boundaries against those of the others: what people reach."""
    first, *others = record["boundaries"]
    return count(first.astype(float), np.array(others))


def perfect(record: Record) -> Counts:
    """The first annotator's boundaries against themselves."""
    return count(record["boundaries"][0].astype(float), record["boundaries"][:1])


def empty(record: Record) -> Counts:
    """No edge at all."""
    return count(np.zeros(record["boundaries"].shape[1:]), record["boundaries"])


KNOWN = {
    "Canny alone": canny,
    "an annotator against the others": annotator,
    "an annotator against itself": perfect,
    "an empty map": empty,
}


def known(data: Path) -> list[list[str]]:
    """ODS, OIS and AP of maps that no network made; a map of one threshold has AP 0."""
    val = Source(str(data / "bsds500")).part("val", truth="boundaries")
    rows = []
    with multiprocessing.get_context("spawn").Pool(PROCESSES) as pool:
        for name, counted in KNOWN.items():
            parts = pool.imap(counted, (val[index] for index in range(len(val))))
            found = scores(functools.reduce(operator.add, parts))
            rows.append([name, *(f"{v:.4f}" for v in (found.ods, found.ois, found.ap)), "0"])
    return rows


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("study", choices=STUDIES)
    options.add_argument("--work", type=Path)
    options.add_argument("--data", type=Path, default=common.DATA)
    options.add_argument("--seeds", type=int)
    given = options.parse_args()
    study = STUDIES[given.study]
    seeds = given.seeds or study.seeds
    rows = []
    with common.work_folder(given.work) as work:
        with multiprocessing.get_context("spawn").Pool(PROCESSES) as pool:
            first = [n for n, v in study.variants.items() if not v.start]
            for names in (first, [n for n in study.variants if n not in first]):
                jobs = [(study, name, s, given.data, work) for s in range(seeds) for name in names]
                pool.starmap(run, jobs, chunksize=1)
        for name in study.variants:
            found = [run(study, name, seed, given.data, work) for seed in range(seeds)]
            minutes = np.mean([one["minutes"] for one in found])
            cells = [
                common.spread([one[s] for one in found]) for s in study.scores if s in found[0]
            ]
            rows.append([name, *cells, f"{minutes:.1f}"])
        if given.study == "bsds500":
            rows += known(given.data)
    common.table(["", *study.scores, "minutes"], rows)


if __name__ == "__main__":
    main()
