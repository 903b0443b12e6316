"""An index with a joint part, and what it is made of, for the tests of all that it does.

Jobs run in this process, and a model is read that knows what texts mean (`knowing`).
"""

import csv
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import inprocess
import knowing
import numpy as np
import pytest
from conftest import TinyNet
from numpy.typing import NDArray

import imgray
import imgray.engine.index as engine
import imgray.training.joint
from imgray.artifacts.folder import Folder
from imgray.artifacts.manifest import Manifest, read_manifest
from imgray.engine.extract import extract
from imgray.engine.index import build_index
from imgray.engine.rows import Source
from imgray.engine.search import SearchEngine
from imgray.engine.settings import (
    ExtractConfig,
    IndexConfig,
)
from imgray.features.columns import Vectors, columns_of
from imgray.retrieval.deepindex import Hits

SHARDS = (1, 3)
FIXED = {"report.json", "manifest.json"}


@contextmanager
def _knowing_jobs() -> Iterator[None]:
    with inprocess.jobs(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(imgray.training.joint, "load_joint", knowing.load)
        yield


@pytest.fixture(scope="module")
def knowing_jobs() -> Iterator[None]:
    """Jobs run in this process, and models know what texts mean."""
    with _knowing_jobs():
        yield


@dataclass(frozen=True)
class Made:
    """Photographs, their features, and a model that knows which of them a text means."""

    photos: Path
    features: str
    model: str
    net: str
    ids: list[str]
    vectors: Vectors

    def texts(self, *numbers: int) -> list[str]:
        return [f"{number} is what {self.ids[number]} shows" for number in numbers]

    def config(self, output: Path | str, **changes: Any) -> IndexConfig:
        values: dict[str, Any] = {
            "features": self.features, "output": str(output), "feature": [f"{self.net}.mid"],
            "codewords": [6], "probes": [4, 2, 1], "queries": 7, "joint": self.model,
            "joint_codewords": 5, "joint_probes": 4,
        }  # fmt: skip
        return IndexConfig(**values | changes)


@pytest.fixture(scope="session")
def made(photos: Path, tiny_net: TinyNet, tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("made")
    features, model = str(folder / "features"), str(folder / "model")
    config = ExtractConfig(
        images=str(photos), output=features, size=tiny_net.size, regions="pyramid", shard_size=24,
        extractor=[f"{tiny_net.name}.{layer}" for layer in ("mid", "high")],
        weights=[tiny_net.weights],
    )  # fmt: skip
    with _knowing_jobs():
        extract(config)
    manifest = read_manifest(Folder(features), "features")
    columns = columns_of(manifest)
    source = Source(Folder(features), manifest, list(columns), [])
    ids, vectors = source.pick(np.arange(source.rows))
    knowing.write(model, {f"{tiny_net.name}.high": columns[f"{tiny_net.name}.high"]}, vectors)
    return Made(photos, features, model, tiny_net.name, ids, vectors)


@pytest.fixture(scope="session")
def indexes(made: Made, tmp_path_factory: pytest.TempPathFactory) -> dict[int, str]:
    """The same in one shard and in three."""
    found = {n: str(tmp_path_factory.mktemp("index") / f"{n} shards") for n in SHARDS}
    with _knowing_jobs():
        for shards, output in found.items():
            assert build_index(made.config(output, shards=shards)).shards == shards
    return found


@pytest.fixture(scope="session")
def plain(made: Made, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The same without a joint part."""
    output = str(tmp_path_factory.mktemp("plain") / "index")
    without = {"joint": None, "joint_codewords": None, "joint_probes": None}
    with _knowing_jobs():
        build_index(made.config(output, shards=3, **without))
    return output


@pytest.fixture(scope="session")
def opened(indexes: dict[int, str]) -> dict[int, SearchEngine]:
    return {shards: SearchEngine(uri) for shards, uri in indexes.items()}


def manifest_of(output: Path | str) -> Manifest:
    return read_manifest(Folder(str(output)), "index")


def files_of(folder: Path | str) -> dict[str, bytes]:
    paths = [path for path in Path(folder).rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def photo_of(made: Made, number: int) -> bytes:
    return (made.photos / made.ids[number]).read_bytes()


def held_out_of(config: IndexConfig) -> NDArray[np.int64]:
    folder = Folder(config.features)
    source = Source(folder, read_manifest(folder, "features"), config.feature, [])
    return engine._split(source, config)[0]


def check_same(one: Hits, other: Hits) -> None:
    assert (one.ids, one.touched) == (other.ids, other.touched)
    np.testing.assert_array_equal(one.positions, other.positions)
    np.testing.assert_array_equal(one.scores, other.scores)


@pytest.fixture(scope="session")
def table(made: Made, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Two captions for each photograph, of which every fourth is of the part `val`."""
    path = tmp_path_factory.mktemp("table") / "captions.csv"
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "split", "caption"])
        for number, id in enumerate(made.ids):
            split = "train" if number % 4 else "val"
            writer.writerow([id, split, f"{number} is what it shows"])
            writer.writerow([id, split, f"{number} again"])
        writer.writerow(["not there.jpg", "val", "0 of another collection"])
    return str(path)
