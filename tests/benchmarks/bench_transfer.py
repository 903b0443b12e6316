"""mAP of retrieval with a trained CFN, alone and beside a network that ImageNet trained.

    python tests/benchmarks/bench_transfer.py --model URI --data FOLDER [--work FOLDER]

`--model` is what `jobs/train.py` published; `--data` a folder of labelled photographs, the label a
file's folder or, where there are none, the hundred that its number lies in (corel1k). All regions
are cut from the picture, as the fused feature has no extent. Work grows linearly with the images,
but for the queries of exact search, which grow with their square.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import common
from bench_retrieval import Line, exact, read, report, search, settings

from imgray.features.columns import Vectors

CFN, OTHER = "cfn.high", "mobilenet_v2.high"


def group_of(id: str) -> str:
    """The label of a photograph."""
    path = PurePosixPath(id)
    return path.parent.name or str(int(path.stem) // 100)


def lines(ids: list[str], vectors: Vectors) -> Iterator[Line]:
    """Exact search by each network, indexes of each, and an index of both."""
    for name in (CFN, OTHER):
        yield f"exact cosine, {name}", [exact(ids, vectors, (name,))]
    for names in ((CFN,), (OTHER,), (CFN, OTHER)):
        used = {name: vectors[name] for name in names}
        chosen = settings(names, assigned=True, signature=True, seed=0)
        yield f"{len(names)}-D, {' x '.join(names)}", [search(ids, used, chosen)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True, help="URI of the model artifact of a CFN")
    parser.add_argument("--data", type=Path, required=True, help="folder of photographs")
    parser.add_argument("--work", type=Path, help="folder to keep the features, for another run")
    parser.add_argument("--size", help="input side of both networks (default: each its own)")
    arguments = parser.parse_args()
    with common.work_folder(arguments.work) as work:
        features = str(work / "features")
        flags = ["--images", str(arguments.data.resolve()), "--output", features]
        flags += ["--extractor", CFN, OTHER, "--weights", f"cfn={arguments.model}"]
        flags += ["--size", arguments.size] if arguments.size else []
        common.run("extract", *flags, "--regions", "pyramid", "--crop-regions")
        ids, vectors = read(features)
    report(arguments.data.name, ids, {id: group_of(id) for id in ids}, lines(ids, vectors))


if __name__ == "__main__":
    main()
