"""The columns of a features artifact: their shapes, schema and values. Needs no torch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from imgray.artifacts.manifest import Manifest
from imgray.errors import UserError

Vectors = dict[str, NDArray[np.float32]]
"""Feature name to float32 (B, R, C)."""
HALF = pa.float16()
"""As which features are stored."""


class FeatureInfo(BaseModel):
    """One feature column: R regions of C dimensions, and the fingerprint of its network."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    regions: int
    dim: int
    fingerprint: str


SIZE = ("width", "height")
"""Columns that features of pictures have besides, in pixels."""


def schema(
    columns: dict[str, FeatureInfo], number: pa.DataType = HALF, pictures: bool = True
) -> pa.Schema:
    """One row per picture or text: id, of pictures `SIZE`, and R x C numbers per feature."""
    return pa.schema(
        [pa.field("id", pa.string())]
        + [pa.field(name, pa.int32()) for name in SIZE if pictures]
        + [
            pa.field(name, pa.list_(number, info.regions * info.dim), metadata=_text(info))
            for name, info in columns.items()
        ]
    )


def _text(info: FeatureInfo) -> dict[str, str]:
    return {key: str(value) for key, value in info.model_dump().items()}


def from_table(
    table: pa.Table | pa.RecordBatch, name: str, info: FeatureInfo
) -> NDArray[np.float32]:
    """One feature column as float32 (B, R, C)."""
    column = table.column(name)
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
    flat = column.flatten().to_numpy(zero_copy_only=False)
    return flat.astype(np.float32).reshape(len(table), info.regions, info.dim)


def columns_of(manifest: Manifest) -> dict[str, FeatureInfo]:
    """The feature columns that a features or index artifact declares."""
    return {name: FeatureInfo.model_validate(i) for name, i in manifest.about["features"].items()}


def of_pictures(manifest: Manifest) -> bool:
    """Whether a features artifact is of pictures, rather than of texts or of vectors brought."""
    return bool(manifest.about.get("extractor", {}).get("nets"))


def choose(columns: dict[str, FeatureInfo], wanted: Sequence[str]) -> dict[str, FeatureInfo]:
    """The named features; `NET` stands for `NET.high`. Raises `UserError` for one that lacks."""
    chosen = {}
    for name in wanted:
        full = name if name in columns else f"{name}.high"
        if full not in columns:
            raise UserError(f"--feature {name}: the shards have {', '.join(columns)}")
        if full in chosen:
            raise UserError(f"--feature {name}: named twice")
        chosen[full] = columns[full]
    return chosen
