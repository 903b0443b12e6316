"""The thesis's comparisons of matching at equal budgets: heads on equal features, by seeds.

    python tests/benchmarks/bench_matching.py flickr8k|ucm [--work FOLDER] [--seeds N] [--part PART]

Features come from `imgray extract`: MobileNetV2 and EfficientNet-Lite0 side by side, here reduced
to 512 principal components of pictures that are learnt from; MiniLM; and tf-idf, whose document
frequencies are of all captions. Of `train`, a thousand images (a fifth of
UCM's) are held back as `choose`, by which settings were chosen; `val` is reported. Every variant is
a recipe with changes, trained by the plain loop over examples held in memory, two processes of one
thread. Members of an ensemble share no weight, so those trained at once are also rows alone. What
is in --work is not made again.
"""

from __future__ import annotations

import argparse
import csv
import functools
import hashlib
import json
import multiprocessing
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import common
import numpy as np
import torch

from imgray.artifacts.folder import Folder
from imgray.data.datasets import Dataset
from imgray.data.layout import Layout
from imgray.data.sources import Source
from imgray.engine.examples import lengths, open_examples
from imgray.engine.train import read_recipe
from imgray.matching.matcher import MatchingLearner
from imgray.matching.nets import SIDES
from imgray.retrieval import fusion
from imgray.retrieval.recall import Fuse, matching_metrics, matching_ranks
from imgray.training.examples import Examples
from imgray.training.loop import Loader, Place, Run, add_up, in_threads
from imgray.training.recipe import Recipe
from imgray.training.task import Arrays, task_of, with_dims

PROCESSES = 2
TABLE, REDUCED = "captions.csv", 512
Scores = dict[str, float]
Sums = Mapping[str, torch.Tensor]
Rows = Mapping[str, tuple[tuple[int, ...] | None, str]]
"""What is reported of a network, by name: which of its embeddings are fused, and how."""
FUSIONS: dict[str, Fuse] = {"sum": sum, "average": fusion.average, "adaptive": fusion.adaptive}


@dataclass(frozen=True)
class Variant:
    """A recipe with changes, for columns of texts; `rows`, where it has more than one."""

    recipe: str
    changes: tuple[str, ...] = ()
    texts: str = "minilm"
    rows: Rows | None = None


@dataclass(frozen=True)
class Study:
    """Variants by name, of a data set; changes they share; scores; images held back; labels."""

    data: str
    variants: Mapping[str, Variant]
    shared: tuple[str, ...]
    scores: tuple[str, ...]
    held: int
    label: Callable[[dict[str, str]], str] | None = None


@dataclass(frozen=True)
class Held(Examples):
    """Examples that are all in memory."""

    arrays: tuple[Arrays, Arrays]

    def training(self, step: int, rank: int, world: int) -> Arrays:
        first = step * self.batch_size
        rows = [self._at(n) for n in range(first, first + self.batch_size)]
        return {name: array[rows] for name, array in self.arrays[0].items()}

    def validation(self, number: int, rank: int, world: int) -> Arrays:
        rows = slice(number * self.batch_size, (number + 1) * self.batch_size)
        return {name: array[rows] for name, array in self.arrays[1].items()}


def table_of(study: Study, data: Path, work: Path) -> Path:
    """The captions with the split `fit`, `choose` and `val`, and labels."""
    found = work / TABLE
    if found.exists():
        return found
    with (data / study.data / "captions.csv").open() as file:
        rows = list(csv.DictReader(file))
    images = {row["image"] for row in rows if row["split"] == "train"}
    held = set(sorted(images, key=lambda i: hashlib.sha256(i.encode()).digest())[: study.held])
    for row in rows:
        if row["split"] == "train":
            row["split"] = "choose" if row["image"] in held else "fit"
        if study.label:
            row["label"] = study.label(row)
    with found.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return found


def extract(study: Study, data: Path, work: Path) -> None:
    """Make the features artifacts of images and texts."""
    table, places = table_of(study, data, work), {side: work / side for side in SIDES}
    listed = work / "images.csv"
    with table.open() as file:
        names = sorted({row["image"] for row in csv.DictReader(file)})
    pattern = "{}" if "." in names[0] else "{}.jpg"
    listed.write_text("id,image\n" + "".join(f"{name},{name}\n" for name in names))
    root = str(data / study.data / "images")
    files = ["--images", str(listed), "--root", root, "--pattern", pattern]
    captions = ["--images", str(table), "--columns", "text=caption"]
    flags = {
        "image": [*files, "--extractor", *common.NETS, "--regions", "whole"],
        "text": [*captions, "--extractor", "minilm", "tfidf"],
    }
    for side, place in places.items():
        if not (place / "manifest.json").exists():
            common.run("extract", "--output", str(place), *flags[side])


def _features(work: Path, texts: str) -> dict[str, str]:
    return {
        "image": f"{work / 'image'}#{','.join(common.NETS)}",
        "text": f"{work / 'text'}#{texts}",
    }


def recipe_of(variant: Variant, work: Path, seed: int, part: str) -> Recipe:
    """The recipe of a variant with its changes."""
    own = ["data.train=fit", f"data.validate={part}", "checkpoint_every=1000000", f"seed={seed}"]
    recipe = read_recipe(variant.recipe, [*own, "evaluate_every=1000000", *variant.changes])
    return with_dims(recipe, lengths(_features(work, variant.texts)) | {"image": REDUCED})


@functools.lru_cache(maxsize=2)
def _examples(name: str, texts: str, part: str, work: Path) -> Held:
    """The examples of a recipe, read once."""
    recipe = read_recipe(name, ["data.train=fit", f"data.validate={part}"])
    recipe = with_dims(recipe, lengths(_features(work, texts)))
    layout = Layout({"image": "image", "group": "image"})
    found = open_examples(recipe, Source(str(work / TABLE), layout, _features(work, texts)))
    arrays = _stacked(found, found.train), _stacked(found, found.val)
    reduce = principal(np.unique(arrays[0]["image"], axis=0), REDUCED)
    for one in arrays:
        one["image"] = reduce(one["image"])
    return Held(found.task, found.train, found.val, found.batch_size, found.seed, arrays)


def principal(vectors: np.ndarray, count: int) -> Callable[[np.ndarray], np.ndarray]:
    """The map of vectors to their first principal components."""
    mean = vectors.mean(axis=0)
    axes = np.linalg.eigh(np.cov(vectors, rowvar=False))[1][:, ::-1][:, :count].astype(np.float32)
    return lambda given: (given - mean) @ axes


def _stacked(examples: Examples, part: Dataset) -> Arrays:
    rows = [examples.example(part[number], None) for number in range(len(part))]
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


def run(name: str, variant: Variant, seed: int, part: str, work: Path) -> dict[str, Scores]:
    """Train a variant from a seed and score it, or read what was found before."""
    said = json.dumps([variant.recipe, variant.changes, variant.texts, seed, part])
    result = work / f"results/{hashlib.sha256(said.encode()).hexdigest()[:16]}.json"
    if not result.exists():
        torch.set_num_threads(1)
        recipe = recipe_of(variant, work, seed, part)
        held = _examples(variant.recipe, variant.texts, part, work)
        task = task_of(recipe, held.task.classes)
        held = replace(held, task=task, batch_size=recipe.batch_size, seed=seed)
        began = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            trained = Run(recipe, held, Folder(folder), Place())
            trained.fit()
        minutes = (time.perf_counter() - began) / 60
        found = {
            row: scores | {"minutes": minutes} for row, scores in _scored(name, variant, trained)
        }
        result.parent.mkdir(exist_ok=True)
        result.write_text(json.dumps(found))
    values: dict[str, Scores] = json.loads(result.read_text())
    return values


def _scored(name: str, variant: Variant, trained: Run) -> list[tuple[str, Scores]]:
    examples = trained.examples
    batches = in_threads(Loader(examples.validation, 0, 1), range(examples.validations(0, 1)))
    sums = add_up(trained.learner.evaluate, trained.learner, batches, "cpu", examples.task.rows)
    if variant.rows is None:
        return [(name, examples.task.summarize(sums))]
    assert isinstance(trained.learner, MatchingLearner)
    sizes = trained.learner.net.sizes
    return [(row, _fused(sums, sizes, *how)) for row, how in variant.rows.items()]


def _fused(sums: Sums, sizes: tuple[int, ...], kept: tuple[int, ...] | None, how: str) -> Scores:
    """The scores where some of the embeddings are kept and fused."""
    wanted = range(len(sizes)) if kept is None else kept
    pieces = {side: sums[side].split(sizes, dim=1) for side in SIDES}
    images, texts = ([pieces[side][n].numpy() for n in wanted] for side in SIDES)
    ids = sums["image_id"].numpy(), sums["text_id"].numpy()
    return matching_metrics(matching_ranks(images, texts, *ids, FUSIONS[how]))


def _head(recipe: str, *changes: str, texts: str = "minilm", rows: Rows | None = None) -> Variant:
    return Variant(recipe, changes, texts, rows)


_cca = functools.partial(_head, "cca-flickr8k")
_linear = functools.partial(_head, "linear-flickr8k")
_rrf = functools.partial(_head, "rrf-flickr8k-small")
_cycle = functools.partial(_head, "cyclematch-flickr8k-small")
_mmc = functools.partial(_head, "mmc-ucm-small")

TWO, RANK = "settings.alphas=[1, 0, 2, 0]", "settings.loss=bi-rank"
AROUND = ("settings.first=cca", "settings.around=true", "settings.norm=false", "settings.rate=1e-3")
STEPS: Rows = {
    **{f"RRF, T={n}": ((n,), "sum") for n in range(5)},
    "RRF, ensemble T=1..4": ((1, 2, 3, 4), "sum"),
}


def _fusions(name: str) -> Rows:
    """The three spaces of CycleMatch alone and fused."""
    kinds: Rows = {"texts": ((0,), "sum"), "images": ((1,), "sum"), "latent": ((2,), "sum")}
    kinds = {**kinds, "average": (None, "average"), "adaptive": (None, "adaptive")}
    return {f"{name}, {kind}": how for kind, how in kinds.items()}


STUDIES = {
    "flickr8k": Study(
        "flickr8k",
        {
            "CCA, MiniLM + tf-idf": _cca(texts="minilm,tfidf"),
            "CCA, MiniLM": _cca(),
            "CCA, tf-idf": _cca(texts="tfidf"),
            "ridge, MiniLM": _cca("settings.layout=ridge"),
            "linear": _linear("settings.first=none", "settings.rate=1e-2"),
            "linear from CCA": _linear(),
            "linear from CCA, bi-rank": _linear(RANK),
            "linear from CCA, bi-rank of two terms": _linear(RANK, TWO),
            "linear from CCA, MiniLM + tf-idf": _linear(texts="minilm,tfidf"),
            "RRF without its block": _rrf("settings.steps=null"),
            "RRF": _rrf("settings.steps=[0, 1, 2, 3, 4]", rows=STEPS),
            "RRF, four of T=3": _rrf("settings.steps=[3, 3, 3, 3]"),
            "RRF, T=3, two terms": _rrf(TWO),
            "RRF, T=3, last step only": _rrf("settings.fused=false"),
            "RRF, T=3, plain": _rrf("settings.fused=false", "settings.residual=false"),
            "RRF around CCA": _rrf(*AROUND, "settings.loss=contrast"),
            "RRF around CCA, bi-rank": _rrf(*AROUND),
            "CycleMatch": _cycle("settings.weights=[1, 1, 1]", rows=_fusions("CycleMatch")),
            "without": _cycle(rows=_fusions("without reconstruction")),
        },
        ("epochs=5", "settings.shrink=[1, 0.3]", "settings.dropout_inputs=0"),
        ("rsum", "i2t_recall@1", "t2i_recall@1"),
        held=1000,
    ),
    "ucm": Study(
        "ucm_captions",
        {
            "MMC-Net": _mmc(),
            "matching alone": _mmc("settings.classification=0"),
            "classification alone": _mmc("settings.matching=0"),
        },
        (),
        ("both_accuracy", "image_accuracy", "text_accuracy", "i2t_map", "t2i_map", "rsum"),
        held=336,
        label=lambda row: str((int(row["image"]) - 1) // 100),
    ),
}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("study", choices=STUDIES)
    options.add_argument("--work", type=Path)
    options.add_argument("--data", type=Path, default=common.DATA)
    options.add_argument("--seeds", type=int, default=5)
    options.add_argument("--part", choices=["choose", "val"], default="val")
    given = options.parse_args()
    study, seeds = STUDIES[given.study], range(given.seeds)
    with common.work_folder(given.work) as work:
        extract(study, given.data, work)
        named = study.variants.items()
        shared = {n: replace(v, changes=(*study.shared, *v.changes)) for n, v in named}
        jobs = [(n, v, s, given.part, work) for s in seeds for n, v in shared.items()]
        with multiprocessing.get_context("spawn").Pool(PROCESSES) as pool:
            found = pool.starmap(run, jobs, chunksize=1)
    by_row: dict[str, list[Scores]] = {}
    for rows in found:
        for name, scores in rows.items():
            by_row.setdefault(name, []).append(scores)
    names = (*study.scores, "minutes")
    common.table(
        ["", *names],
        [
            [row, *(common.spread([o[s] for o in some]) for s in names)]
            for row, some in by_row.items()
        ],
    )


if __name__ == "__main__":
    main()
