"""The demo: from a folder of images to an index, a table of scores and contact sheets.

Without `--images` the collection is made from the photographs inside the wheels of scikit-image
and scikit-learn, each in several views, so that the right answers are known.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel

from imgray.artifacts.folder import Folder
from imgray.artifacts.manifest import read_manifest
from imgray.data.collections import Files
from imgray.data.samples import write_views
from imgray.engine import sheets
from imgray.engine.cluster import cluster
from imgray.engine.demo_models import MODELS, TRANSLATOR, train_models
from imgray.engine.evaluate_index import Truth
from imgray.engine.extract import extract
from imgray.engine.index import build_index
from imgray.engine.progress import say
from imgray.engine.report import read_report
from imgray.engine.rows import Source
from imgray.engine.search import SearchEngine
from imgray.engine.settings import DemoConfig, ExtractConfig, IndexConfig
from imgray.features.columns import Vectors
from imgray.retrieval import metrics
from imgray.retrieval.backend import threads_for
from imgray.retrieval.codebook import unit
from imgray.retrieval.deepindex import Hits

FEATURES = ("mobilenet_v2.high", "tf_efficientnet_lite0.high")
INDEXES = {
    "DeepIndex, MobileNetV2": FEATURES[:1],
    "DeepIndex, EfficientNet-Lite0": FEATURES[1:],
    "multi-DeepIndex, both": FEATURES,
}
SHARDS = 4
SHEET_ROWS = 8
EXAMPLES = 200


class Line(BaseModel):
    """One row of the table."""

    name: str
    scores: dict[str, float]
    bytes_per_image: float
    ms_per_query: float


class DemoResult(BaseModel):
    """The table of the demo, and where its pictures are."""

    images: int
    table: list[Line]
    contact_sheets: list[str]
    index: str
    models: dict[str, str] = {}

    def __str__(self) -> str:
        names = list(self.table[0].scores)
        head = f"{'':32}" + "".join(f"{n:>12}" for n in [*names, "bytes/image", "ms/query"])
        rows = [
            f"{line.name:32}"
            + "".join(f"{line.scores[name]:12.3f}" for name in names)
            + f"{line.bytes_per_image:12.0f}{line.ms_per_query:12.2f}"
            for line in self.table
        ]
        pictures = [f"contact sheet: {path}" for path in self.contact_sheets]
        pictures += [f"model {name}: {path}" for name, path in self.models.items()]
        search = f"imgray search --index {self.index} --query YOUR.jpg"
        return "\n".join([head, *rows, "", *pictures, f"search it yourself: {search}"])


def demo(config: DemoConfig) -> DemoResult:
    """Run the whole way; what an earlier run has finished is used again."""
    name = Path(config.images).resolve().name if config.images else "photographs"
    root = Path(config.output) / name
    images, groups = _collection(config, root)
    features = str(root / "features")
    with cluster():
        extract(
            ExtractConfig(
                images=images,
                output=features,
                extractor=[name.removesuffix(".high") for name in FEATURES],
                regions="pyramid",
                shard_size=64,
                max_rejected=1.0,
                overwrite=config.overwrite,
            )
        )
        for number, names in enumerate(INDEXES.values()):
            build_index(
                IndexConfig(
                    features=features,
                    output=str(root / f"index-{number}"),
                    feature=list(names),
                    shards=SHARDS,
                    overwrite=config.overwrite,
                )
            )
        wanted = {**(MODELS if config.models else {}), **(TRANSLATOR if config.translator else {})}
        trained = train_models(wanted, Path(config.output), config.overwrite) if wanted else {}
    return _report(root, Folder(images), groups).model_copy(update={"models": trained})


def _collection(config: DemoConfig, root: Path) -> tuple[str, dict[str, str]]:
    if config.images:
        return config.images, {}
    folder = write_views(root / "collection")
    return str(folder / "images"), Truth.read(str(folder / "truth.csv")).groups


def _report(root: Path, images: Folder, groups: Mapping[str, str]) -> DemoResult:
    ids, vectors = _queries(root / "features")
    table, answers = [], {}
    for number, name in enumerate(INDEXES):
        uri = str(root / f"index-{number}")
        say(f"demo: searching {name}")
        engine = SearchEngine(uri)
        started = time.perf_counter()
        hits = [engine.index.search(_row(vectors, n), len(ids))[0] for n in range(len(ids))]
        elapsed = 1000 * (time.perf_counter() - started) / len(ids)
        report = read_report(engine.folder, engine.manifest)
        answers = dict(zip(ids, hits, strict=True))
        scores = _scores({id: h.ids for id, h in answers.items()}, groups) or {
            "recall@10": report.recall["recall@10"]
        }
        table.append(
            Line(
                name=name,
                scores=scores,
                bytes_per_image=report.bytes_per_image,
                ms_per_query=elapsed,
            )
        )
    if groups:
        table += [_exact(ids, vectors, [name], groups) for name in FEATURES]
        table.append(_exact(ids, vectors, list(FEATURES), groups))
    pictures = _draw(root, images, answers, groups)
    return DemoResult(images=len(ids), table=table, contact_sheets=pictures, index=uri)


def _queries(features: Path) -> tuple[list[str], Vectors]:
    """The images to search with: all with a known truth, else the first few."""
    folder = Folder(str(features))
    source = Source(folder, read_manifest(folder, "features"), list(FEATURES), [])
    blocks = list(source.read(0, min(source.rows, 10 * EXAMPLES)))
    ids = [id for block, _ in blocks for id in block]
    return ids, {n: np.concatenate([v[n] for _, v in blocks]) for n in FEATURES}


def _row(vectors: Vectors, row: int) -> Vectors:
    return {name: value[row : row + 1] for name, value in vectors.items()}


def _scores(rankings: Mapping[str, list[str]], groups: Mapping[str, str]) -> dict[str, float]:
    if not groups:
        return {}
    scores = metrics.evaluate(rankings, groups, set(rankings))
    return {"mAP": scores["map"], "recall@1": scores["recall@1"]}


def _exact(ids: list[str], vectors: Vectors, names: list[str], groups: Mapping[str, str]) -> Line:
    """Exact cosine over the whole images' vectors, as float16 the size that they are stored in."""
    matrix = unit(np.concatenate([vectors[name][:, 0] for name in names], axis=1))
    started = time.perf_counter()
    with threads_for(1):
        orders: list[NDArray[Any]] = [np.argsort(-(matrix @ q), kind="stable") for q in matrix]
    elapsed = 1000 * (time.perf_counter() - started) / len(ids)
    rankings = {id: [ids[i] for i in order] for id, order in zip(ids, orders, strict=True)}
    name = "both" if len(names) > 1 else list(INDEXES)[FEATURES.index(names[0])].split(", ")[1]
    return Line(
        name=f"exact cosine, {name}",
        scores=_scores(rankings, groups),
        bytes_per_image=2 * matrix.shape[1],
        ms_per_query=elapsed,
    )


def _draw(
    root: Path, images: Folder, answers: Mapping[str, Hits], groups: Mapping[str, str]
) -> list[str]:
    """A sheet of queries spread over the collection and, with a truth, one of the hardest."""
    ids = sorted(answers)
    chosen = {"examples": ids[:: max(1, len(ids) // SHEET_ROWS)][:SHEET_ROWS]}
    if groups:
        quality = {
            id: metrics.evaluate({id: answers[id].ids}, groups, set(ids))["map"] for id in ids
        }
        chosen["hardest"] = sorted(ids, key=lambda id: (quality[id], id))[:SHEET_ROWS]
    paths = []
    for title, queries in chosen.items():
        path = root / f"{title}.png"
        hits = [_without(answers[id], id) for id in queries]
        pictures = [sheets.Asked(id, images.read(id)) for id in queries]
        collection, title = Files(images, "image"), f"multi-DeepIndex: {title}"
        sheets.draw_results(path, collection, pictures, hits, groups, title)
        paths.append(str(path))
    return paths


def _without(hits: Hits, id: str) -> Hits:
    """An answer without the query itself."""
    keep = [row for row, found in enumerate(hits.ids) if found != id]
    ids = [hits.ids[row] for row in keep]
    return Hits(hits.positions[keep], hits.scores[keep], ids, hits.touched)
