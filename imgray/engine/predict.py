"""Run a trained model over every record of a collection, exactly once: a predictions artifact.

One row per record in `part-*.parquet`. A model that paints (segments, edges, translations) also
leaves a picture per record below `pictures/`, a PNG or, where that is asked for, a JPEG; the row
holds its name and digest.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
from pydantic import BaseModel

from imgray.artifacts.folder import Folder
from imgray.artifacts.identity import Identity
from imgray.artifacts.manifest import Manifest, read_manifest, sha256
from imgray.config import Encoding
from imgray.data.collections import Collection, open_collection
from imgray.data.fields import Input, Values, encodings_of
from imgray.data.layout import place_of
from imgray.data.pixels import Rejected, encoded
from imgray.engine.cluster import cluster, given_device
from imgray.engine.collection import check_rejected, process_configured
from imgray.engine.examples import digests
from imgray.engine.frozen import BEGUN, COLLECTION, look
from imgray.engine.producer import migrated, produce
from imgray.engine.settings import PredictConfig
from imgray.engine.sheets import draw_predictions
from imgray.engine.worker import Rejections
from imgray.errors import UserError
from imgray.training.carried import check_same, inputs_of
from imgray.training.models import Prepared, fingerprint_of, load_model, load_task
from imgray.training.task import NOT_FINITE, Prediction, Task, set_longest

LONGEST_PATH, LONGEST_NAME = 800, 200
"""Bytes of an id, and of one part of it, that is the name of a file."""


class PredictResult(BaseModel):
    """What a prediction run has done."""

    output: str
    listed: int
    done: int
    rejected: int
    contact_sheet: str | None = None

    def __str__(self) -> str:
        sheet = f"\ncontact sheet: {self.contact_sheet}" if self.contact_sheet else ""
        return (
            f"{self.done:,} images done, {self.rejected:,} rejected, {self.listed:,} listed\n"
            f"artifact: {self.output}{sheet}"
        )


class PredictStep:
    """Records to rows of the predictions artifact."""

    def __init__(
        self,
        model: str,
        output: Folder,
        given: Sequence[str] = (),
        longest: int | None = None,
        encoding: Encoding = "png",
    ) -> None:
        self.device, self.encoding = given_device(), encoding
        self.model, self.output = load_model(model, given), output
        if longest:
            set_longest(self.model.task, longest)
        self.model.to(self.device)
        columns = list(self.model.task.columns)
        picture = [pa.field("picture", pa.string()), pa.field("sha256", pa.string())]
        self.schema = pa.schema([pa.field("id", pa.string()), *columns, *picture])

    def prepare(self, values: Values) -> Prepared:
        return self.model.prepare(values)

    def run(self, batch: Sequence[Prepared]) -> list[Prediction]:
        return self.model.predict(batch, self.device)

    def rows(
        self, ids: Sequence[str], batch: Sequence[Prepared], found: Sequence[Prediction]
    ) -> tuple[pa.Table, Rejections]:
        rows, refused = [], []
        for id, one in zip(ids, found, strict=True):
            fault = one.fault or ("" if _finite(one.row) else NOT_FINITE)
            try:
                if fault:
                    raise Rejected(fault)
                rows.append({"id": id, **one.row, **self._painted(id, one)})
            except Rejected as error:
                refused.append((id, "predict", str(error)))
        return pa.Table.from_pylist(rows, self.schema), refused

    def _painted(self, id: str, prediction: Prediction) -> dict[str, str | None]:
        """Write the picture of an image, if there is one: its name and digest.

        Raises:
            Rejected: it cannot be encoded.
        """
        if prediction.picture is None:
            return {"picture": None, "sha256": None}
        data, name = encoded(prediction.picture, self.encoding), picture_name(id, self.encoding)
        self.output.write(name, data)
        return {"picture": name, "sha256": sha256(data)}


def picture_name(id: str, suffix: str = "png") -> str:
    """Where the picture of a record lies in the artifact: below `pictures/`, for every id.

    That is the id itself where it is a plain path, else its digest: ids of a table are any text.
    """
    parts = id.split("/")
    plain = (
        len(id.encode()) <= LONGEST_PATH
        and all(part not in ("", ".", "..") and part.isprintable() for part in parts)
        and all(len(part.encode()) <= LONGEST_NAME and "\\" not in part for part in parts)
        and not any(part.endswith(f".{suffix}") for part in parts[:-1])
    )
    name = id if plain else f"by-digest/{sha256(id.encode())}"
    return f"pictures/{name}.{suffix}"


def _finite(row: Mapping[str, Any]) -> bool:
    """Whether all numbers of a row are."""
    values = (v if isinstance(v, list | tuple) else [v] for v in row.values())
    return all(math.isfinite(v) for some in values for v in some if isinstance(v, float))


def _check_encoding(task: Task, encoding: Encoding) -> None:
    """Refuse to make a JPEG of nothing, or of classes. Raises `UserError`."""
    if encoding == "jpeg" and encoding not in encodings_of(task.outputs):
        name = type(task).__name__
        raise UserError(f"--encode jpeg: {name} paints no picture that a JPEG keeps; use png")


def predict(config: PredictConfig) -> PredictResult:
    """Predict, continue a prediction run, or find that it is done."""
    output, folder = Folder(config.output), Folder(config.model)
    model = read_manifest(folder, "model")
    _, task = load_task(folder, model)
    check_same(model, config.joined)
    if config.longest:
        set_longest(task, config.longest)
    _check_encoding(task, config.encode)
    collect = partial(_collection, config, inputs_of(model, task, config.joined))
    migrate = partial(migrated, PredictConfig)
    identity = migrate(config.identity() | {"fingerprint": fingerprint_of(model)})
    if config.features:
        identity["joined"] = digests(config.joined)
    look(collect, output, config.overwrite)
    manifest = produce(
        output,
        "predictions",
        identity,
        partial(_predict, config, identity, task, collect),
        sources=[*config.read, config.model],
        notes=BEGUN,
        overwrite=config.overwrite,
        wait=config.wait,
        retry=config.retry_rejected,
        migrate=migrate,
    )
    check_rejected(output, manifest, config.max_rejected)
    if config.contact_sheet:
        draw_predictions(Path(config.contact_sheet), collect(), output, manifest, task)
    return PredictResult(output=output.uri, contact_sheet=config.contact_sheet, **manifest.counts)


def _collection(config: PredictConfig, inputs: Mapping[str, Input]) -> Collection:
    """The records. Raises `UserError`."""
    return open_collection(
        config.images,
        inputs,
        config.layout,
        config.suffixes,
        config.joined,
        inventory=config.inventory,
        **config.how,
    )


def _predict(
    config: PredictConfig,
    identity: Identity,
    task: Task,
    collect: Callable[[], Collection],
    output: Folder,
) -> Manifest:
    own = list(config.joined), config.longest, config.encode
    factory = partial(PredictStep, identity["model"], output, *own)
    records = collect()
    with cluster():
        outcome = process_configured("predict", config, records, output, factory)
    joined = identity.get("joined", {})
    return Manifest(
        kind="predictions",
        config=identity,
        made_from={
            identity["images"]: outcome.files[0].sha256,
            identity["model"]: identity["fingerprint"],
            **{place_of(config.joined[name]): digest for name, digest in joined.items()},
        },
        counts=outcome.model_dump(exclude={"files"}),
        about={
            "classes": list(task.classes),
            "columns": task.columns.names,
            **({COLLECTION: records.digest} if records.digest else {}),
        },
        files=outcome.files,
    )
