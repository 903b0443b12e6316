"""What clients send: pictures as bytes, as a form or by id, with options checked by one model each.

Options come in the query string, as fields of a form, or as the keys of a JSON object; those of a
request for a model by its name in the query string alone, so that they collide with no input. Of
texts and ids a form or a query string may hold several, one by one, where JSON has a list.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeVar

from fastapi import Request
from pydantic import ValidationError
from pydantic_core import from_json
from python_multipart.multipart import parse_options_header
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException

from imgray.data.fields import Input, Output, encodings_of, sole_picture
from imgray.serving.guard import Refusal, whole
from imgray.serving.options import AskOptions, Options

MOST_FIELDS = 20
PICTURE = "image"
"""The name of a picture in the form of a request about pictures alone."""
BODY = None
"""In place of a name: what is no part of a form or of a JSON object."""
JSON, PNG, JPEG = "application/json", "image/png", "image/jpeg"
MEDIA = {"png": PNG, "jpeg": JPEG}

Asked = TypeVar("Asked", bound=Options)
Recorded = TypeVar("Recorded", bound=AskOptions)


async def read(
    request: Request, model: type[Asked], longest: int, most: int = 1
) -> tuple[Asked, list[bytes]]:
    """The options and pictures of a request of at most `longest` bytes and `most` pictures.

    Raises:
        Refusal: it is not as the model says.
    """
    sent = await _content(await whole(request, longest), most)
    files = [(name, value) for name, value in sent if isinstance(value, bytes)]
    for name, _ in files:
        if name not in (BODY, PICTURE):
            raise Refusal(422, f"an unknown file; a picture is named {PICTURE!r}", name)
    words = [(name, value) for name, value in sent if not isinstance(value, bytes)]
    in_query = _listed(request.query_params.multi_items(), model.repeated)
    in_body = words if _media_type(request) == JSON else _listed(words, model.repeated)
    fields = _once([*in_query, *in_body])
    return validated(model, fields), [data for _, data in files]


async def read_record(
    request: Request, model: type[Recorded], inputs: Mapping[str, Input], longest: int
) -> tuple[Recorded, dict[str, Any]]:
    """The options of a request for a model, and its inputs by name, as they were sent.

    Raises:
        Refusal: something comes twice, or a mere picture that is not enough.
    """
    options = validated(model, _once(request.query_params.multi_items()))
    sent = await _content(await whole(request, longest), MOST_FIELDS + len(inputs))
    return options, _once((picture_of(inputs) if n is BODY else n, value) for n, value in sent)


def picture_of(inputs: Mapping[str, Input]) -> str:
    """The input that a mere picture is. Raises `Refusal` where there is no such."""
    name = sole_picture(inputs)
    if name is None:
        text = f"a mere picture, but this model takes {', '.join(inputs)}"
        raise Refusal(422, f"{text}: send a form or a JSON object to /v1/models/NAME", "body")
    return name


def wanted_picture(request: Request, outputs: Mapping[str, Output]) -> str | None:
    """The media type of the picture that a client prefers to JSON, of a model of these outputs.

    Raises:
        Refusal: it takes none of them.
    """
    asked = ",".join(request.headers.getlist("accept")) or "*/*"
    ranks = {kind: _rank(asked, kind) for kind in (JSON, *pictures_of(outputs))}
    best = max(ranks, key=lambda kind: ranks[kind])
    if not ranks[best][0]:
        raise Refusal(406, f"the answer is {' or '.join(ranks)}", "Accept")
    return None if best == JSON else best


def pictures_of(outputs: Mapping[str, Output]) -> tuple[str, ...]:
    """The media types that the picture of a model comes in."""
    return tuple(MEDIA[one] for one in encodings_of(outputs))


def _rank(asked: str, kind: str) -> tuple[float, int]:
    """How much an `Accept` header wants a media type (RFC 9110, 12.5.1), and how plainly.

    The most specific range that matches decides.
    """
    found = (0, 0.0)
    for place, wanted in enumerate(("*/*", f"{kind.partition('/')[0]}/*", kind)):
        for item in asked.split(","):
            name, _, more = item.lower().partition(";")
            if name.strip() == wanted:
                quality = re.search(r"(?:^|;)\s*q\s*=\s*(\d*\.?\d+)", more)
                found = (place, min(1.0, float(quality[1])) if quality else 1.0)
    return found[1], found[0]


def _listed(
    pairs: Iterable[tuple[str | None, Any]], lists: Mapping[str, str]
) -> Iterator[tuple[str | None, Any]]:
    """Fields, of which those that may come several times are gathered in lists of another name."""
    found: dict[str, list[Any]] = {}
    for name, value in pairs:
        if name is not None and name in lists:
            found.setdefault(lists[name], []).append(value)
        else:
            yield name, value
    yield from found.items()


def _once(pairs: Iterable[tuple[str | None, Any]]) -> dict[str, Any]:
    """Fields by name. Raises `Refusal` for one that is there already."""
    found: dict[Any, Any] = {}
    for name, value in pairs:
        if name in found:
            raise Refusal(422, "given twice", name)
        found[name] = value
    return found


async def _content(request: Request, most: int) -> list[tuple[str | None, Any]]:
    """The parts of a body by name: bytes are files, or under `BODY` the body itself.

    Args:
        request: its length is bounded.
        most: files of a form.
    """
    kind = _media_type(request)
    if kind == "multipart/form-data":
        return await _form(request, most)
    body = await request.body()
    if kind == JSON:
        return list(_object(body).items())
    return [(BODY, body)] if body else []


def _media_type(request: Request) -> str:
    """Of the body; none where nothing is said."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


async def _form(request: Request, most: int) -> list[tuple[str | None, Any]]:
    _, options = parse_options_header(request.headers["content-type"])
    if options.get(b"charset", b"utf-8").lower() != b"utf-8":
        raise Refusal(400, "the charset of the form is not UTF-8; send it in UTF-8", "body")
    limits = {"max_files": most, "max_fields": 2 * most + MOST_FIELDS}
    try:
        form = await request.form(**limits, max_part_size=len(await request.body()))
    except HTTPException as fault:
        raise Refusal(400, str(fault.detail), "body") from None
    items = form.multi_items()
    return [(n, await v.read() if isinstance(v, UploadFile) else v) for n, v in items]


def _object(body: bytes) -> dict[str, Any]:
    try:
        found = from_json(body)
    except ValueError:
        raise Refusal(400, "not JSON", "body") from None
    if not isinstance(found, dict):
        raise Refusal(422, "not a JSON object", "body")
    return found


def validated(model: type[Asked], fields: dict[str, Any]) -> Asked:
    """Options from fields. Raises `Refusal`, which names the first field at fault."""
    try:
        return model.model_validate(fields)
    except ValidationError as fault:
        first = fault.errors()[0]
        message = first["msg"].removeprefix("Value error, ")
        if first["type"] == "extra_forbidden":
            message = f"unknown; there are {', '.join(model.model_fields)}"
        raise Refusal(422, message, ".".join(map(str, first["loc"])) or None) from None
