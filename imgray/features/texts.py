"""Text encoders: what determines the vector of a text, and what each of them can do.

A text is brought to one form, so that one text has one vector: `cleaned`.
"""

from __future__ import annotations

import contextlib
import json
import unicodedata
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from imgray.artifacts.folder import Folder
from imgray.artifacts.manifest import FileEntry, local_file, read_file, scratch, sha256
from imgray.config import Precision
from imgray.data.fields import Text
from imgray.data.pixels import Rejected
from imgray.errors import UserError

LAYER = "high"
"""The only layer of a text encoder."""


class TextNet(BaseModel):
    """Everything that determines a text's vector: the encoder's files, by their digests, and more.

    files: names are relative to the encoder's own folder.
    longest: tokens at most, further ones are cut; None where all are read.
    query, passage: what is put before a text that is searched with, and before one that is stored.
    padded: whether texts are read padded to `longest` tokens, as in training.
    space: of a dual encoder, whose pictures lie in the same space, a digest of its model.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    library: Literal["sentence-transformers", "open_clip", "imgray"]
    files: tuple[FileEntry, ...]
    longest: int | None = None
    padded: bool = False
    query: str = ""
    passage: str = ""
    precision: Precision = "float32"
    space: str = ""

    @property
    def fingerprint(self) -> str:
        """SHA-256 over all of it."""
        return sha256(self.model_dump_json().encode())


class TextEncoder(ABC):
    """An encoder, whose files are opened when the first text comes.

    Args:
        config: what it is.
        place: the folder in which its files lie.
    """

    def __init__(self, config: TextNet, place: Folder) -> None:
        self.config, self.place, self.device = config, place, "cpu"

    def to(self, device: str) -> None:
        """Say where it is to run."""
        self.device = device

    def read(self, entry: FileEntry) -> bytes:
        """The verified content of one of its files. Raises `UserError`."""
        return read_file(self.place, entry)

    def refusal(self, text: str) -> str | None:
        """Why it makes no vector of a text, as `cleaned` gives it; None if it makes one."""
        return None

    @abstractmethod
    def encode(self, texts: Sequence[str], query: bool) -> NDArray[np.float32]:
        """Vectors of texts, each of which is the same whatever the others are.

        Args:
            texts: as `cleaned` gives them.
            query: whether they are searched with, rather than stored.

        Returns:
            float32 (B, C) of unit length.
        """


def cleaned(given: object) -> str:
    """A text in the form that encoders take.

    Unicode's composed form (NFC); control characters are white space, and any white space is one
    blank, none at the ends.

    Raises:
        Rejected: it is no text, longer than `LONGEST_TEXT`, holds half of a surrogate pair, or has
            nothing that a person would see.
    """
    text = unicodedata.normalize("NFC", Text().value(given))
    text = "".join(" " if unicodedata.category(letter) == "Cc" else letter for letter in text)
    text = " ".join(text.split())
    if not any(letter.isprintable() and letter != " " for letter in text):
        raise Rejected("an empty text")
    return text


@contextlib.contextmanager
def linked(place: Folder, files: Sequence[FileEntry]) -> Iterator[Path]:
    """A temporary folder with the verified files of an encoder, and with nothing else."""
    with scratch() as folder:
        for entry in files:
            path = folder / entry.name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.symlink_to(local_file(place, entry))
        yield folder


def files_at(place: Folder, suffixes: Sequence[str]) -> tuple[FileEntry, ...]:
    """The files of an encoder's folder that have one of these suffixes, hidden ones left out."""
    return tuple(
        FileEntry(name=name, size=size, sha256=place.sha256(name))
        for name, size in sorted(place.sizes().items())
        if name.endswith(tuple(suffixes)) and not any(p.startswith(".") for p in name.split("/"))
    )


def json_at(place: Folder, name: str, kind: type[list[Any]] | type[dict[str, Any]] = dict) -> Any:
    """The content of one of an encoder's JSON files, empty if there is none. Raises `UserError`."""
    if not place.exists(name):
        return kind()
    try:
        found = json.loads(place.read(name))
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, kind):
        raise UserError(f"{place.uri}/{name}: not the JSON of a model; fetch the model again")
    return found
