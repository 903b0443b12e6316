"""What the commands have made, opened from Python: indexes, models and features. Needs no Ray.

Torch is loaded by the first index or model that is opened.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar, overload

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image

from imgray.artifacts.folder import Folder, read_uri
from imgray.artifacts.manifest import read_manifest
from imgray.data import pixels
from imgray.errors import UserError
from imgray.features.columns import columns_of, schema
from imgray.retrieval.backend import check_installed
from imgray.retrieval.deepindex import Result

if TYPE_CHECKING:
    from pyarrow.dataset import Dataset

    from imgray.training.task import Arrays, Prediction

__all__ = ["Index", "Model", "Picture", "Result", "open_features", "open_index", "open_model"]

Picture = bytes | str | os.PathLike[str] | Image.Image | NDArray[np.uint8]
"""An encoded image; its path or `s3://` URI; or its pixels, of Pillow or uint8 (H, W, 3) or (H, W).

Pixels are encoded without loss and go the way of all images: one picture has one answer. Only a
JPEG of more than about twice the size that a network takes may answer in slightly other numbers
by its pixels than by its bytes, which are decoded at a fraction of the size."""
Each = TypeVar("Each", bound=Picture)

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

    A row per image: id, width, height, and per feature a list of float32, its regions one after
    the other: stored as float16, which DuckDB, unlike pandas and Polars, does not read.
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
        schema=schema(columns_of(manifest), pa.float32()),
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
        *,
        id: str | None = None,
        top: int = 10,
        weights: Mapping[str, float] | None = None,
        prefix: str = "",
    ) -> list[Result]:
        """The images most like one, best first, as `imgray search` and the service rank them.

        Args:
            image: what to search with.
            id: instead, an indexed image, which is read from the collection.
            top: results at most.
            weights: by feature name its weight in the comparison, 1 where not named.
            prefix: only images whose id starts so are results.

        Raises:
            UserError: not one of image and id, no image, no such id, or no such feature.
        """
        if (image is None) == (id is None):
            raise UserError("search takes an image or an id: one of them")
        if top < 1:
            raise UserError(f"top={top}: at least 1")
        data = self._engine.picture(id) if id is not None else _bytes(image)
        name = _name(image if id is None else id)
        [hits] = self._engine.search_images({name: data}, top, weights, prefix)
        return hits.results()


class Model:
    """A trained model, on a GPU where there is one."""

    def __init__(self, uri: str) -> None:
        from imgray.features.backbones import visible_device
        from imgray.training.models import load_model

        self._device = visible_device()
        self._model = load_model(uri)
        self._model.to(self._device)

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, in the order of scores and of the values of painted pictures."""
        return self._model.task.classes

    @overload
    def predict(self, image: Picture) -> Prediction: ...

    @overload
    def predict(self, image: list[Each]) -> list[Prediction]: ...

    def predict(self, image: Picture | list[Each]) -> Prediction | list[Prediction]:
        """What the model says of an image, or of each of a list: as `imgray predict` writes it.

        `row` is its line of the predictions table; `picture` is what a model paints, uint8 (H, W)
        or (H, W, 3), else None. A list goes through the network in batches.

        Raises:
            UserError: no image.
        """
        if not isinstance(image, list):
            return self._predict([(_name(image), image)])[0]
        named = [(_name(one, f"image[{place}]"), one) for place, one in enumerate(image)]
        starts = range(0, len(named), PREDICTED_AT_ONCE)
        batches = (named[start : start + PREDICTED_AT_ONCE] for start in starts)
        return [found for batch in batches for found in self._predict(batch)]

    def _predict(self, images: Sequence[tuple[str, Picture]]) -> list[Prediction]:
        return self._model.predict([self._prepared(*one) for one in images], self._device)

    def _prepared(self, name: str, image: Picture) -> Arrays:
        try:
            return self._model.task.prepare(_bytes(image, name))
        except pixels.Rejected as error:
            raise UserError(f"{name}: {error}") from None


def _bytes(image: Picture | None, name: str = "image") -> bytes:
    """The image encoded. Raises `UserError` for what is none."""
    if isinstance(image, bytes):
        return image
    if isinstance(image, str | os.PathLike):
        return read_uri(os.fspath(image))
    if not isinstance(image, Image.Image | np.ndarray):
        kinds = "bytes, a path, a PIL image or an array of uint8"
        raise UserError(f"{name} of type {type(image).__name__}: expected {kinds}")
    try:
        return pixels.encode(image)
    except pixels.Rejected as error:
        raise UserError(f"{name}: {error}") from None


def _name(image: Any, otherwise: str = "image") -> str:
    """What an error calls an image."""
    return os.fspath(image) if isinstance(image, str | os.PathLike) else otherwise
