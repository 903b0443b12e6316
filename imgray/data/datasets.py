"""Labelled collections, as training and evaluation read them: one record at a time.

A data set has named parts, of which a recipe picks one to train on and one to validate on. Of files
the truth is in

* `folders`: PART/CLASS/*.jpg, the class of an image is its folder; the part `.` is CLASS/*.jpg; or
  PARTA/*.jpg and PARTB/*.jpg, two domains as CycleGAN's data sets have them;
* `masks`: PART/images/NAME.* and PART/labels/NAME.png, a class per pixel in one channel of 8 bits;
* `boundaries`: images/PART/NAME.jpg with the annotators' boundaries in boundaries/PART/NAME.npz, or
  the Berkeley segmentation data as distributed, BSDS500/data/{images,groundTruth}/PART.

`imgray.data.sources` opens these, and tables, whose truth is in their columns.
"""

from __future__ import annotations

import hashlib
import io
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import compress
from pathlib import PurePosixPath
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from imgray.data.names import WHOLE, Names, Snapshot
from imgray.errors import UserError

Truth = Literal["folders", "masks", "boundaries", "columns"]
Record = dict[str, Any]
"""`id`, `group` where a table has it, and what the task takes by name: of files `image` (encoded
bytes), and `label` (int), `mask` (an encoded PNG), or `boundaries` (bool (A, H, W), one map for
each of A annotators)."""


class Dataset(ABC):
    """A part of a data set: a sequence of records.

    Attributes:
        part: its name, for messages.
        names: the ids of the records.
        classes: the names of its classes in the order of the labels; empty where it has none.
    """

    part: str
    names: Names
    classes: Sequence[str] = ()

    def __len__(self) -> int:
        return len(self.names)

    @abstractmethod
    def __getitem__(self, index: int) -> Record:
        """A record. Raises `UserError` when it is not what the task takes or cannot be read."""

    def records(self, rows: Sequence[int]) -> list[Record]:
        """Some records, in the order of their rows. Raises `UserError` as one of them does."""
        return [self[row] for row in rows]

    def drawn(self, index: int, chance: np.random.Generator) -> Record:
        """A record to learn from, of which what does not belong together is drawn by chance."""
        return self[index]

    def values(self, name: str) -> Iterator[Any]:
        """What all records hold under one name, in their order. Raises `UserError`."""
        return (self[index][name] for index in range(len(self)))

    def labels(self) -> NDArray[np.int64]:
        """The labels (n,) of all records. Raises `UserError` where records have none."""
        raise UserError(f"part {self.part!r}: records without a label; see data.truth")

    @property
    def keys(self) -> Names:
        """By which records are held out: those with equal ones together. Raises `UserError`."""
        return self.names

    @property
    def groups(self) -> Names:
        """Records with equal ones belong together: views of one person."""
        return self.names

    @property
    def pieces(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """In how many pieces of how many records it is read: both (P,), and bytes in memory."""
        return np.array([len(self)]), np.array([0])

    def check(self) -> None:  # noqa: B027 (of files nothing is cheap)
        """Refuse records that are not what a task takes, as far as that is cheap. `UserError`."""


class Files(Dataset):
    """A part that is files.

    Args:
        snapshot: of the data set.
        part: its name.
    """

    def __init__(self, snapshot: Snapshot, part: str) -> None:
        self.snapshot, self.folder, self.part = snapshot, snapshot.folder, part

    def __reduce__(self) -> tuple[Any, ...]:
        """Another process takes the names from the snapshot, rather than be sent them."""
        return type(self), (self.snapshot, self.part)


class Folders(Files):
    """One folder per class."""

    def __init__(self, snapshot: Snapshot, part: str) -> None:
        super().__init__(snapshot, part)
        if part != WHOLE and self.folder.exists(f"{part}A") and not self.folder.exists(part):
            found = {side: snapshot.images(f"{part}{side}") for side in "AB"}
            parts = [_under(f"{part}{side}/", names) for side, names in found.items()]
            folders = [side for side, names in found.items() for _ in names]
            self.names = Names(pa.concat_arrays(parts))
        else:
            names = snapshot.images(part)
            self.names = Names(_under("" if part == WHOLE else f"{part}/", names))
            folders = [name.rpartition("/")[0].partition("/")[0] for name in names]
        if "" in folders:
            loose = self.names[folders.index("")]
            raise UserError(f"{self.folder.uri}/{loose}: an image outside a class's folder")
        self.classes = sorted(set(folders))
        places = {name: place for place, name in enumerate(self.classes)}
        self.column = np.array([places[name] for name in folders], np.int64)

    def labels(self) -> NDArray[np.int64]:
        return self.column

    def __getitem__(self, index: int) -> Record:
        name = self.names[index]
        return {"id": name, "image": self.folder.read(name), "label": int(self.column[index])}


def _under(prefix: str, names: Names) -> pa.Array:
    """Names below a folder."""
    return pc.binary_join_element_wise(prefix, names.array, "")


class Masks(Files):
    """Photographs with a class for every pixel."""

    def __init__(self, snapshot: Snapshot, part: str) -> None:
        super().__init__(snapshot, part)
        self.names = snapshot.images(f"{part}/images")
        have = set(snapshot.images(f"{part}/labels"))
        lost = [mask for mask in map(_mask, self.names) if mask not in have]
        if lost:
            place = f"{self.folder.uri}/{part}/labels/{lost[0]}"
            raise UserError(f"{place}: missing ({len(lost)} in all)")

    def __getitem__(self, index: int) -> Record:
        name = self.names[index]
        return {
            "id": name,
            "image": self.folder.read(f"{self.part}/images/{name}"),
            "mask": self.folder.read(f"{self.part}/labels/{_mask(name)}"),
        }


def _mask(name: str) -> str:
    return str(PurePosixPath(name).with_suffix(".png"))


class Edges(Files):
    """Photographs whose boundaries several people have drawn (BSDS500)."""

    def __init__(self, snapshot: Snapshot, part: str) -> None:
        super().__init__(snapshot, part)
        distributed = self.folder.exists("BSDS500/data/images")
        root = "BSDS500/data/" if distributed else ""
        self.images = f"{root}images/{part}"
        self.truths = f"{root}{'groundTruth' if distributed else 'boundaries'}/{part}"
        self.suffix = ".mat" if distributed else ".npz"
        self.names = snapshot.images(self.images)

    def __getitem__(self, index: int) -> Record:
        name = self.names[index]
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
    import scipy.io  # slow to load, and few data sets need it

    truth = scipy.io.loadmat(io.BytesIO(data))["groundTruth"]
    return np.stack([one["Boundaries"][0, 0] for one in truth.ravel()]).astype(bool)


FILES: dict[Truth, type[Files]] = {"folders": Folders, "masks": Masks, "boundaries": Edges}


class HoldOut(Dataset):
    """The records of a data set that are held out, or those that are not.

    A hash of its key decides about a record, so it stays on its side when others come or go, those
    with one key stay together, and about `fraction` of all records are held out.

    Args:
        whole: the data set.
        fraction: between 0 and 1.
        held: the records that are held out; otherwise the others.
    """

    def __init__(self, whole: Dataset, fraction: float, held: bool) -> None:
        self.part = f"{whole.part} ({fraction:g} held out)"
        self.whole, self.fraction, self.held = whole, fraction, held
        self.classes = whole.classes
        held_out = np.fromiter((_fraction(key) < fraction for key in whole.keys), bool)
        self.rows = np.flatnonzero(held_out == held)
        self.names = whole.names.take(self.rows)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.whole, self.fraction, self.held)

    def values(self, name: str) -> Iterator[Any]:
        chosen = np.zeros(len(self.whole), bool)
        chosen[self.rows] = True
        return compress(self.whole.values(name), chosen)

    def labels(self) -> NDArray[np.int64]:
        return self.whole.labels()[self.rows]

    @property
    def groups(self) -> Names:
        return self.whole.groups.take(self.rows)

    def __getitem__(self, index: int) -> Record:
        return self.whole[int(self.rows[index])]

    @cached_property
    def pieces(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        counts, sizes = self.whole.pieces
        whose = np.repeat(np.arange(len(counts)), counts)[self.rows]
        return np.bincount(whose, minlength=len(counts)), sizes

    def check(self) -> None:
        self.whole.check()


def _fraction(id: str) -> float:
    """A number from 0 to 1 that looks random and depends on the id alone."""
    return int.from_bytes(hashlib.sha256(id.encode()).digest()[:8]) / 2**64
