"""Recall@k both ways of a joint embedding with five captions per image: seconds and peak memory.

    python tests/benchmarks/bench_recall.py [--images N]

A process for each size: a hundredth, a quarter and all of N images. Embeddings (512 numbers) are
random, as time does not depend on them. Cost: every pair is scored twice, so seconds grow with the
product of images and captions, 100 times for ten times the images; memory grows with their sum,
as scores are held for some queries at a time.
"""

import multiprocessing
import resource
import time

import common
import numpy as np

from imgray.retrieval.recall import matching_metrics, matching_ranks

DIM, CAPTIONS = 512, 5


def measure(count: int) -> list[object]:
    """Seconds, the peak of the process and what of it are embeddings, in GB."""
    random = np.random.default_rng(0)
    images = random.normal(size=(count, DIM)).astype(np.float32).repeat(CAPTIONS, axis=0)
    texts = images + 5 * random.normal(size=images.shape).astype(np.float32)
    ids = np.arange(count).repeat(CAPTIONS)
    before, wall = time.process_time(), time.perf_counter()
    found = matching_metrics(matching_ranks([images], [texts], ids, np.arange(len(texts))))
    spent = time.perf_counter() - wall, time.process_time() - before
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    held = (images.nbytes + texts.nbytes) / 2**30
    return [f"{count:,} x {len(texts):,}", *spent, peak, held, found["rsum"]]


def main() -> None:
    options = common.parser(__doc__, 20_000).parse_args()
    sizes = [options.images // part for part in (100, 4, 1)]
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        rows = [pool.apply(measure, [size]) for size in sizes]
    head = ["images x captions", "s", "s of CPU", "peak, GB", "embeddings, GB", "rsum"]
    common.table(head, rows)


if __name__ == "__main__":
    main()
