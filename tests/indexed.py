"""An index of images that never were: how it is built, and what it is made of."""

from pathlib import Path
from typing import Any

import numpy as np

import imgray.engine.index as engine
from imgray.artifacts.folder import Folder
from imgray.artifacts.manifest import Manifest, read_manifest
from imgray.engine.settings import IndexConfig

DIMS = {"one.mid": 32, "two.high": 48, "two.mid": 16}
IMAGES = 330
FEATURES = ["one.mid", "two"]
SHARDS = (1, 4, 7)


def config_of(features: str, output: Path | str, **changes: Any) -> IndexConfig:
    values: dict[str, Any] = {
        "features": features, "output": str(output), "feature": FEATURES, "codewords": [7, 5],
        "probes": [20, 6, 2], "queries": 20, "sample": 2800,
    }  # fmt: skip
    return IndexConfig(**values | changes)


def manifest_of(output: Path) -> Manifest:
    return read_manifest(Folder(str(output)), "index")


def files_of(folder: Path) -> dict[str, bytes]:
    return {
        p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()
    }


def times_of(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


def split_of(config: IndexConfig) -> tuple[np.ndarray, np.ndarray]:
    """Rows that a build holds out, and rows that it trains on."""
    folder = Folder(config.features)
    source = engine.Source(folder, read_manifest(folder, "features"), config.feature, [])
    return engine._split(source, config)
