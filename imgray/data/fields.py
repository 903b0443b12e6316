"""What a task takes and what it gives, declared by name.

    inputs = {"photo": Picture(), "caption": Text(optional=True)}
    outputs = {"labels": Labels(), "picture": Picture()}

From the inputs follow the columns of tables, the fields of HTTP requests, their documentation and
the controls of the web page; from the outputs the columns of predictions and the answers over HTTP.
A prediction is a row of a table and, where a task paints, one picture beside it.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from imgray.config import Encoding
from imgray.data.pixels import MAX_BYTES, Rejected
from imgray.errors import brief

Values = Mapping[str, Any]
"""The inputs of one record by name."""
Row = Mapping[str, Any]
"""A row of the predictions table by column."""
LONGEST_TEXT = 10_000
DIGITS = 6
"""Decimal places of scores over HTTP."""


class Field(ABC):
    """What an input or an output is."""

    type: ClassVar[str]
    """The word for it in documentation."""

    def details(self) -> dict[str, Any]:
        """What else a client must know of it."""
        return {}


@dataclass(frozen=True, kw_only=True)
class Input(Field):
    """What a task takes.

    optional: whether a record may lack it.
    """

    optional: bool = False

    @abstractmethod
    def value(self, given: Any) -> Any:
        """What a task is handed for a cell of a table or a field of a request.

        Raises:
            Rejected: it is of another type, or too much of it.
        """

    @property
    @abstractmethod
    def schema(self) -> dict[str, Any]:
        """JSON Schema of the value in a JSON request."""


class Output(Field):
    """What a task gives."""

    painted: ClassVar[bool] = False
    """Whether it is the picture beside the row, of which a task has one at most."""

    @abstractmethod
    def columns(self, name: str) -> list[pa.Field]:
        """The columns that hold it."""

    @abstractmethod
    def answer(self, name: str, row: Row) -> Any:
        """Its value in a JSON answer."""

    @property
    @abstractmethod
    def answer_schema(self) -> dict[str, Any]:
        """JSON Schema of that value."""


@dataclass(frozen=True, kw_only=True)
class Picture(Input, Output):
    """A picture.

    Taken: encoded bytes, which `imgray.data.pixels` decodes. Given: uint8 (H, W, 3) or (H, W), as a
    PNG beside the row.
    """

    type = "picture"
    painted = True

    def value(self, given: Any) -> bytes:
        if isinstance(given, Mapping) and given.get("bytes") is not None:  # of Hugging Face
            given = given["bytes"]
        if not isinstance(given, bytes):
            raise Rejected(f"{_kind(given)}, where a picture is expected")
        if len(given) > MAX_BYTES:
            raise Rejected(f"a picture of {len(given):,} bytes; at most {MAX_BYTES:,} are read")
        return given

    @property
    def schema(self) -> dict[str, Any]:
        return {"type": "string", "minLength": 1, "description": "id of an indexed picture"}

    def columns(self, name: str) -> list[pa.Field]:
        return []

    def answer(self, name: str, row: Row) -> Any:
        raise TypeError("a picture is no part of a row")

    @property
    def answer_schema(self) -> dict[str, Any]:
        data = {"type": "string", "description": "the PNG as a data URI, if it was asked for"}
        return _object({"width": _INTEGER, "height": _INTEGER, "data": data})


@dataclass(frozen=True)
class ClassMap(Picture):
    """A class for every pixel: places in `labels`.

    Taken: an encoded PNG of one channel of 8 bits. Given: uint8 (H, W).
    """

    type = "class map"
    labels: tuple[str, ...]

    def details(self) -> dict[str, Any]:
        return {"labels": list(self.labels)}


@dataclass(frozen=True, kw_only=True)
class Text(Input, Output):
    """A text, not blank.

    longest: characters at most of a text that is taken.
    choices: the texts that are taken, where not all are.
    """

    type = "text"
    longest: int = LONGEST_TEXT
    choices: tuple[str, ...] = ()

    def value(self, given: Any) -> str:
        if not isinstance(given, str):
            raise Rejected(f"{_kind(given)}, where a text is expected")
        if len(given) > self.longest:
            raise Rejected(
                f"a text of {len(given):,} characters; at most {self.longest:,} are read"
            )
        if not given.strip():
            raise Rejected("an empty text")
        if any("\ud800" <= letter <= "\udfff" for letter in given):
            raise Rejected("a text with half of a surrogate pair, which is no Unicode")
        if self.choices and given not in self.choices:
            raise Rejected(f"no '{brief(given)}'; there are {', '.join(self.choices)}")
        return given

    @property
    def schema(self) -> dict[str, Any]:
        chosen = {"enum": list(self.choices)} if self.choices else {}
        return {"type": "string", "minLength": 1, "maxLength": self.longest, **chosen}

    def details(self) -> dict[str, Any]:
        chosen = {"choices": list(self.choices)} if self.choices else {}
        return {"longest": self.longest, **chosen}

    def columns(self, name: str) -> list[pa.Field]:
        return [pa.field(name, pa.string())]

    def answer(self, name: str, row: Row) -> str:
        return str(row[name])

    @property
    def answer_schema(self) -> dict[str, Any]:
        return {"type": "string"}


@dataclass(frozen=True)
class Vector(Input, Output):
    """`dim` finite numbers: float32 (dim,)."""

    type = "vector"
    dim: int

    def value(self, given: Any) -> NDArray[np.float32]:
        return _numbers(given, (self.dim,))

    @property
    def schema(self) -> dict[str, Any]:
        return _array(_NUMBER, self.dim)

    def details(self) -> dict[str, Any]:
        return {"dim": self.dim}

    def columns(self, name: str) -> list[pa.Field]:
        return [pa.field(name, pa.list_(pa.float32(), self.dim))]

    def answer(self, name: str, row: Row) -> list[float]:
        return [float(number) for number in row[name]]

    @property
    def answer_schema(self) -> dict[str, Any]:
        return self.schema


@dataclass(frozen=True)
class KeyPoints(Input):
    """Where the points of a skeleton, given by their names, lie in a picture.

    float32 (K, 3): x and y in pixels, and visibility from 0 to 1.
    """

    type = "key points"
    skeleton: tuple[str, ...]

    def value(self, given: Any) -> NDArray[np.float32]:
        return _numbers(given, (len(self.skeleton), 3))

    @property
    def schema(self) -> dict[str, Any]:
        return _array(_array(_NUMBER, 3), len(self.skeleton))

    def details(self) -> dict[str, Any]:
        return {"skeleton": list(self.skeleton)}


@dataclass(frozen=True, kw_only=True)
class Label(Input):
    """The class of a record: its number from 0 (int) or its name (str)."""

    type = "label"

    def value(self, given: Any) -> int | str:
        if isinstance(given, bool) or not isinstance(given, int | str):
            raise Rejected(f"{_kind(given)}, where a class is expected")
        return given

    @property
    def schema(self) -> dict[str, Any]:
        return {"type": ["integer", "string"]}


@dataclass(frozen=True, kw_only=True)
class Boundaries(Input):
    """The boundaries that several people have drawn in a picture: bool (A, H, W), A >= 1."""

    type = "boundaries"

    def value(self, given: Any) -> NDArray[np.bool_]:
        try:
            found = np.asarray(given)
        except ValueError:  # lists of several lengths
            found = np.empty(0)
        if found.ndim != 3 or not len(found) or found.dtype.kind not in "biu":
            raise Rejected("maps of boundaries, annotators x height x width, are expected")
        return found.astype(bool)

    @property
    def schema(self) -> dict[str, Any]:
        return {"type": "array", "items": {"type": "array", "items": {"type": "array"}}}


@dataclass(frozen=True)
class Labels(Output):
    """Classes with their scores, from 0 to 1: two lists, of which `NAME` holds the classes.

    scores: the column of the scores, `NAME_scores` where it is not set.
    best: columns that hold the first class and its score once more.
    """

    type = "labels"
    scores: str | None = None
    best: tuple[str, str] | None = None

    def columns(self, name: str) -> list[pa.Field]:
        kinds = pa.string(), pa.float32()
        lists = zip((name, self._scores(name)), kinds, strict=True)
        found = [pa.field(column, pa.list_(kind)) for column, kind in lists]
        first = zip(self.best, kinds, strict=True) if self.best else ()
        return [*(pa.field(*pair) for pair in first), *found]

    def pairs(self, name: str, row: Row) -> list[tuple[str, float]]:
        """Classes with their scores, best first."""
        pairs = zip(row[name], row[self._scores(name)], strict=True)
        return sorted(pairs, key=lambda pair: -pair[1])

    def answer(self, name: str, row: Row) -> list[dict[str, Any]]:
        pairs = self.pairs(name, row)
        return [{"name": label, "score": round(score, DIGITS)} for label, score in pairs]

    @property
    def answer_schema(self) -> dict[str, Any]:
        pair = _object({"name": {"type": "string"}, "score": _NUMBER})
        return {"type": "array", "items": pair}

    def _scores(self, name: str) -> str:
        return self.scores or f"{name}_scores"


@dataclass(frozen=True)
class Scores(Output):
    """Numbers by name, a column each; without names one number, in the column `NAME`."""

    type = "scores"
    names: tuple[str, ...] = ()

    def details(self) -> dict[str, Any]:
        return {"names": list(self.names)} if self.names else {}

    def columns(self, name: str) -> list[pa.Field]:
        return [pa.field(one, pa.float32()) for one in self.names or (name,)]

    def answer(self, name: str, row: Row) -> Any:
        found = {one: round(row[one], DIGITS) for one in self.names or (name,)}
        return found if self.names else found[name]

    @property
    def answer_schema(self) -> dict[str, Any]:
        return _object(dict.fromkeys(self.names, _NUMBER)) if self.names else _NUMBER


def checked(inputs: Mapping[str, Input], given: Values) -> dict[str, Any]:
    """The values of one record, each as its input says. None counts as absent.

    Raises:
        Rejected: the first that is wrong, missing or not declared, by its name.
    """
    for name in given:
        if name not in inputs:
            raise Rejected(f"{name}: no such input; there are {', '.join(inputs)}")
    found = {}
    for name, one in inputs.items():
        if given.get(name) is not None:
            found[name] = value_of(name, one, given[name])
        elif not one.optional:
            raise Rejected(f"{name}: missing")
    return found


def value_of(name: str, one: Input, given: Any) -> Any:
    """`Input.value`. Raises `Rejected`, which names the input."""
    try:
        return one.value(given)
    except Rejected as error:
        raise Rejected(f"{name}: {error}") from None


def sole_picture(inputs: Mapping[str, Input]) -> str | None:
    """The input that a mere picture fills: the only one that is required, or else the first."""
    required = [name for name, one in inputs.items() if not one.optional] or list(inputs)[:1]
    sole = len(required) == 1 and inputs[required[0]].type == Picture.type
    return required[0] if sole else None


def encodings_of(outputs: Mapping[str, Output]) -> tuple[Encoding, ...]:
    """In which what is painted, if anything is, can be kept; a class map would be lost in JPEG."""
    painted = next((one for one in outputs.values() if one.painted), None)
    if painted is None:
        return ()
    return ("png",) if isinstance(painted, ClassMap) else ("png", "jpeg")


def first_picture(inputs: Mapping[str, Input]) -> str | None:
    """The input that shows a record to a person."""
    return next((name for name, one in inputs.items() if one.type == Picture.type), None)


_NUMBER, _INTEGER = {"type": "number"}, {"type": "integer"}


def _numbers(given: Any, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Finite numbers of a shape, from an array, from lists, flat or nested, or from JSON."""
    expected = f"{' x '.join(map(str, shape))} numbers are expected"
    if isinstance(given, str):
        try:
            given = json.loads(given)
        except (ValueError, RecursionError):
            raise Rejected(f"a text that is no JSON, where {expected}") from None
    if _holds_others(given):
        raise Rejected(f"truth values or texts, where {expected}")
    try:
        with np.errstate(over="ignore"):
            found = np.asarray([] if given is None else given, np.float32)
    except (TypeError, ValueError, OverflowError):
        raise Rejected(f"{_kind(given)}, where {expected}") from None
    if found.shape not in (shape, (int(np.prod(shape)),)):
        raise Rejected(f"{' x '.join(map(str, found.shape)) or 'one'} numbers, where {expected}")
    if not np.isfinite(found).all():
        raise Rejected("a number that is not finite")
    return found.reshape(shape)


def _holds_others(given: Any) -> bool:
    """Whether there are truth values or texts in an array or in lists."""
    if isinstance(given, np.ndarray) and given.dtype.kind != "O":
        return given.dtype.kind not in "iuf"
    parts = np.asarray(given, object).ravel()
    return not {bool, np.bool_, str, bytes}.isdisjoint(map(type, parts))


def _kind(given: Any) -> str:
    names = {
        str: "a text",
        bytes: "bytes",
        bool: "a truth value",
        list: "a list",
        dict: "an object",
    }
    if given is None:
        return "nothing"
    return (
        "a number" if type(given) in (int, float) else names.get(type(given), type(given).__name__)
    )


def _object(properties: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": properties}


def _array(items: dict[str, Any], length: int) -> dict[str, Any]:
    return {"type": "array", "items": items, "minItems": length, "maxItems": length}
