"""The description of the API: what requests may hold, and a route for each model that is served."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from fastapi import FastAPI

from imgray.data.fields import ClassMap, Input, Output, Picture, sole_picture
from imgray.serving.models import Served
from imgray.serving.options import AskOptions, Options
from imgray.serving.requests import PICTURE, pictures_of
from imgray.training.task import longest_of

ASK = "/v1/models/{name}"
"""The route that stands for one of every model."""
SWAP = "/v1/swap"
"""The route of the models that swap, whose inputs are those of the first of them."""
BINARY = {"type": "string", "format": "binary"}


def documented(model: type[Options], *types: str, pictures: bool = True) -> dict[str, Any]:
    """OpenAPI of a request that `read` reads, and of further types that its answer may have."""
    schema = model.model_json_schema(ref_template="#/components/schemas/{model}")
    content: dict[str, Any] = {"application/json": {"schema": schema}}
    found: dict[str, Any] = {"requestBody": {"content": content}}
    if pictures:
        files = {"type": "array", "items": BINARY} if model.repeated else BINARY
        form = {**schema, "properties": {PICTURE: files, **_fields(model)}}
        content |= {"application/octet-stream": {"schema": BINARY}}
        content |= {"multipart/form-data": {"schema": form}}
        found |= in_query(model)
    return {**found, **_pictures(*types)}


def of_form(model: type[Options], *types: str) -> dict[str, Any]:
    """OpenAPI of a request with options in the query string, and a form of a model's inputs."""
    content = {"multipart/form-data": {"schema": {"type": "object"}}}
    return {**in_query(model), "requestBody": {"content": content}, **_pictures(*types)}


def _pictures(*types: str) -> dict[str, Any]:
    """OpenAPI of answers that are pictures, of some media types."""
    content = {kind: {"schema": BINARY} for kind in types}
    return {"responses": {"200": {"content": content}}} if types else {}


def in_query(model: type[Options], but: Collection[str] = ()) -> dict[str, Any]:
    """OpenAPI of options in the query string; objects come as JSON, and lists field by field.

    `but`: names of options that are left out.
    """
    parameters = []
    for name, one in _fields(model).items():
        if name in but:
            continue
        described = {"name": name, "in": "query", "description": one.pop("description", "")}
        if one.get("type") == "object":
            one, described["description"] = {"type": "string"}, f"{described['description']} (JSON)"
        parameters.append({**described, "required": False, "schema": one})
    return {"parameters": parameters}


def _fields(model: type[Options]) -> dict[str, Any]:
    """JSON Schema of options by the names that they have where no list can be sent."""
    names = {several: one for one, several in model.repeated.items()}
    schemas = model.model_json_schema()["properties"]
    return {names.get(name, name): one for name, one in schemas.items()}


def description(app: FastAPI, models: Iterable[Served], indexed: bool) -> dict[str, Any]:
    """The OpenAPI of an application that serves some models, where a key may be needed.

    Args:
        app: the application.
        models: each gets the route `ASK`, with its name, as it is declared.
        indexed: whether there is an index, whose pictures have ids.
    """
    schema = FastAPI.openapi(app)
    paths = dict(schema["paths"])
    any_model = paths.pop(ASK)["post"]
    models = list(models)
    swap = next((model for model in models if model.task.kind == "swap"), None)
    if swap:
        paths[SWAP]["post"]["requestBody"] = {"content": _bodies(swap.inputs, indexed)}
    paths |= {ASK.format(name=m.name): {"post": _asked(any_model, m, indexed)} for m in models}
    security = {"securitySchemes": {"key": {"type": "http", "scheme": "bearer"}}}
    return {
        **schema,
        "paths": paths,
        "components": {**schema["components"], **security},
        "security": [{"key": []}, {}],
    }


def _asked(any_model: Mapping[str, Any], model: Served, indexed: bool) -> dict[str, Any]:
    """OpenAPI of a model's route, from that of any model."""
    task = model.task
    always = [] if any(one.optional for one in model.inputs.values()) else list(task.outputs)
    answer = {
        "model": {"type": "string"},
        "fingerprint": {"type": "string"},
        "outputs": _object({name: _output(one) for name, one in task.outputs.items()}, always),
    }
    content = {"application/json": {"schema": _object(answer)}}
    content |= {kind: {"schema": BINARY} for kind in pictures_of(task.outputs)}
    return {
        **any_model,
        **in_query(AskOptions, () if longest_of(task) else ("longest",)),
        "summary": f"Ask {model.name}",
        "operationId": f"ask_{model.name}",
        "requestBody": {"content": _bodies(model.inputs, indexed)},
        "responses": {
            **any_model["responses"],
            "200": {**any_model["responses"]["200"], "content": content},
        },
    }


def _bodies(inputs: Mapping[str, Input], indexed: bool) -> dict[str, Any]:
    """By media type what a request may hold."""
    found = {"multipart/form-data": {"schema": _record(inputs, _in_form)}}
    sent = {n: one for n, one in inputs.items() if indexed or not isinstance(one, Picture)}
    if all(one.optional for name, one in inputs.items() if name not in sent):
        found["application/json"] = {"schema": _record(sent, _in_json)}
    if sole_picture(inputs):
        found["application/octet-stream"] = {"schema": BINARY}
    return found


def _record(inputs: Mapping[str, Input], described: Any) -> dict[str, Any]:
    required = [name for name, one in inputs.items() if not one.optional]
    found = {name: described(one) for name, one in inputs.items()}
    return _object(found, required) | {"additionalProperties": False}


def _in_form(one: Input) -> dict[str, Any]:
    """A picture is a file, a text itself, and all else JSON in a text."""
    if isinstance(one, Picture):
        return BINARY
    if one.schema["type"] == "string":
        return one.schema
    return {"type": "string", "contentMediaType": "application/json", "contentSchema": one.schema}


def _in_json(one: Input) -> dict[str, Any]:
    return {"anyOf": [one.schema, {"type": "null"}]} if one.optional else one.schema


def _output(one: Output) -> dict[str, Any]:
    if not isinstance(one, ClassMap):
        return one.answer_schema
    text = {"type": "string"}
    legend = {"type": "array", "items": _object({"name": text, "color": text})}
    picture = one.answer_schema
    return {**picture, "properties": {**picture["properties"], "labels": legend}}


def _object(properties: Mapping[str, Any], required: Iterable[str] | None = None) -> dict[str, Any]:
    """An object whose properties are all required, if nothing else is said."""
    needed = list(properties if required is None else required)
    return {"type": "object", "properties": dict(properties), "required": needed}
