"""How `fd99d3d/` was made: artifacts of commit fd99d3d, which every later version must read.

Run once, from a clean checkout of that commit, whose imports it uses:

    PYTHONPATH=$PWD OMP_NUM_THREADS=1 python .../tests/artifacts/make.py .../tests/artifacts/fd99d3d

It works in /tmp/imgray-fixtures, because artifacts hold the absolute path of their images, and
copies the result. All other URIs are as typed, relative to that folder: a job that is run again
from inside a copy of the folder finds its artifact.

The unfinished artifacts are those of jobs that were stopped before they published, less what had
not been done at an earlier moment: each is as a kill at that moment leaves it. Made again on the
same machine all is the same but `index/report.json`, which holds seconds, and with it the digest
of the index.
"""

# ruff: noqa: I001 (imports of another commit)

from __future__ import annotations

import contextlib
import io
import json
import os
import platform
import shutil
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ |= {
    "OMP_NUM_THREADS": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
}
os.environ.pop("RAY_ADDRESS", None)

import numpy as np
import pyarrow.parquet as pq
import ray
import torch
import yaml
from PIL import Image, ImageDraw

import imgray.engine.extract as extracting
import imgray.engine.index as indexing
import imgray.engine.train as training
from imgray.checkpoints import Keeper
from imgray.engine.extract import ExtractConfig, extract
from imgray.engine.index import IndexConfig, build_index
from imgray.engine.predict import PredictConfig, predict
from imgray.engine.search import SearchEngine
from imgray.engine.train import TrainConfig, train
from imgray.features import columns_of, from_table
from imgray.loop import CURVES, CURVES_PNG, Run, as_lines
from imgray.manifest import Manifest, read_file, read_manifest, sha256
from imgray.models import load_model
from imgray.storage import Folder

COMMIT = "fd99d3d"
PLACE = Path("/tmp/imgray-fixtures")
CLASSES = ("disc", "stripe")
QUERIES = ("discs/03.jpg", "stripes/04.png")
LIBRARIES = ("faiss-cpu", "matplotlib", "numpy", "pillow", "pyarrow", "safetensors", "torch")

EXTRACT = {
    "images": "images", "extractor": ["cfn.high", "cfn.mid"],
    "weights": ["cfn=model-classification"], "regions": "pyramid", "crop_regions": True,
    "shard_size": 7, "batch_size": 4, "workers": 1, "max_rejected": 1.0,
}  # fmt: skip
INDEX = {
    "features": "features", "feature": ["cfn.high", "cfn.mid"], "shards": 2, "codewords": [7, 5],
    "probes": [20, 6, 2], "dim": 6, "signature_dim": 5, "sample": 150, "queries": 2,
}  # fmt: skip
PREDICT = {
    "model": "model-classification", "images": "images", "shard_size": 7, "batch_size": 4,
    "workers": 1, "max_rejected": 1.0,
}  # fmt: skip
PIXELS = {"trunk": "vgg16", "weights": "none", "width": 0.025, "crop": 48}
RECIPES: dict[str, dict[str, Any]] = {
    "classification": {
        "task": "imgray.classification.images:Classification",
        "settings": {"layout": "cfn7-norm", "width": 0.04, "rate": 0.05, "pad": 2, "mirror": True},
        "data": {"form": "folders"}, "batch_size": 6, "steps": 40, "checkpoint_every": 20,
        "log_every": 10, "evaluate_every": 100.0, "schedule": {"kind": "cosine"},
    },
    "segmentation": {
        "task": "imgray.classification.segmentation:Segmentation",
        "settings": {**PIXELS, "rate": 0.05, "classes": ["ground", "shape"], "void": 7},
        "data": {"form": "masks"}, "batch_size": 4, "steps": 60, "log_every": 10,
        "evaluate_every": 100.0, "schedule": {"kind": "cosine"},
    },
    "edges": {
        "task": "imgray.classification.edges:EdgeDetection",
        "settings": {**PIXELS, "rate": 0.1},
        "data": {"form": "edges"}, "batch_size": 4, "steps": 60, "log_every": 10,
        "evaluate_every": 100.0, "schedule": {"kind": "cosine"},
    },
}  # fmt: skip


def main(target: Path) -> None:
    torch.set_num_threads(1)
    shutil.rmtree(PLACE, ignore_errors=True)
    PLACE.mkdir()
    os.chdir(PLACE)
    draw_images()
    draw_data()
    with own_training():
        for name in RECIPES:
            make_model(name)
    options: dict[str, Any] = {"include_dashboard": False, "object_store_memory": 100 * 2**20}
    ray.init(address="local", num_cpus=4, log_to_driver=False, logging_level="ERROR", **options)
    try:
        make_features()
        make_index()
        predict(PredictConfig(output="predictions", **PREDICT))
    finally:
        ray.shutdown()
    Path("expected.json").write_text(json.dumps(expected(), indent=1) + "\n")
    for name in ("data-segmentation", "data-edges"):
        shutil.rmtree(name)
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(PLACE, target)
    print("made", target, "with", extracting.__file__)


# What is drawn.


def drawn(kind: str, number: int, side: int) -> tuple[Image.Image, np.ndarray]:
    """A disc or a stripe on a gradient, and where it is, bool (side, side)."""
    chance = np.random.default_rng((CLASSES.index(kind), number, side))
    across, down = np.meshgrid(np.linspace(0, 1, side), np.linspace(0, 1, side))
    start, end = chance.integers(0, 120, 3), chance.integers(60, 200, 3)
    share = (across if number % 2 else down)[..., None]
    picture = Image.fromarray((start + (end - start) * share).astype(np.uint8))
    colour = tuple(int(value) for value in chance.integers(120, 256, 3))
    shape = Image.new("1", (side, side))
    x, y, wide = [*chance.uniform(0.3, 0.7, 2).tolist(), chance.uniform(0.15, 0.3)]
    if kind == "disc":
        box = [(x - wide) * side, (y - wide) * side, (x + wide) * side, (y + wide) * side]
        ImageDraw.Draw(shape).ellipse(box, fill=1)
    else:
        ends = [(0, y * side), (side, x * side)]
        ImageDraw.Draw(shape).line(ends, fill=1, width=max(3, int(wide * side / 2)))
    picture.paste(Image.new("RGB", (side, side), colour), mask=shape)
    return picture, np.array(shape)


def save(picture: Image.Image, path: str, **options: Any) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    picture.save(path, **options)


def draw_images() -> None:
    """Twenty pictures, so that an index of blocks of 16 has two shards, and one that is none."""
    for kind in CLASSES:
        for number in range(10):
            suffix = "png" if number % 4 == 0 else "jpg"
            options = {} if suffix == "png" else {"quality": 88}
            save(drawn(kind, number, 48)[0], f"images/{kind}s/{number:02}.{suffix}", **options)
    Path("images/discs/broken.jpg").write_text("a text is no image\n")


def draw_data() -> None:
    for part, first, count in (("train", 100, 12), ("val", 200, 4)):
        for place in range(count):
            kind, number = CLASSES[place % 2], first + place
            save(drawn(kind, number, 32)[0], f"data/{part}/{kind}/{number}.png")
            picture, where = drawn(kind, number, 48)
            mask = where.astype(np.uint8)
            mask[:2] = 7
            save(picture, f"data-segmentation/{part}/images/{number}.png")
            save(Image.fromarray(mask), f"data-segmentation/{part}/labels/{number}.png")
            save(picture, f"data-edges/images/{part}/{number}.png")
            border = np.zeros_like(where)
            border[:, 1:] |= where[:, 1:] != where[:, :-1]
            border[1:] |= where[1:] != where[:-1]
            maps = np.stack([border] * 3)
            truth = Path(f"data-edges/boundaries/{part}/{number}.npz")
            truth.parent.mkdir(parents=True, exist_ok=True)
            np.savez(truth, boundaries=np.packbits(maps, axis=-1), shape=maps.shape)


# What the jobs make.


class Stopped(BaseException):
    """Stands for a kill before the manifest is written."""


def stop(*_: object) -> Manifest:
    raise Stopped


@contextlib.contextmanager
def patched(module: Any, **changes: Any) -> Iterator[None]:
    kept = {name: getattr(module, name) for name in changes}
    for name, value in changes.items():
        setattr(module, name, value)
    try:
        yield
    finally:
        for name, value in kept.items():
            setattr(module, name, value)


def stopped(module: Any, job: Callable[[], Any]) -> None:
    with patched(module, publish=stop), contextlib.suppress(Stopped):
        job()


@contextlib.contextmanager
def own_training() -> Iterator[None]:
    """Train in this process, which does what one worker of Ray does, in less time."""

    def fit(config: TrainConfig, recipe: Any, kept: Folder, output: Folder) -> None:
        Run(recipe, training.open_examples(recipe, config.data), kept).fit()

    with patched(training, _fit=fit, cluster=contextlib.nullcontext):
        yield


def make_model(name: str) -> None:
    recipe, data = f"recipe-{name}.yaml", "data" if name == "classification" else f"data-{name}"
    Path(recipe).write_text(yaml.safe_dump(RECIPES[name], sort_keys=False))

    def config(output: str) -> TrainConfig:
        return TrainConfig(recipe=recipe, data=data, output=output)

    train(config(f"model-{name}"))
    if name != "classification":
        return
    stopped(training, lambda: train(config("model-unfinished")))
    for path in Path("model-unfinished").iterdir():
        if path.name != "_work":
            path.unlink()
    kept = Path("model-unfinished/_work/checkpoints")
    last = max(kept.glob("step-*.safetensors"))
    last.unlink()
    found = Keeper(Folder(str(kept))).newest()
    assert found is not None
    (kept / CURVES).write_bytes(as_lines(found[1]["lines"]))
    (kept / CURVES_PNG).unlink()  # drawn at evaluations, here at the end alone


def make_features() -> None:
    extract(ExtractConfig(output="features", **EXTRACT))
    output = "features-unfinished"
    stopped(extracting, lambda: extract(ExtractConfig(output=output, **EXTRACT)))
    for name in ("_work/receipts/00002.json", "part-00002.parquet"):
        Path(output, name).unlink()


def make_index() -> None:
    build_index(IndexConfig(output="index", **INDEX))
    output = Path("index-unfinished")
    stopped(indexing, lambda: build_index(IndexConfig(output=str(output), **INDEX)))
    for path in [*output.rglob("*shard-00001.*"), output / "frequency.safetensors"]:
        path.unlink()
    (output / "report.json").unlink()
    shutil.rmtree(output / "extractors")


# What is expected of them.


def expected() -> dict[str, Any]:
    """What this version answers. Scores and vectors are rounded."""
    kinds = {name: name.partition("-")[0] for name in ARTIFACTS}
    manifests = {name: read_manifest(Folder(name), kind) for name, kind in kinds.items()}
    return {
        "commit": COMMIT,
        "jobs": {"extract": EXTRACT, "index": INDEX, "predict": PREDICT},
        "made_with": {
            "machine": platform.machine(),
            "cpu": torch.backends.cpu.get_cpu_capability(),
            **{name: version(name) for name in LIBRARIES},
        },
        "manifests": {name: found.digest for name, found in manifests.items()},
        "fingerprints": {
            name: found.about["fingerprint"]
            for name, found in manifests.items()
            if found.kind == "model"
        },
        "files": {
            name: {entry.name: entry.sha256 for entry in found.files}
            for name, found in manifests.items()
        },
        "counts": {name: found.counts for name, found in manifests.items()},
        "listed": pq.read_table("features/listing.parquet")["id"].to_pylist(),
        "rejected": pq.read_table("features/rejected/part-00001.parquet").to_pylist(),
        "features": features(manifests["features"]),
        "search": search(),
        "predictions": {row["id"]: rounded(row) for row in rows(manifests["predictions"])},
        "pictures": {name: picture(f"model-{name}") for name in ("segmentation", "edges")},
    }


ARTIFACTS = (
    "features", "index", "predictions", "model-classification", "model-segmentation", "model-edges",
)  # fmt: skip


def tables(manifest: Manifest) -> Iterator[Any]:
    folder = Folder(manifest.kind)
    for entry in manifest.named("part-"):
        yield pq.read_table(io.BytesIO(read_file(folder, entry)))


def rows(manifest: Manifest) -> list[dict[str, Any]]:
    return [row for table in tables(manifest) for row in table.to_pylist()]


def features(manifest: Manifest) -> dict[str, Any]:
    """Columns, ids, and the first vector of the queries' first region."""
    columns = columns_of(manifest)
    ids, found = [], {name: [] for name in columns}  # type: ignore[var-annotated]
    for table in tables(manifest):
        ids += table["id"].to_pylist()
        for name, info in columns.items():
            found[name] += list(from_table(table, name, info))
    vectors = {
        id: {name: np.round(found[name][ids.index(id)][0], 4).tolist() for name in columns}
        for id in QUERIES
    }
    described = {name: info.model_dump() for name, info in columns.items()}
    return {"columns": described, "ids": ids, "vectors": vectors}


def search() -> dict[str, Any]:
    images = {id: Path("images", id).read_bytes() for id in QUERIES}
    answers = SearchEngine("index").search_images(images, 5)
    return {
        id: [[name, round(float(s), 6)] for name, s in zip(hits.ids, hits.scores, strict=True)]
        for id, hits in zip(images, answers, strict=True)
    }


def picture(uri: str) -> dict[str, Any]:
    """What a model paints for the first query."""
    model = load_model(uri)
    data = Path("images", QUERIES[0]).read_bytes()
    [found] = model.predict([model.task.prepare(data)], "cpu")
    assert found.picture is not None
    assert found.picture.min() < found.picture.max()
    return {
        "image": QUERIES[0],
        "row": rounded(found.row),
        "shape": list(found.picture.shape),
        "mean": round(float(found.picture.mean()), 4),
        "sha256": sha256(found.picture.tobytes()),
    }


def rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: rounded(one) for key, one in value.items()}
    if isinstance(value, list):
        return [rounded(one) for one in value]
    return round(value, 6) if isinstance(value, float) else value


if __name__ == "__main__":
    main(Path(sys.argv[1]).absolute())
