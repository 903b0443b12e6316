"""The joint part of an index: recall against exact search, and time, for images and for texts.

The images' joint embeddings are real; for more images than there are, copies with noise. Searched
in this process with one thread, as an opened index is searched, from embeddings on: the encoder of
texts is not counted. Texts that are asked may be those that the model learnt from: how near they
are to their images is not the matter here, but that they are not distributed as images are.

Cost at ten times the images: lists grow with the square root of the images and visited lists with
that of the lists, so postings touched grow as N to the power of 3/4, 5.6 times; exact search ten.
"""

import argparse
import time
from pathlib import Path
from typing import Any

import faiss
import numpy as np

from imgray.artifacts.folder import Folder
from imgray.artifacts.manifest import read_manifest, scratch
from imgray.data.fields import Text
from imgray.data.layout import Layout
from imgray.data.tables import open_table
from imgray.engine.index import _default_codewords
from imgray.engine.joint import CHUNK, Embedding, as_vectors, joint_settings
from imgray.engine.rows import Source
from imgray.engine.settings import IndexConfig
from imgray.retrieval.codebook import Floats, fit_unprojected, unit
from imgray.retrieval.deepindex import DeepIndex, Images, Shard, ShardBuilder
from imgray.training.joint import load_joint

TOP, QUERIES, SINGLE, BATCH = 10, 500, 300, 250


def embeddings(arguments: argparse.Namespace) -> tuple[Floats, Floats]:
    """Of all images, and of some texts."""
    folder = Folder(arguments.features)
    joint = load_joint(arguments.joint)
    source = Source(folder, read_manifest(folder, "features"), list(joint.columns), [])
    images = Embedding(arguments.joint, "").rows(source, np.arange(source.rows))
    uri, _, column = arguments.texts.partition("#")
    table = open_table(uri, {"text": Text()}, Layout({"text": column}))
    rows = np.sort(np.random.default_rng(0).permutation(len(table))[:QUERIES])
    return images, joint.texts([row["text"] for row in table.rows(rows.tolist())])


def grown(images: Floats, count: int, noise: float) -> Floats:
    """The first of them, or all with copies that have a cosine of about 1 / sqrt(1 + noise^2)."""
    random = np.random.default_rng(0)
    found = [images]
    while sum(map(len, found)) < count:
        away = random.normal(size=images.shape).astype(np.float32) / images.shape[1] ** 0.5
        found.append(unit(images + noise * away))
    joined = np.concatenate(found)[:count]
    return joined[random.permutation(count)]


def built(images: Floats, folder: Path) -> DeepIndex:
    """An index with the settings that `imgray index` takes."""
    config = IndexConfig(features="", output="", feature=["x"])
    words = _default_codewords(len(images), 1, 1)
    chosen = joint_settings(config, words, images.shape[1])
    sample = np.random.default_rng(1).permutation(len(images))[: config.sample]
    codebooks = fit_unprojected(images[sample], chosen)
    builder = ShardBuilder(codebooks)
    for start in range(0, len(images), CHUNK):
        part = images[start : start + CHUNK]
        builder.add([str(start + n) for n in range(len(part))], as_vectors(part))
    builder.write(folder / "faiss")
    builder.write_images(folder / "parquet")
    lists, counts = builder.document_frequency()
    frequency = np.zeros(chosen.lists, np.int64)
    frequency[lists] = counts
    shard = Shard(folder / "faiss", Images(folder / "parquet"), 0)
    return DeepIndex(codebooks, frequency, len(images), [shard])


def recall(index: DeepIndex, images: Floats, queries: Floats, own: Any) -> float:
    """Recall@10 against exact search; `own` are the queries' rows, left out, -1 for texts."""
    total = 0
    answers = index.search(as_vectors(queries), TOP + 1)
    for query, row, hits in zip(queries, own, answers, strict=True):
        scores = images @ query
        scores[row if row >= 0 else []] = -2
        nearest = set(np.argpartition(-scores, TOP)[:TOP].tolist())
        total += len(nearest & set([p for p in hits.positions.tolist() if p != row][:TOP]))
    return total / TOP / len(queries)


def timed(index: DeepIndex, texts: Floats) -> tuple[float, float, float]:
    """Milliseconds of one text, median and 99 of 100, and texts/s in batches."""
    single = []
    for place in range(SINGLE):
        vectors = as_vectors(texts[place % len(texts)][None])
        started = time.perf_counter()
        index.search(vectors, TOP)
        single.append(1000 * (time.perf_counter() - started))
    started = time.perf_counter()
    for place in range(0, len(texts), BATCH):
        index.search(as_vectors(texts[place : place + BATCH]), TOP)
    rate = len(texts) / (time.perf_counter() - started)
    return float(np.median(single)), float(np.percentile(single, 99)), rate


def exact(images: Floats, texts: Floats) -> float:
    """Milliseconds of one text by exact search in float32, median."""
    found = []
    for text in texts[:50]:
        started = time.perf_counter()
        scores = images @ text
        np.argpartition(-scores, TOP)
        found.append(1000 * (time.perf_counter() - started))
    return float(np.median(found))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--features", required=True)
    parser.add_argument("--joint", required=True)
    parser.add_argument("--texts", required=True, metavar="TABLE#COLUMN")
    parser.add_argument("--images", type=int, nargs="+", default=[50_000])
    parser.add_argument("--noise", type=float, default=0.5)
    arguments = parser.parse_args()
    faiss.omp_set_num_threads(1)
    images, texts = embeddings(arguments)
    print(
        "| images x dim | lists, visited | recall@10 images | texts | ms/text p50 | p99 | texts/s, "
        "batched | exact, ms/text |\n|---|---|---|---|---|---|---|---|"
    )
    for count in (len(images), *arguments.images):
        every = grown(images, count, arguments.noise)
        own = np.random.default_rng(2).permutation(count)[:QUERIES]
        with scratch() as folder:
            index = built(every, folder)
            near = recall(index, every, every[own], own)
            far = recall(index, every, texts, np.full(len(texts), -1))
            middle, slow, rate = timed(index, texts)
        lists, [visited] = index.settings.lists, index.settings.probes
        print(
            f"| {count:,} x {images.shape[1]} | {lists}, {visited} | {near:.3f} | {far:.3f} | "
            f"{middle:.2f} | {slow:.2f} | {rate:,.0f} | {exact(every, texts):.2f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
