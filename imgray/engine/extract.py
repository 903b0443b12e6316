"""Extract features of every image of a collection into Parquet shards (Ray Data)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial

import numpy as np
import pyarrow as pa
from pydantic import BaseModel

from imgray.artifacts.folder import Folder
from imgray.artifacts.identity import KEYWORDS, Identity
from imgray.artifacts.manifest import Manifest, read_manifest
from imgray.data.collections import open_collection
from imgray.data.fields import Input, Picture, Values
from imgray.data.layout import Layout
from imgray.engine.cluster import cluster, given_device
from imgray.engine.collection import LISTED, Rejections, check_rejected, process_configured
from imgray.engine.producer import migrated, produce
from imgray.engine.settings import ExtractConfig
from imgray.features.columns import FeatureInfo, columns_of, schema
from imgray.features.extractor import (
    PYRAMID,
    Extractor,
    ExtractorConfig,
    Prepared,
    save_extractor,
    to_table,
    weights_file,
)
from imgray.features.weights import load, parse_extractors, restore
from imgray.training.models import fingerprint_of, load_backbone


class ExtractResult(BaseModel):
    """What an extraction has done."""

    output: str
    listed: int
    done: int
    rejected: int
    features: list[str]

    def __str__(self) -> str:
        names = ", ".join(self.features)
        return (
            f"{self.done:,} images done, {self.rejected:,} rejected, {self.listed:,} listed\n"
            f"features: {names}\nartifact: {self.output}"
        )


class ExtractStep:
    """Prepared images to rows of the features artifact."""

    def __init__(self, extractor: Extractor, columns: dict[str, FeatureInfo]) -> None:
        self.extractor = extractor
        self.schema = schema(columns)

    def prepare(self, values: Values) -> Prepared:
        return self.extractor.prepare(values["image"])

    def process(self, ids: Sequence[str], batch: Sequence[Prepared]) -> tuple[pa.Table, Rejections]:
        table = to_table(ids, batch, vectors := self.extractor.run(batch), self.schema)
        finite = np.ones(len(ids), bool)
        for value in vectors.values():
            finite &= np.isfinite(value).all(axis=(1, 2))
        refused = [(ids[i], "features", "feature values not finite") for i in np.where(~finite)[0]]
        return table.filter(pa.array(finite)), refused


def extract(config: ExtractConfig) -> ExtractResult:
    """Extract, continue an extraction, or find that it is done."""
    output = Folder(config.output)
    models = _models(config)
    migrate = partial(migrated, ExtractConfig)
    identity = migrate(config.identity() | ({"models": models} if models else {}))
    manifest = produce(
        output,
        "features",
        identity,
        partial(_extract, config, identity, output),
        sources=[*config.read, *_weights(config)],
        note=LISTED,
        overwrite=config.overwrite,
        migrate=migrate,
    )
    check_rejected(output, manifest, config.max_rejected)
    counts = manifest.counts
    return ExtractResult(output=output.uri, features=list(columns_of(manifest)), **counts)


def _models(config: ExtractConfig) -> dict[str, str]:
    """The fingerprints of the trained models that extract, by URI."""
    requests = parse_extractors(config.extractor, config.weights)
    uris = [request.weights for request in requests if request.trained]
    return {uri: fingerprint_of(read_manifest(Folder(uri), "model")) for uri in uris}


def _weights(config: ExtractConfig) -> list[str]:
    """The places of the trained models and the files that extract."""
    requests = parse_extractors(config.extractor, config.weights)
    return [request.weights for request in requests if request.weights not in KEYWORDS["weights"]]


def _extract(config: ExtractConfig, identity: Identity, output: Folder) -> Manifest:
    collection = open_collection(config.images, StepFactory.inputs, config.layout, config.suffixes)
    extractor = build_extractor(config)
    columns = extractor.describe()
    files = save_extractor(extractor, output)
    factory = StepFactory(output, extractor.config, columns)
    with cluster():
        outcome = process_configured("extract", config, collection, output, factory)
    return Manifest(
        kind="features",
        config=identity,
        made_from={identity["images"]: outcome.files[0].sha256, **identity.get("models", {})},
        counts=outcome.model_dump(exclude={"files"}),
        about={
            "images": identity["images"],
            **({"layout": asdict(config.layout)} if config.layout != Layout() else {}),
            "extractor": extractor.config.model_dump(mode="json"),
            "features": {name: info.model_dump() for name, info in columns.items()},
        },
        files=files + outcome.files,
    )


def build_extractor(config: ExtractConfig) -> Extractor:
    """The extractor that these settings describe, weights included."""
    nets = {
        request.net: (load_backbone if request.trained else load)(
            request, config.size, config.precision
        )
        for request in parse_extractors(config.extractor, config.weights)
    }
    settings = ExtractorConfig(
        nets={name: net.config for name, net in nets.items()},
        grids=PYRAMID if config.regions == "pyramid" else (1,),
        crop_regions=config.crop_regions,
        max_pixels=config.max_pixels,
    )
    return Extractor(settings, nets)


class StepFactory:
    """Makes the step on a worker, from the weights in the output: all workers run the same."""

    inputs: Mapping[str, Input] = {"image": Picture()}

    def __init__(
        self, output: Folder, config: ExtractorConfig, columns: dict[str, FeatureInfo]
    ) -> None:
        self.output, self.config, self.columns = output, config, columns

    def __call__(self) -> ExtractStep:
        nets = {
            name: restore(net, self.output.read(weights_file(name)))
            for name, net in self.config.nets.items()
        }
        return ExtractStep(Extractor(self.config, nets).to(given_device()), self.columns)
