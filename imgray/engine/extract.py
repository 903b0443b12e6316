"""Extract features of every picture or text of a collection into Parquet shards (Ray Data)."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
from pydantic import BaseModel

from imgray.artifacts.folder import Folder
from imgray.artifacts.identity import KEYWORDS, Identity
from imgray.artifacts.manifest import NAME, PART, WORK, FileEntry, Manifest, read_manifest
from imgray.artifacts.walk import Skipped
from imgray.data.collections import Collection, open_collection
from imgray.data.fields import Values
from imgray.data.layout import Layout
from imgray.data.pixels import Rejected
from imgray.engine.cluster import cluster, given_device
from imgray.engine.collection import BATCH, check_rejected, process_configured
from imgray.engine.earlier import VANISHED
from imgray.engine.frozen import BEGUN, COLLECTION, look
from imgray.engine.listing import LISTING
from imgray.engine.producer import migrated, produce
from imgray.engine.settings import ExtractConfig
from imgray.engine.worker import Rejections
from imgray.errors import UserError
from imgray.features.backbones import Backbone
from imgray.features.bags import fit
from imgray.features.columns import FeatureInfo, Vectors, columns_of, schema
from imgray.features.dual import picture_tower
from imgray.features.encoders import Kind, digest_of, fitted, kind_of, of_texts, text_encoder
from imgray.features.extractor import (
    PYRAMID,
    Extractor,
    ExtractorConfig,
    PictureExtractor,
    TextExtractor,
    open_extractor,
    save_extractor,
    to_table,
)
from imgray.features.texts import cleaned
from imgray.features.weights import Request, load, parse_extractors
from imgray.training.models import fingerprint_of, load_backbone

TEXTS = 512
"""Texts that are sorted by length together, by default."""
CHOSEN = f"{WORK}/extractor.json"
"""The note of an extractor that is saved: an interrupted run goes on with the very same."""

LOAD: Mapping[Kind, Callable[..., Backbone]] = {
    "net": load,
    "model": load_backbone,
    "dual": picture_tower,
}
"""What makes a network of pictures."""


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
    """Prepared pictures or texts to rows of the features artifact."""

    def __init__(self, extractor: Extractor, columns: dict[str, FeatureInfo]) -> None:
        self.extractor = extractor
        self.schema = schema(columns, pictures=isinstance(extractor, PictureExtractor))

    def prepare(self, values: Values) -> Any:
        return self.extractor.prepare(values[self.extractor.input])

    def run(self, batch: Sequence[Any]) -> Vectors:
        return self.extractor.run(batch)

    def rows(
        self, ids: Sequence[str], batch: Sequence[Any], vectors: Vectors
    ) -> tuple[pa.Table, Rejections]:
        table = to_table(ids, batch, vectors, self.schema)
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
    identity = migrate(
        config.identity()
        | ({"models": models} if models else {})
        | ({"other_than": _listings(config.except_)} if config.except_ else {})
    )
    look(partial(_collection, config), output, config.overwrite)
    manifest = produce(
        output,
        "features",
        identity,
        partial(_extract, config, identity),
        sources=[*config.read, *_weights(config), *config.except_],
        notes=BEGUN,
        overwrite=config.overwrite,
        wait=config.wait,
        retry=config.retry_rejected,
        migrate=migrate,
    )
    check_rejected(output, manifest, config.max_rejected)
    counts = manifest.counts
    return ExtractResult(output=output.uri, features=list(columns_of(manifest)), **counts)


def _models(config: ExtractConfig) -> dict[str, str]:
    """By URI, what tells the trained models and encoders that extract from others there."""
    found = {}
    for request in parse_extractors(config.extractor, config.weights):
        kind, place = kind_of(request), Folder(request.weights)
        if kind == "model":
            found[request.weights] = fingerprint_of(read_manifest(place, kind))
        elif request.trained and kind in ("text", "dual"):
            found[request.weights] = digest_of(place)
    return found


def _listings(features: Sequence[str]) -> dict[str, str]:
    """By URI, what tells the listings that `--except` names from others there."""
    return {uri: read_manifest(Folder(uri), "features").file(LISTING).sha256 for uri in features}


def _weights(config: ExtractConfig) -> list[str]:
    """The places of the trained models and the files that extract."""
    requests = parse_extractors(config.extractor, config.weights)
    return [request.weights for request in requests if request.weights not in KEYWORDS["weights"]]


def _extract(config: ExtractConfig, identity: Identity, output: Folder) -> Manifest:
    collection = _collection(config)
    chosen = _chosen(config, output)
    factory = StepFactory(output, chosen.config, chosen.columns)
    with cluster():
        batch = BATCH if chosen.config.nets else TEXTS
        outcome = process_configured(
            "extract", config, collection, output, factory, batch, identity["except_"]
        )
    return Manifest(
        kind="features",
        config=identity,
        made_from={
            identity["images"]: outcome.files[0].sha256,
            **identity.get("models", {}),
            **identity.get("other_than", {}),
        },
        counts=outcome.model_dump(exclude={"files"}),
        about={
            "images": identity["images"],
            **({"layout": asdict(config.layout)} if config.layout != Layout() else {}),
            **({COLLECTION: collection.digest} if collection.digest else {}),
            **config.how,
            "extractor": chosen.config.model_dump(mode="json"),
            "features": {name: info.model_dump() for name, info in chosen.columns.items()},
        },
        files=chosen.files + outcome.files,
    )


def _collection(config: ExtractConfig) -> Collection:
    """What the settings say to pass over: pictures, or texts where the extractors take those."""
    inputs = (TextExtractor if _requests(config)[1] else PictureExtractor).inputs
    return open_collection(
        config.images,
        inputs,
        config.layout,
        config.suffixes,
        inventory=config.inventory,
        **config.how,
    )


class _Chosen(BaseModel):
    """The extractor of a run, its columns, and its files in the output."""

    config: ExtractorConfig
    columns: dict[str, FeatureInfo]
    files: list[FileEntry]


def _chosen(config: ExtractConfig, output: Folder) -> _Chosen:
    if output.exists(CHOSEN):
        return _Chosen.model_validate_json(output.read(CHOSEN))
    if output.exists(NAME):
        return _published(read_manifest(output, "features"))
    extractor = build_extractor(config)
    found = _Chosen(
        config=extractor.config,
        columns=extractor.describe(),
        files=save_extractor(extractor, output),
    )
    output.write(CHOSEN, found.model_dump_json().encode())
    return found


def _published(manifest: Manifest) -> _Chosen:
    """The extractor of a finished artifact."""
    listed = LISTING, VANISHED
    own = [f for f in manifest.files if f.name not in listed and not PART.fullmatch(f.name)]
    about = manifest.about
    return _Chosen(config=about["extractor"], columns=about["features"], files=own)


def build_extractor(config: ExtractConfig) -> Extractor:
    """The extractor that these settings describe, weights included."""
    requests, texts = _requests(config)
    return _text_extractor(config, requests) if texts else _picture_extractor(config, requests)


def _requests(config: ExtractConfig) -> tuple[list[Request], bool]:
    """The encoders that are asked for, and whether they are to take texts, or else pictures."""
    found = parse_extractors(config.extractor, config.weights)
    return found, of_texts(found, TextExtractor.input in config.layout.columns)


def _picture_extractor(config: ExtractConfig, requests: Sequence[Request]) -> PictureExtractor:
    kinds = {request.net: kind_of(request) for request in requests}
    nets = {
        request.net: LOAD[kinds[request.net]](request, config.size, config.precision)
        for request in requests
    }
    texts = {
        request.net: text_encoder(request, config.precision)
        for request in requests
        if kinds[request.net] == "dual"
    }
    settings = ExtractorConfig(
        nets={name: net.config for name, net in nets.items()},
        texts={name: encoder.config for name, encoder in texts.items()},
        grids=PYRAMID if config.regions == "pyramid" else (1,),
        crop_regions=config.crop_regions,
        max_pixels=config.max_pixels,
    )
    return PictureExtractor(settings, nets, texts)


def _text_extractor(config: ExtractConfig, requests: Sequence[Request]) -> TextExtractor:
    if config.regions != "global" or config.crop_regions or config.size:
        raise UserError("--regions, --crop-regions and --size are of pictures; texts have none")
    texts = {
        request.net: fit(_texts(config), config.vocabulary)
        if fitted(request)
        else text_encoder(request, config.precision)
        for request in requests
    }
    settings = ExtractorConfig(texts={name: encoder.config for name, encoder in texts.items()})
    return TextExtractor(settings, texts)


def _texts(config: ExtractConfig) -> Iterator[str]:
    """The texts of a collection that are not to be rejected, one after the other."""
    collection = _collection(config)
    for number, entry in enumerate(collection.entries(Skipped())):
        with contextlib.suppress(Rejected):
            yield cleaned(collection.values(number, entry)[TextExtractor.input])


class StepFactory:
    """Makes the step on a worker, from the weights in the output: all workers run the same."""

    def __init__(
        self, output: Folder, config: ExtractorConfig, columns: dict[str, FeatureInfo]
    ) -> None:
        self.output, self.config, self.columns = output, config, columns

    def __call__(self) -> ExtractStep:
        extractor = open_extractor(self.config, self.output, self.output.read)
        return ExtractStep(extractor.to(given_device()), self.columns)
