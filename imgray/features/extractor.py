"""The features of an image: decode once, cut or pool regions, run every network, lay out columns.

Extraction, queries and serving all go through `Extractor`, so one image has one vector.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from imgray.artifacts.folder import Folder
from imgray.artifacts.manifest import Manifest, entry_of, opening, read_file
from imgray.data import pixels
from imgray.features.backbones import Backbone, BackboneConfig, regions_of
from imgray.features.columns import FeatureInfo, Vectors
from imgray.features.weights import dump, restore

PYRAMID = (1, 2, 3)


class ExtractorConfig(BaseModel):
    """What determines an image's features, apart from the networks' tensors."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    nets: dict[str, BackboneConfig]
    """By the name that the user gave to the network."""
    grids: tuple[int, ...]
    crop_regions: bool
    max_pixels: int


@dataclass(frozen=True)
class Prepared:
    """A decoded image: its size as displayed and, per input size, uint8 (R or 1, s, s, 3)."""

    width: int
    height: int
    inputs: dict[int, NDArray[np.uint8]]


class Extractor:
    """Several networks that see the same decoded pixels."""

    def __init__(self, config: ExtractorConfig, nets: dict[str, Backbone]) -> None:
        self.config = config
        self.nets = nets
        self.sizes = {net.config.size for net in nets.values()}

    @property
    def names(self) -> list[str]:
        """Names of the features, `NET.LAYER`, in order."""
        return [f"{net}.{layer}" for net, b in self.nets.items() for layer in b.config.layers]

    def to(self, device: str) -> Extractor:
        """Move all networks to a device."""
        for net in self.nets.values():
            net.to(device)
        return self

    def prepare(self, data: bytes) -> Prepared:
        """Decode an image and bring it to the networks' input sizes. Raises `pixels.Rejected`."""
        image, (width, height) = pixels.decode_sized(data, self._shortest(), self.config.max_pixels)
        if self.config.crop_regions:
            inputs = {s: regions_of(image, s, self.config.grids) for s in self.sizes}
        else:
            inputs = {s: pixels.resize(image, s)[None] for s in self.sizes}
        return Prepared(width, height, inputs)

    def _shortest(self) -> int:
        """The smallest side, in pixels, that the finest cut needs of a decoded image."""
        return max(self.sizes) * (max(self.config.grids) if self.config.crop_regions else 1)

    def run(self, batch: Sequence[Prepared]) -> Vectors:
        """Features of decoded images: for every name float32 (B, R, C), vectors of unit length."""
        vectors: Vectors = {}
        for name, net in self.nets.items():
            size = net.config.size
            images = torch.from_numpy(np.concatenate([item.inputs[size] for item in batch]))
            grids = (1,) if self.config.crop_regions else self.config.grids
            for layer, output in net(images, grids).items():
                found = output.float().cpu().numpy()
                vectors[f"{name}.{layer}"] = found.reshape(len(batch), -1, found.shape[-1])
        return vectors

    def describe(self) -> dict[str, FeatureInfo]:
        """The columns that this extractor makes, found by a pass over an empty picture."""
        blank = {s: np.zeros((self._inputs(), s, s, 3), np.uint8) for s in self.sizes}
        vectors = self.run([Prepared(1, 1, blank)])
        return {
            name: FeatureInfo(
                regions=value.shape[1],
                dim=value.shape[2],
                fingerprint=self.fingerprint(name.partition(".")[0]),
            )
            for name, value in vectors.items()
        }

    def fingerprint(self, net: str) -> str:
        """Digest of the network and of how its regions are cut; equal digests, equal vectors."""
        settings = self.config.model_dump_json(include={"grids", "crop_regions"})
        own = self.nets[net].config.fingerprint
        return entry_of(net, f"{own} {settings}".encode()).sha256

    def _inputs(self) -> int:
        return sum(g * g for g in self.config.grids) if self.config.crop_regions else 1


def weights_file(net: str) -> str:
    """Where the tensors of a network lie inside a features or index artifact."""
    return f"extractors/{net.replace('/', '-')}.safetensors"


def save_extractor(extractor: Extractor, folder: Folder) -> list[Any]:
    """Write every network's tensors into an artifact; returns their manifest entries."""
    entries = []
    for name, net in extractor.nets.items():
        data = dump(net)
        folder.write(weights_file(name), data)
        entries.append(entry_of(weights_file(name), data))
    return entries


def load_extractor(folder: Folder, manifest: Manifest) -> Extractor:
    """The extractor that made an artifact, from the verified weights inside it."""
    with opening(folder):
        config = ExtractorConfig.model_validate(manifest.about["extractor"])
        nets = {
            name: restore(net, read_file(folder, manifest.file(weights_file(name))))
            for name, net in config.nets.items()
        }
        return Extractor(config, nets)


def to_table(
    ids: Sequence[str], batch: Sequence[Prepared], vectors: Vectors, columns: pa.Schema
) -> pa.Table:
    """Rows of the features artifact, at the stored precision."""
    arrays: list[pa.Array] = [
        pa.array(ids, pa.string()),
        pa.array([item.width for item in batch], pa.int32()),
        pa.array([item.height for item in batch], pa.int32()),
    ]
    for field in columns.names[3:]:
        values = vectors[field].reshape(len(ids), -1).astype(np.float16)
        flat = pa.array(values.ravel(), pa.float16())
        arrays.append(pa.FixedSizeListArray.from_arrays(flat, values.shape[1]))
    return pa.table(arrays, schema=columns)
