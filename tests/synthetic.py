"""Region features of images that never were: clustered, as those of networks are."""

import hashlib
import io
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from imgray.artifacts.folder import Folder
from imgray.artifacts.manifest import Manifest, entry_of, publish
from imgray.features.columns import FeatureInfo, Vectors
from imgray.features.columns import schema as schema_of
from imgray.features.extractor import Prepared, to_table, weights_file
from imgray.retrieval.codebook import CodebookSettings, unit

PART_ROWS, GROUP_ROWS = 100, 40


def clustered(seed: int, images: int, regions: int, dims: Mapping[str, int]) -> Vectors:
    """Float32 (images, regions, C) by name, of unit length, at the precision that artifacts store.

    Every image mixes its group's and its own vector into noise of its regions.
    """
    random = np.random.default_rng(seed)
    group = random.integers(0, max(2, images // 8), images)
    found = {}
    for name, dim in dims.items():
        centres = random.normal(size=(group.max() + 1, 1, dim))
        own = random.normal(size=(images, 1, dim))
        noise = random.normal(size=(images, regions, dim))
        values = unit(centres[group] + 0.5 * own + noise)
        found[name] = values.astype(np.float16).astype(np.float32)
    return found


def settings(dims: Mapping[str, int], levels: tuple[int, ...], **changes: Any) -> CodebookSettings:
    """Settings of a small index over these features."""
    values: dict[str, Any] = {
        "features": tuple(dims), "codewords": (6, 5, 4)[: len(dims)], "levels": levels,
        "probes": (12, 6, 3)[: len(levels)], "dim": 12, "code": "Flat", "bandwidth": 0.25,
        "signature": tuple(dims), "signature_dim": 10, "signature_power": 2.0, "seed": 0,
    }  # fmt: skip
    return CodebookSettings(**values | changes)


def names(count: int) -> list[str]:
    return [f"{n % 3}/image {n:04}.jpg" for n in range(count)]


def write_features(uri: str, vectors: Vectors, **changes: Any) -> Manifest:
    """Publish a features artifact of these vectors, named `NET.LAYER`, as extraction would."""
    folder = Folder(uri)
    folder.remove("")
    images, regions = next(iter(vectors.values())).shape[:2]
    nets = sorted({name.partition(".")[0] for name in vectors})
    grids = (1,) if regions == 1 else (1, 2, 3)
    assert regions == sum(g * g for g in grids)
    prints = {name: hashlib.sha256(name.encode()).hexdigest() for name in vectors}
    columns = {
        name: FeatureInfo(regions=regions, dim=value.shape[2], fingerprint=prints[name])
        for name, value in vectors.items()
    }
    files = []
    for net in nets:
        data = f"the weights of {net}".encode()
        folder.write(weights_file(net), data)
        files.append(entry_of(weights_file(net), data))
    ids, schema = names(images), schema_of(columns)
    for part in range(math.ceil(images / PART_ROWS)):
        rows = slice(part * PART_ROWS, (part + 1) * PART_ROWS)
        chosen = ids[rows]
        cut = {name: value[rows] for name, value in vectors.items()}
        table = to_table(chosen, [Prepared(9, 9, {})] * len(chosen), cut, schema)
        buffer = io.BytesIO()
        pq.write_table(table, buffer, row_group_size=GROUP_ROWS)
        name = f"part-{part:05d}.parquet"
        folder.write(name, buffer.getvalue())
        files.append(entry_of(name, buffer.getvalue(), len(chosen)))
    extractor = {
        "nets": {net: _net(net, vectors) for net in nets},
        "grids": grids, "crop_regions": False, "max_pixels": 10**6,
    }  # fmt: skip
    described = {n: i.model_dump() for n, i in columns.items()}
    about = {"images": "/nowhere", "extractor": extractor, "features": described}
    manifest = Manifest(
        kind="features", config={"images": "nowhere"}, about=about, files=files,
        counts={"listed": images, "done": images, "rejected": 0},
    )  # fmt: skip
    return publish(folder, manifest.model_copy(update=changes))


def _net(net: str, vectors: Vectors) -> dict[str, Any]:
    layers = [name.partition(".")[2] for name in vectors if name.startswith(f"{net}.")]
    return {
        "library": "timm", "net": net, "layers": {layer: layer for layer in layers}, "size": 32,
        "mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5), "precision": "float32",
    }  # fmt: skip
