"""What the commands have made, opened from Python: indexes, models and features. Needs no Ray.

Torch is loaded by the first index or model that is opened.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar, get_args, overload

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image

from imgray.artifacts.folder import Folder, read_uri
from imgray.artifacts.manifest import read_manifest
from imgray.config import Fusion
from imgray.data import fields, pixels
from imgray.data.fields import Input, Output, checked, sole_picture
from imgray.errors import UserError
from imgray.features.columns import columns_of, of_pictures, schema
from imgray.retrieval.backend import check_installed
from imgray.retrieval.deepindex import Result
from imgray.retrieval.modalities import Blend

if TYPE_CHECKING:
    from pyarrow.dataset import Dataset

    from imgray.training.models import Prepared
    from imgray.training.task import Prediction

__all__ = ["Index", "Model", "Picture", "Result", "open_features", "open_index", "open_model"]

Picture = bytes | str | os.PathLike[str] | Image.Image | NDArray[np.uint8]
"""An encoded image; its path or `s3://` URI; or its pixels, of Pillow or uint8 (H, W, 3) or (H, W).

Pixels are encoded without loss and go the way of all images: one picture has one answer. Only a
JPEG of more than about twice the size that a network takes may answer in slightly other numbers
by its pixels than by its bytes, which are decoded at a fraction of the size. A map of classes has
its labels as pixels: uint8 (H, W), or of Pillow in mode L or P."""
Record = Picture | Mapping[str, Any]
"""What a model is asked about: its inputs by name, or for one that takes a picture just that."""
Each = TypeVar("Each", bound=Record)

PREDICTED_AT_ONCE = 16


def open_index(uri: str) -> Index:
    """Open an index artifact, every file verified. Raises `UserError`."""
    check_installed()
    return Index(uri)


def open_model(uri: str) -> Model:
    """Open a model artifact, every file verified. Raises `UserError`."""
    return Model(uri)


def open_features(uri: str) -> Dataset:
    """The table of a features artifact, of the parts that its manifest lists; read when it is used.

    A row per picture or text: id, of pictures width and height, and per feature a list of float32,
    its regions one after the other: stored as float16, which DuckDB, unlike pandas and Polars, does
    not read.
    `imgray verify` checks the files.

    Raises:
        UserError: no features artifact, or a part of it is missing.
    """
    from pyarrow.dataset import dataset

    folder = Folder(uri)
    manifest = read_manifest(folder, "features")
    sizes = folder.sizes()
    parts = manifest.named("part-", ".parquet")
    for part in parts:
        if sizes.get(part.name) != part.size:
            raise UserError(f"{uri}: {part.name} is missing or truncated; see imgray verify {uri}")
    return dataset(
        [folder.path(part.name) for part in parts],
        schema=schema(columns_of(manifest), pa.float32(), of_pictures(manifest)),
        format="parquet",
        filesystem=folder.file_system,
    )


class Index:
    """An index with the networks that made it, on a GPU where there is one."""

    def __init__(self, uri: str) -> None:
        from imgray.engine.search import SearchEngine

        self._engine = SearchEngine(uri)

    def search(
        self,
        image: Picture | None = None,
        text: str | None = None,
        *,
        id: str | None = None,
        top: int = 10,
        weights: Mapping[str, float] | None = None,
        prefix: str = "",
        modalities: Mapping[str, float] | None = None,
        fusion: Fusion = "average",
    ) -> list[Result]:
        """The images most like one, or that words describe, best first.

        As `imgray search` and the service rank them.

        Args:
            image: what to search with.
            text: words to search with, of an index with a joint part; alone or beside an image.
            id: in place of the image, an indexed one, which is read from the collection.
            top: results at most.
            weights: by feature name its weight in the comparison of images, 1 where not named.
            prefix: only images whose id starts so are results.
            modalities: weight of `image` and of `text` where there are both, 1 where not named.
            fusion: how their rankings are joined, `average` or `adaptive`.

        Raises:
            UserError: nothing to search with, an image beside an id, no image, no such id, no such
                feature, a text that cannot be read, or an index without a joint part.
        """
        if (image is None) == (id is None) and (text is None or image is not None):
            raise UserError("search takes an image or an id, one of them, or a text, or both")
        if top < 1:
            raise UserError(f"top={top}: at least 1")
        if fusion not in get_args(Fusion):
            raise UserError(f"fusion={fusion!r}: expected {' or '.join(get_args(Fusion))}")
        given = None if image is None else _bytes(image)
        return self._engine.search(
            self._engine.picture(id) if id is not None else given,
            text,
            top=top,
            weights=weights,
            prefix=prefix,
            blend=Blend(modalities or {}, fusion),
            name=_name(image if id is None else id),
        ).results()


class Model:
    """A trained model, on a GPU where there is one."""

    def __init__(self, uri: str) -> None:
        from imgray.features.backbones import visible_device
        from imgray.training.models import load_model

        self._device = visible_device()
        self._model = load_model(uri)
        self._model.to(self._device)

    @property
    def inputs(self) -> Mapping[str, Input]:
        """What it takes, by name."""
        return self._model.inputs

    @property
    def outputs(self) -> Mapping[str, Output]:
        """What it gives, by name."""
        return self._model.task.outputs

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, in the order of scores and of the values of painted pictures."""
        return self._model.task.classes

    @overload
    def predict(self, record: Record, /) -> Prediction: ...

    @overload
    def predict(self, record: list[Each], /) -> list[Prediction]: ...

    @overload
    def predict(self, /, **inputs: Any) -> Prediction: ...

    def predict(
        self, record: Record | list[Each] | None = None, /, **inputs: Any
    ) -> Prediction | list[Prediction]:
        """What the model says of a record, or of each of a list: as `imgray predict` writes it.

        `row` is its line of the predictions table; `picture` is what a model paints, uint8 (H, W)
        or (H, W, 3), else None. A list goes through the network in batches.

        Args:
            record: a picture, a mapping from the names of inputs, or a list of either.
            inputs: instead, one record: `predict(photo="a.jpg", caption="a dog")`.

        Raises:
            UserError: an input that is missing, unknown or not as declared.
        """
        if (record is None) != bool(inputs):
            raise UserError("predict takes a record, or inputs by name: one of them")
        if not isinstance(record, list):
            return self._predict([("", inputs if record is None else record)])[0]
        placed = [(f"[{place}]", one) for place, one in enumerate(record)]
        starts = range(0, len(placed), PREDICTED_AT_ONCE)
        batches = (placed[start : start + PREDICTED_AT_ONCE] for start in starts)
        return [found for batch in batches for found in self._predict(batch)]

    def _predict(self, records: Sequence[tuple[str, Record]]) -> list[Prediction]:
        prepared = [self._prepared(*one) for one in records]
        found = self._model.predict(prepared, self._device)
        for (place, _), one in zip(records, found, strict=True):
            if one.fault:
                raise UserError(f"record{place}: {one.fault}")
        return found

    def _prepared(self, place: str, record: Record) -> Prepared:
        named = isinstance(record, Mapping)
        given = record if isinstance(record, Mapping) else {self._picture(): record}
        what = f"record{place}" if named else _name(record, f"{self._picture()}{place}")
        try:
            values = {
                name: _value(f"{name}{place}", self.inputs.get(name), one)
                for name, one in given.items()
            }
            return self._model.prepare(checked(self.inputs, values))
        except pixels.Rejected as error:
            raise UserError(f"{what}: {error}") from None

    def _picture(self) -> str:
        """The input that a mere picture is."""
        name = sole_picture(self.inputs)
        if name is None:
            raise UserError(f"this model takes {', '.join(self.inputs)}: give them by name")
        return name


def _value(name: str, declared: Input | None, given: Any) -> Any:
    """An input as `checked` takes it. Raises `UserError`."""
    absent = given is None and declared is not None and declared.optional
    if absent or not isinstance(declared, fields.Picture):
        return given
    encode = pixels.encode_map if isinstance(declared, fields.ClassMap) else pixels.encode
    return _bytes(given, name, encode)


def _bytes(
    image: Picture | None,
    name: str = "image",
    encode: Callable[[Image.Image | NDArray[Any]], bytes] = pixels.encode,
) -> bytes:
    """The image encoded. Raises `UserError` for what is none."""
    if isinstance(image, bytes):
        return image
    if isinstance(image, str | os.PathLike):
        return read_uri(os.fspath(image))
    if not isinstance(image, Image.Image | np.ndarray):
        kinds = "bytes, a path, a PIL image or an array of uint8"
        raise UserError(f"{name} of type {type(image).__name__}: expected {kinds}")
    try:
        return encode(image)
    except pixels.Rejected as error:
        raise UserError(f"{name}: {error}") from None


def _name(image: Any, otherwise: str = "image") -> str:
    """What an error calls an image."""
    return os.fspath(image) if isinstance(image, str | os.PathLike) else otherwise
