"""Labelled collections at a URI, as training and evaluation read them: one record at a time.

A data set has named parts, of which a recipe picks one to train on and one to validate on:

* `folders`: PART/CLASS/*.jpg, the class of an image is its folder; the part `.` is CLASS/*.jpg;
* `parquet`: PART.parquet with columns `image` (encoded bytes), `label` (0, 1, ...) and, where the
  classes have names, `class`; read into memory whole, so for small images;
* `masks`: PART/images/NAME.* and PART/labels/NAME.png, a class per pixel in one channel of 8 bits;
* `edges`: images/PART/NAME.jpg with the annotators' boundaries in boundaries/PART/NAME.npz, or the
  Berkeley segmentation data as distributed, BSDS500/data/{images,groundTruth}/PART.

Where only one part has labels, `open_hold_out` holds some of its records out to validate on.
"""

from __future__ import annotations

import hashlib
import io
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import scipy.io
from numpy.typing import NDArray

from imgray.artifacts.folder import Folder, Skipped
from imgray.data.pixels import SUFFIXES
from imgray.errors import UserError

Format = Literal["folders", "parquet", "masks", "edges"]
WHOLE = "."
Record = dict[str, Any]
"""`id` and `image` (encoded bytes); `label` (int), `mask` (an encoded PNG), or `boundaries` (bool
(A, H, W), one map for each of A annotators)."""


class Dataset(ABC):
    """A part of a data set: a sequence of records.

    `classes` are the names of its classes in the order of the labels; empty where it has none.
    """

    classes: Sequence[str] = ()

    def __init__(self, folder: Folder, part: str) -> None:
        self.folder, self.part = folder, part

    def __len__(self) -> int:
        return len(self.names)

    def __reduce__(self) -> tuple[type[Dataset], tuple[Any, ...]]:
        """Another process opens the data set itself, rather than be sent it."""
        return type(self), (self.folder, self.part)

    @property
    @abstractmethod
    def names(self) -> Sequence[str]:
        """The ids of the records."""

    def labels(self) -> NDArray[np.int64]:
        """The labels (n,) of all records. Raises `UserError` where records have none."""
        raise UserError(f"part {self.part!r}: records without a label; see data.format")

    @abstractmethod
    def __getitem__(self, index: int) -> Record:
        """A record. Raises `UserError` when a file of it cannot be read."""


class Folders(Dataset):
    """One folder per class."""

    def __init__(self, folder: Folder, part: str) -> None:
        super().__init__(folder, part)
        found, prefix = _images(folder, part), "" if part == WHOLE else f"{part}/"
        self.files = [prefix + name for name in found]
        loose = [prefix + name for name in found if "/" not in name]
        if loose:
            raise UserError(f"{folder.uri}/{loose[0]}: an image outside a class's folder")
        folders = [name.partition("/")[0] for name in found]
        self.classes = sorted(set(folders))
        places = {name: place for place, name in enumerate(self.classes)}
        self.column = np.array([places[name] for name in folders], np.int64)

    @property
    def names(self) -> Sequence[str]:
        return self.files

    def labels(self) -> NDArray[np.int64]:
        return self.column

    def __getitem__(self, index: int) -> Record:
        name = self.files[index]
        return {"id": name, "image": self.folder.read(name), "label": int(self.column[index])}


class Parquet(Dataset):
    """One table of encoded images and labels."""

    def __init__(self, folder: Folder, part: str) -> None:
        super().__init__(folder, part)
        place = f"{folder.uri.rstrip('/')}/{part}.parquet"
        try:
            table = pq.read_table(io.BytesIO(folder.read(f"{part}.parquet")))
        except pa.ArrowInvalid as error:
            raise UserError(f"{place}: not a Parquet file: {error}") from None
        missing = {"image", "label"} - set(table.column_names)
        if missing:
            raise UserError(f"{place}: no column {min(missing)!r}")
        self.images = table["image"].combine_chunks()
        self.column = table["label"].to_numpy()
        ids = table["id"] if "id" in table.column_names else pa.array(range(len(table)))
        self.ids = [str(value) for value in ids.to_pylist()]
        self.classes = self._classes(table, place)

    def _classes(self, table: pa.Table, place: str) -> list[str]:
        if len(table) and (self.column.dtype.kind not in "iu" or self.column.min() < 0):
            raise UserError(f"{place}: column 'label' must hold whole numbers from 0")
        count = int(self.column.max()) + 1 if len(table) else 0
        if "class" not in table.column_names:
            return [str(label) for label in range(count)]
        pairs = set(zip(self.column.tolist(), table["class"].to_pylist(), strict=True))
        names = dict(pairs)
        if len(pairs) != len(names):
            raise UserError(f"{place}: a label has two names in column 'class'")
        return [str(names.get(label, label)) for label in range(count)]

    @property
    def names(self) -> Sequence[str]:
        return self.ids

    def labels(self) -> NDArray[np.int64]:
        return np.asarray(self.column, np.int64)

    def __getitem__(self, index: int) -> Record:
        image, label = self.images[index].as_py(), int(self.column[index])
        return {"id": self.ids[index], "image": image, "label": label}


class Masks(Dataset):
    """Photographs with a class for every pixel."""

    def __init__(self, folder: Folder, part: str) -> None:
        super().__init__(folder, part)
        self.files = _images(folder, f"{part}/images")
        have = set(_images(folder, f"{part}/labels"))
        self.masks = [str(PurePosixPath(name).with_suffix(".png")) for name in self.files]
        lost = [mask for mask in self.masks if mask not in have]
        if lost:
            raise UserError(f"{folder.uri}/{part}/labels/{lost[0]}: missing ({len(lost)} in all)")

    @property
    def names(self) -> Sequence[str]:
        return self.files

    def __getitem__(self, index: int) -> Record:
        name, mask = self.files[index], self.masks[index]
        return {
            "id": name,
            "image": self.folder.read(f"{self.part}/images/{name}"),
            "mask": self.folder.read(f"{self.part}/labels/{mask}"),
        }


class Edges(Dataset):
    """Photographs whose boundaries several people have drawn (BSDS500)."""

    def __init__(self, folder: Folder, part: str) -> None:
        super().__init__(folder, part)
        distributed = folder.exists("BSDS500/data/images")
        root = "BSDS500/data/" if distributed else ""
        self.images = f"{root}images/{part}"
        self.truths = f"{root}{'groundTruth' if distributed else 'boundaries'}/{part}"
        self.suffix = ".mat" if distributed else ".npz"
        self.files = _images(folder, self.images)

    @property
    def names(self) -> Sequence[str]:
        return self.files

    def __getitem__(self, index: int) -> Record:
        name = self.files[index]
        truth = f"{self.truths}/{PurePosixPath(name).with_suffix(self.suffix)}"
        data = self.folder.read(truth)
        try:
            boundaries = _from_mat(data) if self.suffix == ".mat" else _from_npz(data)
        except Exception as error:
            raise UserError(f"{self.folder.uri}/{truth}: no boundary maps: {error}") from None
        image = self.folder.read(f"{self.images}/{name}")
        return {"id": name, "image": image, "boundaries": boundaries}


def _from_npz(data: bytes) -> NDArray[np.bool_]:
    stored = np.load(io.BytesIO(data), allow_pickle=False)
    shape = tuple(int(n) for n in stored["shape"])
    return np.unpackbits(stored["boundaries"], axis=-1, count=shape[-1]).reshape(shape).astype(bool)


def _from_mat(data: bytes) -> NDArray[np.bool_]:
    truth = scipy.io.loadmat(io.BytesIO(data))["groundTruth"]
    return np.stack([one["Boundaries"][0, 0] for one in truth.ravel()]).astype(bool)


class HoldOut(Dataset):
    """The records of a data set that are held out, or those that are not.

    A hash of its id decides about a record, so it stays on its side when others come or go, and
    about `fraction` of all records are held out.

    Args:
        whole: the data set.
        fraction: between 0 and 1.
        held: the records that are held out; otherwise the others.
    """

    def __init__(self, whole: Dataset, fraction: float, held: bool) -> None:
        super().__init__(whole.folder, f"{whole.part} ({fraction:g} held out)")
        self.whole, self.fraction, self.held = whole, fraction, held
        self.classes = whole.classes
        self.rows = [
            row for row, id in enumerate(whole.names) if (_fraction(id) < fraction) == held
        ]
        self.ids = [whole.names[row] for row in self.rows]

    def __reduce__(self) -> tuple[type[Dataset], tuple[Any, ...]]:
        return type(self), (self.whole, self.fraction, self.held)

    @property
    def names(self) -> Sequence[str]:
        return self.ids

    def labels(self) -> NDArray[np.int64]:
        return self.whole.labels()[self.rows]

    def __getitem__(self, index: int) -> Record:
        return self.whole[self.rows[index]]


def _fraction(id: str) -> float:
    """A number from 0 to 1 that looks random and depends on the id alone."""
    return int.from_bytes(hashlib.sha256(id.encode()).digest()[:8]) / 2**64


def _images(folder: Folder, under: str) -> list[str]:
    place = folder if under == WHOLE else Folder(f"{folder.uri.rstrip('/')}/{under}")
    return [entry.id for entry in place.walk(SUFFIXES, Skipped())]


FORMATS: dict[str, type[Dataset]] = {
    "folders": Folders,
    "parquet": Parquet,
    "masks": Masks,
    "edges": Edges,
}


def open_dataset(folder: Folder, format: Format, part: str) -> Dataset:
    """Open a part of a data set, and check its structure.

    Raises:
        UserError: the part is missing or empty, or is not laid out as the format wants it.
    """
    try:
        found = FORMATS[format](folder, part)
    except UserError as error:
        raise UserError(f"part {part!r} of {folder.uri}, read as {format}: {error}") from None
    if not len(found):
        raise UserError(f"part {part!r} of {folder.uri}: no images; see data.train, data.validate")
    return found


def open_hold_out(
    folder: Folder, format: Format, part: str, fraction: float, held: bool
) -> HoldOut:
    """Open what is held out of a part of a data set, or what is not.

    Raises:
        UserError: as `open_dataset`, or nothing lies on this side.
    """
    whole = open_dataset(folder, format, part)
    found = HoldOut(whole, fraction, held)
    if not len(found):
        fault = "nothing is held out; hold out more" if held else "all is held out; hold out less"
        place = f"part {part!r} of {folder.uri}, {len(whole)} images"
        raise UserError(f"{place}: hold_out {fraction:g}: {fault}")
    return found
