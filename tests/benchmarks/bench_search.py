"""Search on real features: imgray, the same FAISS index by hand, hnswlib, and exact search.

CIFAR-10 photographs at 64 pixels; queries are photographs of the test set, which no index holds.

1. One vector per image (MobileNetV2, PCA to 128). Every contender is given the full features of the
   queries, reduces them with the same PCA in numpy, and gives the ten nearest; one thread each, in
   alternation, the median of five rounds. `faiss` is the very index object that imgray searches,
   with its words put into its coarse quantizer and the same nprobe. recall@10 counts against exact
   search on the reduced vectors, and against exact cosine on the full ones.
2. Fourteen regions per image, two features (a mid-level and a high-level one of two nets):
   ms per query and the share of postings touched, at a tenth of the collection and all of it.

Cost at ten times the images: an IVF with sqrt-many words and fixed probes touches sqrt(10) times
the postings, exact search ten times.
"""

import io
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import common
import faiss
import hnswlib
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from imgray.artifacts.folder import Folder
from imgray.artifacts.manifest import NAME, read_file, read_manifest
from imgray.engine.shards import open_shards
from imgray.features.columns import Vectors, columns_of, from_table
from imgray.retrieval.codebook import unit
from imgray.retrieval.deepindex import DeepIndex

TOP, ROUNDS, SINGLE, QUERIES = 10, 5, 200, 1000
HIGH = "mobilenet_v2.high"
PAIR = ("mobilenet_v2.mid", "tf_efficientnet_lite0.high")
Contender = Callable[[np.ndarray], Any]


def extract(images: Path, output: Path, regions: str, names: tuple[str, ...]) -> Path:
    if not (output / NAME).exists():
        common.run(
            "extract", "--images", images, "--output", output, "--extractor", *names,
            "--size", "64", "--regions", regions, "--batch-size", "32", "--workers", "2",
        )  # fmt: skip
    return output


def index(features: Path, output: Path, names: tuple[str, ...]) -> DeepIndex:
    if not (output / NAME).exists():
        common.run("index", "--features", features, "--output", output, "--feature", *names)
    folder = Folder(str(output))
    return open_shards(folder, read_manifest(folder, "index"))


def vectors(features: Path, names: tuple[str, ...]) -> tuple[list[str], Vectors]:
    folder = Folder(str(features))
    manifest = read_manifest(folder, "features")
    info = columns_of(manifest)
    parts = [
        pq.read_table(io.BytesIO(read_file(folder, part)), columns=["id", *names])
        for part in manifest.named("part-", ".parquet")
    ]
    rows = pa.concat_tables(parts)
    return rows["id"].to_pylist(), {name: from_table(rows, name, info[name]) for name in names}


def one_vector(base: Path, queries: Path, work: Path) -> None:
    ours = index(base, work / "index-one", (HIGH,))
    ids, stored = vectors(base, (HIGH,))
    _, asked = vectors(queries, (HIGH,))
    project = ours.codebooks.projections[HIGH]
    place = {id: row for row, id in enumerate(ids)}
    reduced, full = project(stored[HIGH][:, 0]), unit(stored[HIGH][:, 0])
    wanted = asked[HIGH][:, 0]
    near = np.argsort(-(project(wanted) @ reduced.T), axis=1)[:, :TOP]
    truth = np.argsort(-(unit(wanted) @ full.T), axis=1)[:, :TOP]

    flat = faiss.IndexFlatIP(reduced.shape[1])
    flat.add(reduced)
    graph = hnswlib.Index("ip", reduced.shape[1])
    graph.init_index(len(reduced), M=16, ef_construction=200, random_seed=0)
    graph.add_items(reduced, num_threads=2)
    graph.set_ef(64)
    graph.set_num_threads(1)
    by_hand = ours.shards[0].index
    by_hand.quantizer.add(ours.codebooks.words[HIGH])
    by_hand.nprobe = ours.settings.probes[0]
    # Else FAISS starts 32 threads per call to read ahead in memory-mapped lists: 1 ms.
    faiss.downcast_InvertedLists(by_hand.invlists).prefetch_nthread = 0

    def imgray(q: np.ndarray) -> Any:
        return [[place[id] for id in h.ids] for h in ours.search({HIGH: q[:, None]}, TOP)]

    contenders: dict[str, Contender] = {
        "imgray": imgray,
        "faiss, same index": lambda q: by_hand.search(project(q), TOP)[1],
        "hnswlib, M 16, ef 64": lambda q: graph.knn_query(project(q), TOP)[0],
        "exact, faiss IndexFlatIP": lambda q: flat.search(project(q), TOP)[1],
    }
    times = measure(contenders, wanted)
    rows = []
    for name, search in contenders.items():
        found = search(wanted)
        batch, single = (np.median(times[name][kind]) for kind in ("batch", "single"))
        rows.append([name, batch, single, recall(found, near), recall(found, truth)])
    settings = f"{ours.settings.codewords[0]} words, {ours.settings.probes[0]} probes"
    print(f"one vector, {len(ids):,} images, {reduced.shape[1]} dimensions, {settings}")
    head = [
        "",
        "queries/s, batch",
        "queries/s, one by one",
        "recall@10, reduced",
        "recall@10, full",
    ]
    common.table(head, rows)


def measure(
    contenders: dict[str, Contender], wanted: np.ndarray
) -> dict[str, dict[str, list[float]]]:
    """Queries/s of every contender in alternation: the whole batch, and one query at a time."""
    times: dict[str, dict[str, list[float]]] = {n: {"batch": [], "single": []} for n in contenders}
    for turn in range(ROUNDS):
        for name, search in sorted(contenders.items(), reverse=bool(turn % 2)):
            began = time.perf_counter()
            search(wanted)
            times[name]["batch"].append(len(wanted) / (time.perf_counter() - began))
            began = time.perf_counter()
            for row in range(min(SINGLE, len(wanted))):
                search(wanted[row : row + 1])
            spent = time.perf_counter() - began
            times[name]["single"].append(min(SINGLE, len(wanted)) / spent)
    return times


def recall(found: Any, truth: np.ndarray) -> float:
    pairs = zip(found, truth, strict=True)
    return float(np.mean([len(set(map(int, a)) & set(map(int, b))) / TOP for a, b in pairs]))


def regions(sizes: list[tuple[int, DeepIndex]], queries: Path) -> None:
    _, asked = vectors(queries, PAIR)
    rows = []
    for images, found in sizes:
        times, touched = [], []
        for row in range(min(SINGLE, len(asked[PAIR[0]]))):
            began = time.perf_counter()
            hits = found.search({name: value[row : row + 1] for name, value in asked.items()}, TOP)
            times.append(1000 * (time.perf_counter() - began))
            touched.append(hits[0].touched / (images * found.settings.regions))
        words = " x ".join(map(str, found.settings.codewords))
        middle, slow = np.percentile(times, [50, 95])
        rows.append([f"{images:,} images, {words} words", middle, slow, 100 * np.mean(touched)])
    print(f"14 regions, {' x '.join(PAIR)}")
    common.table(["", "ms per query, p50", "p95", "postings scored, % of all"], rows)


def main() -> None:
    options = common.parser(__doc__, 50_000)
    options.add_argument(
        "--pyramid", type=int, help="images with 14 regions (default: as --images)"
    )
    options = options.parse_args()
    many, most = options.images, options.pyramid or options.images
    faiss.omp_set_num_threads(1)
    with common.work_folder(options.work) as work:
        asked = common.cifar(options.data, "test", min(QUERIES, many), work / "queries")
        base = common.cifar(options.data, "train", many, work / f"base-{many}")
        features = extract(base, work / f"one-{many}", "global", (HIGH,))
        queries = extract(asked, work / "queries-one", "global", (HIGH,))
        one_vector(features, queries, work)
        queries = extract(asked, work / "queries-regions", "pyramid", PAIR)
        sizes = []
        for count in (most // 10, most):
            images = common.cifar(options.data, "train", count, work / f"base-{count}")
            features = extract(images, work / f"regions-{count}", "pyramid", PAIR)
            sizes.append((count, index(features, work / f"index-regions-{count}", PAIR)))
        regions(sizes, queries)


if __name__ == "__main__":
    main()
