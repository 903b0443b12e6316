"""The options of requests: one model each, which also documents them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from pydantic_core import from_json

from imgray.config import Fusion
from imgray.data.fields import LONGEST_TEXT, Text
from imgray.data.pixels import Rejected

MOST_RESULTS = 1000
LONGEST_ID = 1024


def _parsed(value: Any) -> Any:
    """JSON in a query string or a form."""
    if not isinstance(value, str):
        return value
    try:
        return from_json(value)
    except ValueError:
        raise ValueError("not JSON") from None


def _text(value: Any) -> str:
    try:
        return Text().value(value)
    except Rejected as fault:
        raise ValueError(str(fault)) from None


Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Id = Annotated[str, Field(min_length=1, max_length=LONGEST_ID)]
Words = Annotated[str, BeforeValidator(_text), Field(min_length=1, max_length=LONGEST_TEXT)]


class Options(BaseModel):
    """Base of all. Unknown keys are refused."""

    model_config = ConfigDict(extra="forbid")

    repeated: ClassVar[Mapping[str, str]] = {}
    """What may come several times in a form or a query string: each makes a list of this name."""


class ImageOptions(Options):
    """Options of a request about one picture."""

    id: Id | None = Field(default=None, description="an indexed image instead of a picture")


class EmbedOptions(ImageOptions):
    """Options of a request about one picture or one text."""

    text: Words | None = Field(default=None, description="words instead of a picture")


class SeveralOptions(Options):
    """Options of a request about several pictures and texts."""

    repeated = {"id": "ids", "text": "texts"}

    ids: Annotated[list[Id], BeforeValidator(_parsed)] = Field(
        default=[], description="indexed images instead of pictures"
    )
    texts: Annotated[list[Words], BeforeValidator(_parsed)] = Field(
        default=[], description="words, each a query of its own"
    )


class PictureOptions(ImageOptions):
    """Options of a request for a model."""

    model: str | None = Field(default=None, description="name of the model (default: the first)")

    @property
    def inputs(self) -> dict[str, Any]:
        """Of the model, beside the picture."""
        return {}


class MatchOptions(SeveralOptions):
    """Options of a request to compare pictures with texts."""

    model: str | None = Field(
        default=None,
        description="name of a model that matches (default: the first, or else the index's own)",
    )


class AskOptions(Options):
    """Options of a request for a model by its name."""

    picture: bool = Field(default=False, description="also the PNG, in the JSON as a data URI")
    longest: int | None = Field(
        default=None,
        ge=8,
        le=2**16,
        description="scale longer pictures down to so many pixels, of a model that takes all sizes",
    )


class NamedOptions(AskOptions):
    """Options of a request for a model of a kind, with all that it takes."""

    model: str | None = Field(default=None, description="name of the model (default: the first)")


class PaintOptions(PictureOptions, AskOptions):
    """Options of a request for a model that paints."""


class TranslateOptions(PaintOptions):
    """Options of a translation."""

    to: str | None = Field(
        default=None, description="domain to translate into (default: the second)"
    )

    @property
    def inputs(self) -> dict[str, Any]:
        return {} if self.to is None else {"to": self.to}


class ClassifyOptions(PictureOptions):
    """Options of a classification."""

    top: int = Field(default=5, ge=1, le=100, description="classes, best first")


class Ranking(Options):
    """Options of a search."""

    top: int = Field(default=10, ge=1, le=MOST_RESULTS, description="results at most")
    prefix: str = Field(
        default="", max_length=LONGEST_ID, description="only ids that start with this"
    )
    weights: Annotated[dict[str, Weight], BeforeValidator(_parsed)] = Field(
        default={}, description="weight of each feature in the comparison, 1 where not named"
    )
    modalities: Annotated[dict[Literal["image", "text"], Weight], BeforeValidator(_parsed)] = Field(
        default={},
        description="weight of the ranking by the picture and of that by the text, 1 where not "
        "named; 0 leaves it out",
    )
    fusion: Fusion = Field(
        default="average", description="how the two rankings become one, if both are asked for"
    )


class SearchOptions(Ranking, ImageOptions):
    """Options of a search with a picture, with words, or with both."""

    text: Words | None = Field(default=None, description="words to search with")


class BatchOptions(Ranking, SeveralOptions):
    """Options of several searches, each with one picture or one text."""


class PageOptions(Options):
    """A piece of the collection's listing."""

    offset: int = Field(default=0, ge=0, le=2**53)
    limit: int = Field(default=24, ge=1, le=1000)


class SizeOptions(Options):
    """The size of a picture."""

    size: int = Field(default=256, ge=32, le=1024, description="pixels of the longer side at most")


class SwapOptions(Options):
    """The index to move to."""

    index: str = Field(min_length=1, max_length=4096, description="URI of an index artifact")
    seconds: float = Field(
        default=600, gt=0, le=86400, allow_inf_nan=False, description="to wait for all replicas"
    )
