"""What clients send: pictures as bytes, as a form or by id, with options checked by one model each.

Options come in the query string, as fields of a form, or as the keys of a JSON object.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Annotated, Any, TypeVar

from fastapi import Request
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic_core import from_json
from python_multipart.multipart import parse_options_header
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException

from imgray.serving.guard import Refusal, whole

MOST_RESULTS = 1000
LONGEST_ID = 1024
PICTURES = "image"


def _parsed(value: Any) -> Any:
    """JSON in a query string or a form."""
    if not isinstance(value, str):
        return value
    try:
        return from_json(value)
    except ValueError:
        raise ValueError("not a JSON object") from None


Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Id = Annotated[str, Field(min_length=1, max_length=LONGEST_ID)]


class ImageOptions(BaseModel):
    """Options of a request about one picture."""

    model_config = ConfigDict(extra="forbid")

    id: Id | None = Field(default=None, description="an indexed image instead of a picture")


class PictureOptions(ImageOptions):
    """Options of a request for a model."""

    model: str | None = Field(default=None, description="name of the model (default: the first)")


class PaintOptions(PictureOptions):
    """Options of a request for a model that paints."""

    picture: bool = Field(default=False, description="also the PNG, in the JSON as a data URI")


class ClassifyOptions(PictureOptions):
    """Options of a classification."""

    top: int = Field(default=5, ge=1, le=100, description="classes, best first")


class Ranking(BaseModel):
    """Options of a search."""

    model_config = ConfigDict(extra="forbid")

    top: int = Field(default=10, ge=1, le=MOST_RESULTS, description="results at most")
    prefix: str = Field(
        default="", max_length=LONGEST_ID, description="only ids that start with this"
    )
    weights: Annotated[dict[str, Weight], BeforeValidator(_parsed)] = Field(
        default={}, description="weight of each feature in the comparison, 1 where not named"
    )


class SearchOptions(Ranking, ImageOptions):
    """Options of a search with one picture."""


class BatchOptions(Ranking):
    """Options of a search with several pictures."""

    ids: Annotated[list[Id], BeforeValidator(_parsed)] = Field(
        default=[], description="indexed images instead of pictures"
    )


class PageOptions(BaseModel):
    """A piece of the collection's listing."""

    model_config = ConfigDict(extra="forbid")

    offset: int = Field(default=0, ge=0, le=2**53)
    limit: int = Field(default=24, ge=1, le=1000)


class SizeOptions(BaseModel):
    """The size of a picture."""

    model_config = ConfigDict(extra="forbid")

    size: int = Field(default=256, ge=32, le=1024, description="pixels of the longer side at most")


class SwapOptions(BaseModel):
    """The index to move to."""

    model_config = ConfigDict(extra="forbid")

    index: str = Field(min_length=1, max_length=4096, description="URI of an index artifact")
    seconds: float = Field(
        default=600, gt=0, le=86400, allow_inf_nan=False, description="to wait for all replicas"
    )


Options = TypeVar("Options", bound=BaseModel)


@dataclass
class Sent:
    """The fields and the pictures of a request."""

    fields: dict[str, Any] = field(default_factory=dict)
    pictures: list[bytes] = field(default_factory=list)

    def add(self, pairs: Iterable[tuple[str, Any]]) -> None:
        """Take fields. Raises `Refusal` for one that is there already."""
        for name, value in pairs:
            if name in self.fields:
                raise Refusal(422, "given twice", name)
            self.fields[name] = value


async def read(
    request: Request, model: type[Options], longest: int, most: int = 1
) -> tuple[Options, list[bytes]]:
    """The options and pictures of a request of at most `longest` bytes and `most` pictures.

    Raises:
        Refusal: it is not as the model says.
    """
    request = await whole(request, longest)
    sent = Sent()
    sent.add(request.query_params.multi_items())
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "multipart/form-data":
        await _read_form(request, sent, most)
    elif kind == "application/json":
        sent.add(_object(await request.body()).items())
    else:
        body = await request.body()
        sent.pictures = [body] if body else []
    return validated(model, sent.fields), sent.pictures


async def _read_form(request: Request, sent: Sent, most: int) -> None:
    _, options = parse_options_header(request.headers["content-type"])
    if options.get(b"charset", b"utf-8").lower() != b"utf-8":
        raise Refusal(400, "the charset of the form is not UTF-8; send it in UTF-8", "body")
    try:
        form = await request.form(max_files=most, max_fields=20)
    except HTTPException as fault:
        raise Refusal(400, str(fault.detail), "body") from None
    for name, value in form.multi_items():
        if not isinstance(value, UploadFile):
            sent.add([(name, value)])
        elif name == PICTURES:
            sent.pictures.append(await value.read())
        else:
            raise Refusal(422, f"an unknown file; a picture is named {PICTURES!r}", name)


def _object(body: bytes) -> dict[str, Any]:
    try:
        found = from_json(body)
    except ValueError:
        raise Refusal(400, "not JSON", "body") from None
    if not isinstance(found, dict):
        raise Refusal(422, "not a JSON object", "body")
    return found


def validated(model: type[Options], fields: dict[str, Any]) -> Options:
    """Options from fields. Raises `Refusal`, which names the first field at fault."""
    try:
        return model.model_validate(fields)
    except ValidationError as fault:
        first = fault.errors()[0]
        message = first["msg"].removeprefix("Value error, ")
        if first["type"] == "extra_forbidden":
            message = f"unknown; there are {', '.join(model.model_fields)}"
        raise Refusal(422, message, ".".join(map(str, first["loc"])) or None) from None


def documented(model: type[BaseModel], *types: str, pictures: bool = True) -> dict[str, Any]:
    """OpenAPI of a request that `read` reads, and of further types that its answer may have."""
    schema = model.model_json_schema(ref_template="#/components/schemas/{model}")
    binary = {"type": "string", "format": "binary"}
    content: dict[str, Any] = {"application/json": {"schema": schema}}
    found: dict[str, Any] = {"requestBody": {"content": content}}
    if pictures:
        form = {**schema, "properties": {PICTURES: binary, **schema["properties"]}}
        content |= {"application/octet-stream": {"schema": binary}}
        content |= {"multipart/form-data": {"schema": form}}
        found |= in_query(model)
    if types:
        found["responses"] = {"200": {"content": {kind: {"schema": binary} for kind in types}}}
    return found


def in_query(model: type[BaseModel]) -> dict[str, Any]:
    """OpenAPI of options in the query string; objects and lists come as JSON."""
    schemas = model.model_json_schema()["properties"]
    parameters = []
    for name, one in schemas.items():
        described = {"name": name, "in": "query", "description": one.pop("description", "")}
        if one.get("type") in ("object", "array"):
            one, described["description"] = {"type": "string"}, f"{described['description']} (JSON)"
        parameters.append({**described, "required": False, "schema": one})
    return {"parameters": parameters}
