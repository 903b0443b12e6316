"""mAP of exact search, DeepIndex and multi-DeepIndex on collections with a known truth.

    python tests/benchmarks/bench_retrieval.py --features URI --truth CSV [--cropped URI]

The features artifact has mid and high layers of two networks over the regions of a pyramid;
`--cropped` the same features of true crops. Every image is a query and left out of its ranking;
relevant images that an index does not return count as missed. One process, one search at a time.
"""

from __future__ import annotations

import argparse
import csv
import time
from collections.abc import Iterable, Iterator

import numpy as np

from imgray.artifacts.folder import Folder
from imgray.artifacts.manifest import read_manifest, scratch
from imgray.engine.rows import Source
from imgray.features.columns import Vectors, columns_of
from imgray.retrieval import metrics
from imgray.retrieval.codebook import CodebookSettings, fit, unit
from imgray.retrieval.deepindex import DeepIndex, Images, Shard, ShardBuilder

LEVELS = (1, 4, 9)

Result = tuple[dict[str, list[str]], float, float, float]
"""Rankings of all images, bytes per image, share of postings touched, ms per query."""
Line = tuple[str, list[Result]]
"""A label, and the results of one or several seeds."""


def read(uri: str) -> tuple[list[str], Vectors]:
    """All features of an artifact."""
    folder = Folder(uri)
    manifest = read_manifest(folder, "features")
    source = Source(folder, manifest, list(columns_of(manifest)), [])
    return source.pick(np.arange(source.rows))


def settings(
    features: tuple[str, ...], assigned: bool, signature: bool, seed: int
) -> CodebookSettings:
    """The defaults of `jobs/index.py`, with multiple assignment and signature on or off."""
    probes = (512, 32, 4) if len(features) > 1 else (16, 4, 1)
    return CodebookSettings(
        features=features,
        codewords=(64, 64) if len(features) > 1 else (256,),
        levels=LEVELS,
        probes=probes if assigned else (1, 1, 1),
        dim=48,
        code="SQ8",
        bandwidth=0.25,
        signature=features if signature else (),
        signature_dim=48,
        signature_power=2.0,
        seed=seed,
    )


def search(ids: list[str], vectors: Vectors, chosen: CodebookSettings) -> Result:
    """Search an index of these features with every image."""
    codebooks = fit(vectors, chosen)
    builder = ShardBuilder(codebooks)
    builder.add(ids, vectors)
    lists, counts = builder.document_frequency()
    frequency = np.zeros(chosen.lists, np.int64)
    frequency[lists] = counts
    with scratch() as folder:
        files = folder / "shard.faiss", folder / "shard.parquet"
        builder.write(files[0])
        builder.write_images(files[1])
        size = sum(file.stat().st_size for file in files) / len(ids)
        index = DeepIndex(codebooks, frequency, len(ids), [Shard(files[0], Images(files[1]), 0)])
        started = time.perf_counter()
        hits = [
            index.search({n: vectors[n][row : row + 1] for n in vectors}, len(ids))[0]
            for row in range(len(ids))
        ]
        elapsed = 1000 * (time.perf_counter() - started) / len(ids)
        touched = postings_touched(index, vectors) / (len(ids) * sum(LEVELS))
    return {id: hit.ids for id, hit in zip(ids, hits, strict=True)}, size, touched, elapsed


def postings_touched(index: DeepIndex, vectors: Vectors) -> float:
    """Mean number of different postings that a query touches."""
    codebooks = index.codebooks
    lists = index.shards[0].index.invlists
    sizes = np.array([lists.list_size(number) for number in range(codebooks.settings.lists)])
    shares = [1 / len(codebooks.settings.features)] * len(codebooks.settings.features)
    visits = codebooks.probes_of(codebooks.encode(vectors), shares)
    images = len(next(iter(vectors.values())))
    visited = [np.concatenate([v[row].ravel() for _, v in visits]) for row in range(images)]
    return float(np.mean([sizes[np.unique(row)].sum() for row in visited]))


def exact(ids: list[str], vectors: Vectors, names: tuple[str, ...]) -> Result:
    """The same by exact cosine of the whole images."""
    matrix = unit(np.concatenate([vectors[name][:, 0] for name in names], axis=1))
    started = time.perf_counter()
    orders = [np.argsort(-(matrix @ query), kind="stable") for query in matrix]
    elapsed = 1000 * (time.perf_counter() - started) / len(ids)
    rankings = {id: [ids[i] for i in order] for id, order in zip(ids, orders, strict=True)}
    return rankings, 2.0 * matrix.shape[1], 1.0, elapsed


def rows(names: list[str], seeds: int) -> Iterator[tuple[str, tuple[str, ...], list]]:
    """Label, features and settings (one per seed) of every line of the table."""
    a, b = (net for net in dict.fromkeys(name.partition(".")[0] for name in names))
    pairs = {
        f"2-D intra, {a} mid x high": (f"{a}.mid", f"{a}.high"),
        f"2-D intra, {b} mid x high": (f"{b}.mid", f"{b}.high"),
        f"2-D inter, {a} mid x {b} high": (f"{a}.mid", f"{b}.high"),
        f"2-D inter, {b} mid x {a} high": (f"{b}.mid", f"{a}.high"),
        "2-D inter, high x high": (f"{a}.high", f"{b}.high"),
    }
    singles = {f"1-D, {name}": (name,) for name in names}
    for label, features in {**singles, **pairs}.items():
        for assigned in (True, False):
            for signature in (True, False):
                flags = (
                    f"MA {'on' if assigned else 'off'}, signature {'on' if signature else 'off'}"
                )
                yield (
                    f"{label}, {flags}",
                    features,
                    [settings(features, assigned, signature, seed) for seed in range(seeds)],
                )


def lines(ids: list[str], vectors: Vectors, seeds: int, full: bool) -> Iterator[Line]:
    """Exact search and all indexes; unless `full`, only those with both refinements."""
    names = list(vectors)
    high = [name for name in names if name.endswith(".high")]
    for chosen in [(name,) for name in names] + [tuple(high)]:
        yield f"exact cosine, {' + '.join(chosen)}", [exact(ids, vectors, chosen)]
    for label, features, variants in rows(names, seeds):
        if full or "MA on, signature on" in label:
            used = {name: vectors[name] for name in features}
            yield label, [search(ids, used, variant) for variant in variants]


def report(title: str, ids: list[str], groups: dict[str, str], lines: Iterable[Line]) -> None:
    """Print one Markdown table."""
    print(f"\n### {title}: {len(ids)} images\n")
    print("| | mAP | precision@10 | bytes/image | postings touched | ms/query |")
    print("|---|---|---|---|---|---|")
    for label, results in lines:
        scores = [metrics.evaluate(rankings, groups, set(ids)) for rankings, *_ in results]
        mean = {k: np.mean([s[k] for s in scores]) for k in ("map", "precision@10")}
        size, touched, elapsed = np.mean([result[1:] for result in results], axis=0)
        print(
            f"| {label} | {mean['map']:.4f} | {mean['precision@10']:.4f} | {size:.0f} | "
            f"{touched:.3f} | {elapsed:.2f} |",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--features", required=True)
    parser.add_argument("--truth", required=True)
    parser.add_argument("--cropped")
    parser.add_argument("--seeds", type=int, default=1)
    arguments = parser.parse_args()
    with open(arguments.truth) as file:
        groups = {row["id"]: row["group"] for row in csv.DictReader(file)}
    ids, vectors = read(arguments.features)
    report("pooled regions", ids, groups, lines(ids, vectors, arguments.seeds, True))
    if arguments.cropped:
        ids, vectors = read(arguments.cropped)
        report("cropped regions", ids, groups, lines(ids, vectors, arguments.seeds, False))


if __name__ == "__main__":
    main()
