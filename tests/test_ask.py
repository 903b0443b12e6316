"""Models under their names over HTTP: what is sent, what is answered, and how it is described."""

import base64
import io
import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import inprocess
import numpy as np
import pytest
from fastapi.testclient import TestClient
from pairs import PairLearner, Pairs
from PIL import Image
from poison import encoded, halves
from trained import RECIPES, SIZE, recipe_of, untrained

from imgray.artifacts.folder import Folder
from imgray.data.fields import ClassMap, Labels, Output, Scores, Text, Vector
from imgray.data.pixels import Rejected
from imgray.library import open_model
from imgray.serving.answers import told
from imgray.serving.guard import Refusal
from imgray.serving.models import Served
from imgray.serving.predictor import answer_of
from imgray.training.models import Model
from imgray.training.task import Prediction

ONE, OTHER = encoded(halves((64, 48)), "JPEG"), encoded(halves((48, 64)).rotate(90), "PNG")
PAIRS, SEGMENTS = "/v1/models/pairs", "/v1/models/segments"
SEGMENTATION = RECIPES["masks"]


@pytest.fixture(scope="module")
def uris(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("models")
    found = {name: str(folder / name) for name in ("pairs", "segments")}
    untrained("pairs:Pairs", Folder(found["pairs"]))
    untrained(SEGMENTATION["task"], Folder(found["segments"]), **SEGMENTATION["settings"])
    return found


@pytest.fixture(scope="module")
def client(uris: dict[str, str]) -> Iterator[TestClient]:
    with inprocess.client(uris, limits={"pixels": 100 * 100, "body_bytes": 2 * 2**20}) as found:
        yield found


def _form(**fields: Any) -> dict[str, Any]:
    """A form with files and texts; what is None is left out."""
    fields = {"first": ONE, "caption": "a b"} | fields
    named = {name: value for name, value in fields.items() if value is not None}
    parts = {n: (None, v) if isinstance(v, str) else ("a name", v) for n, v in named.items()}
    return {"files": parts}


def _json(text: str) -> dict[str, Any]:
    return {"content": text.encode(), "headers": {"Content-Type": "application/json"}}


def test_a_form_of_files_and_texts_is_answered_as_the_library_does(
    client: TestClient, uris: dict[str, str]
) -> None:
    sent = {"first": ONE, "second": OTHER, "caption": "a b", "style": [0.5, -1.0, 2.0]}
    expected = open_model(uris["pairs"]).predict(**sent)
    form = _form(second=OTHER, style="[0.5, -1, 2.0]")
    answer = client.post(f"{PAIRS}?picture=true", **form).json()
    assert (answer["model"], len(answer["fingerprint"])) == ("pairs", 64)
    blend, verdict = answer["outputs"]["blend"], answer["outputs"]["verdict"]
    assert verdict == {name: round(value, 6) for name, value in expected.row.items()}
    assert (blend["width"], blend["height"]) == (24, 24)
    png = base64.b64decode(blend["data"].removeprefix("data:image/png;base64,"))
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(png))), expected.picture)
    alone = client.post(PAIRS, headers={"Accept": "image/png"}, **form)
    assert (alone.headers["content-type"], alone.content) == ("image/png", png)


def test_what_is_optional_may_lack_and_makes_a_difference(client: TestClient) -> None:
    alone, both = (client.post(PAIRS, **form).json() for form in (_form(), _form(second=OTHER)))
    assert alone["outputs"]["verdict"] != both["outputs"]["verdict"]
    assert "data" not in alone["outputs"]["blend"]


def test_a_mere_picture_is_a_record_of_a_model_that_takes_one(client: TestClient) -> None:
    as_body = client.post(SEGMENTS, content=ONE)
    as_form = client.post(SEGMENTS, files={"image": ONE})
    assert as_body.status_code == 200
    assert as_body.json() == as_form.json()
    answer = client.post(PAIRS, content=ONE)
    assert (answer.status_code, answer.json()["error"]["field"]) == (422, "body")


def test_the_legend_holds_the_classes_that_occur_in_their_colours(client: TestClient) -> None:
    answer = client.post(f"{SEGMENTS}?picture=true", content=ONE).json()["outputs"]
    mask = answer["mask"]
    png = base64.b64decode(mask["data"].partition(",")[2])
    image = Image.open(io.BytesIO(png))
    palette = np.array(image.getpalette()).reshape(-1, 3)
    shown = {
        SEGMENTATION["settings"]["classes"][place]: "#" + bytes(palette[place].tolist()).hex()
        for place in np.unique(np.asarray(image))
    }
    assert {one["name"]: one["color"] for one in mask["labels"]} == shown
    assert {one["name"] for one in answer["classes"]} == shown.keys()


def test_the_routes_of_kinds_are_the_same_answers(client: TestClient) -> None:
    named = client.post(f"{SEGMENTS}?picture=true", content=ONE).json()
    kind = client.post("/v1/segment?picture=true&model=segments", content=ONE).json()
    mask, shares = named["outputs"]["mask"], named["outputs"]["classes"]
    assert kind.pop("picture") == mask["data"]
    colours = {one["name"]: one["color"] for one in mask["labels"]}
    assert kind == {
        "model": "segments",
        "fingerprint": named["fingerprint"],
        "width": mask["width"],
        "height": mask["height"],
        "classes": [
            {"name": n["name"], "share": n["score"], "color": colours[n["name"]]} for n in shares
        ],
    }


@pytest.mark.parametrize(
    ("accept", "kind"),
    [
        (None, "application/json"),
        ("*/*", "application/json"),
        ("application/*", "application/json"),
        ("image/png, application/json", "application/json"),
        ("image/png;q=0.5, application/json;q=0.9", "application/json"),
        ("image/png", "image/png"),
        ("IMAGE/PNG ; q=0.3", "image/png"),
        ("image/*", "image/png"),
        ("image/png, */*", "image/png"),
        ("image/avif,image/webp,image/png,*/*;q=0.8", "image/png"),
        ("application/json;q=0, */*;q=0.1", "image/png"),
        ("text/html", None),
        ("application/json;q=0", None),
        ("application/json;q=.9, image/png;q=0.95", "image/png"),
        ("application/json, image/png;q=1.9", "application/json"),
    ],
)
def test_json_or_png_as_the_client_prefers(
    client: TestClient, accept: str | None, kind: str | None
) -> None:
    """RFC 9110: the most specific range that matches says how much a type is wanted."""
    headers = {"Accept": accept} if accept else {}
    for path, body in ((PAIRS, _form()), ("/v1/segment", {"content": ONE})):
        answer = client.post(path, headers=headers, **body)
        if kind:
            assert (answer.status_code, answer.headers["content-type"]) == (200, kind)
        else:
            assert (answer.status_code, answer.json()["error"]["field"]) == (406, "Accept")


def test_a_picture_of_a_model_that_paints_none_is_refused(client: TestClient) -> None:
    answer = client.post("/v1/classify", content=ONE, headers={"Accept": "image/png"})
    assert answer.status_code == 404, "there is no such model here"


TWICE = {"files": [("first", ONE), ("first", ONE)], "data": {"caption": "a"}}
CUT, WIDE = OTHER[: len(OTHER) // 2], encoded(halves((99, 99)), "PNG")
DEEP = "[" * 100_000
CHARSET = {"Content-Type": "multipart/form-data; boundary=B; charset=utf-16"}
BAD = {
    "missing": (_form(caption=None), "caption"),
    "missing of nothing": ({"content": b""}, "first"),
    "unknown": (_form(nothing="x"), "nothing"),
    "an unknown file": (_form(nothing=b"x"), "nothing"),
    "twice": (TWICE, "first"),
    "twice, a text": ({"files": {"first": ONE}, "data": {"caption": ["a", "b"]}}, "caption"),
    "a file for a text": (_form(caption=b"a"), "caption"),
    "a file for a vector": (_form(style=b"[1, 2, 3]"), "style"),
    "a text for a picture": (_form(first="a text"), "first"),
    "no picture": (_form(first=b"x"), "first"),
    "an empty picture": (_form(second=b""), "second"),
    "the second is cut": (_form(second=CUT), "second"),
    "too large together": (_form(first=WIDE, second=WIDE), "second"),
    "blank": (_form(caption=" \n"), "caption"),
    "over a megabyte": (_form(caption="x" * (2**20 + 1)), "caption"),
    "no JSON": (_form(style="1, 2, 3"), "style"),
    "deep JSON": (_form(style=DEEP), "style"),
    "too short": (_form(style="[1, 2]"), "style"),
    "of texts": (_form(style='["a", "b", "c"]'), "style"),
    "NaN": (_form(style="[1, NaN, 3]"), "style"),
    "Infinity": (_form(style="[1, 2, -Infinity]"), "style"),
    "1e39": (_form(style="[1, 2, 1e39]"), "style"),
    "10 to the 400": (_form(style=f"[1, 2, {10**400}]"), "style"),
    "NaN in an object": (_json('{"caption": "a", "style": [NaN, 1, 2]}'), "first"),
    "an id without an index": (_json('{"caption": "a", "first": "x.jpg"}'), "first"),
    "a number for a picture": (_json('{"caption": "a", "first": 5}'), "first"),
    "an object for a text": (_json('{"caption": {}, "second": null}'), "first"),
    "a list": (_json("[]"), "body"),
    "deep": (_json(DEEP), "body"),
    "cut": (_json('{"caption": "a'), "body"),
    "half a surrogate pair": (_json('{"caption": "\\ud800"}'), "body"),
    "an unknown key": (_json('{"nothing": 1}'), "nothing"),
    "a charset": ({"content": b"--B--", "headers": CHARSET}, "body"),
    "too long": ({"content": b"x" * (2 * 2**20 + 1)}, "body"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused_by_its_name(client: TestClient, name: str) -> None:
    sent, field = BAD[name]
    answer = client.post(PAIRS, **sent)
    assert 400 <= answer.status_code < 500, answer.text
    assert answer.json()["error"]["field"] == field, answer.text
    assert len(answer.text) < 250


@pytest.mark.parametrize(
    ("query", "field"), [("caption=a", "caption"), ("picture=x", "picture"), ("a=1&a=2", "a")]
)
def test_options_come_in_the_query_string_and_are_no_inputs(
    client: TestClient, query: str, field: str
) -> None:
    answer = client.post(f"{PAIRS}?{query}", **_form())
    assert (answer.status_code, answer.json()["error"]["field"]) == (422, field)


def test_an_unknown_name_lists_the_models(client: TestClient) -> None:
    answer = client.post("/v1/models/nothing", content=ONE)
    assert answer.status_code == 404
    assert answer.json()["error"]["message"] == "no such model; there are: pairs, segments"
    wrong = client.get(PAIRS)
    assert (wrong.status_code, wrong.headers["Allow"]) == (405, "POST")


def test_models_say_what_they_take_and_give(client: TestClient) -> None:
    pairs, segments = client.get("/v1/models").json()["models"]
    assert pairs["inputs"] == {
        "first": {"type": "picture", "required": True},
        "second": {"type": "picture", "required": False},
        "caption": {"type": "text", "required": True, "longest": 200},
        "style": {"type": "vector", "required": False, "dim": 3},
    }
    verdict = {"type": "scores", "names": ["alike", "first"]}
    assert pairs["outputs"] == {"blend": {"type": "picture"}, "verdict": verdict}
    assert (pairs["kind"], segments["kind"]) == ("", "segment")
    assert segments["outputs"]["mask"] == {"type": "class map", "labels": ["left", "right"]}


def test_every_model_has_a_route_in_the_description(client: TestClient) -> None:
    paths = client.get("/openapi.json").json()["paths"]
    assert {PAIRS, SEGMENTS} <= paths.keys()
    assert "/v1/models/{name}" not in paths
    bodies = paths[PAIRS]["post"]["requestBody"]["content"]
    assert bodies.keys() == {"multipart/form-data"}, "without an index there are no ids"
    form = bodies["multipart/form-data"]["schema"]
    assert form["required"] == ["first", "caption"]
    assert form["properties"].keys() == Pairs.inputs.keys()
    assert form["properties"]["caption"]["maxLength"] == 200
    segments = paths[SEGMENTS]["post"]
    raw = {"multipart/form-data", "application/octet-stream"}
    assert segments["requestBody"]["content"].keys() == raw
    answers = segments["responses"]["200"]["content"]
    assert answers.keys() == {"application/json", "image/png"}
    assert "406" in paths["/v1/segment"]["post"]["responses"]
    named = {one["name"] for one in paths[PAIRS]["post"]["parameters"]}
    assert named == {"picture"}, "it takes no longest"
    swap = paths["/v1/swap"]["post"]
    assert swap["requestBody"]["content"].keys() == {"multipart/form-data"}
    assert {"image/png", "image/jpeg"} < swap["responses"]["200"]["content"].keys()
    outputs = answers["application/json"]["schema"]["properties"]["outputs"]
    assert outputs["properties"].keys() == {"classes", "mask"}


class _Everything(Pairs):
    outputs: dict[str, Output] = {  # type: ignore[assignment]
        "labels": Labels(),
        "one": Scores(),
        "said": Text(),
        "code": Vector(2),
        "map": ClassMap(("a", "b", "c")),
    }


def test_every_type_of_output_has_its_answer() -> None:
    served = Served("x", "", _Everything(Pairs.Settings(), ()), "f", Pairs.inputs)
    row = {"labels": ["p", "q"], "labels_scores": [0.25, 0.75], "one": 2.0, "said": "s"}
    picture = np.array([[0, 2, 2], [0, 0, 255]], np.uint8)
    found = answer_of(served.task, Prediction(row | {"code": [1.0, 2.5]}, picture), False)
    outputs = json.loads(bytes(told(served, found).body))["outputs"]
    assert outputs["labels"] == [{"name": "q", "score": 0.75}, {"name": "p", "score": 0.25}]
    assert (outputs["one"], outputs["said"], outputs["code"]) == (2.0, "s", [1.0, 2.5])
    assert (outputs["map"]["width"], outputs["map"]["height"]) == (3, 2)
    assert [one["name"] for one in outputs["map"]["labels"]] == ["a", "c"]


def test_what_is_not_finite_is_no_answer() -> None:
    served = Served("x", "", _Everything(Pairs.Settings(), ()), "f", Pairs.inputs)
    row = {"labels": [], "labels_scores": [], "one": float("nan"), "said": "s", "code": [1.0, 2.5]}
    found = answer_of(served.task, Prediction(row, np.zeros((2, 2), np.uint8)), False)
    with pytest.raises(Refusal, match="not finite") as refused:
        told(served, found)
    assert refused.value.status == 422


def test_pictures_of_different_sizes_share_a_service(client: TestClient) -> None:
    """A record's pictures count together; each alone is within the limit."""
    assert client.post(PAIRS, **_form(first=WIDE)).status_code == 200
    small = encoded(halves((SIZE, SIZE)), "PNG")
    assert client.post(PAIRS, **_form(first=small, second=small)).status_code == 200


def test_a_model_that_takes_anything_and_is_given_nothing(
    uris: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def nothing(*_: Any) -> Any:
        raise Rejected("a picture or a text is needed")

    optional = {name: replace(one, optional=True) for name, one in Pairs.inputs.items()}
    monkeypatch.setattr(Pairs, "inputs", optional)
    monkeypatch.setattr(Pairs, "prepare", nothing)
    with inprocess.client({"pairs": uris["pairs"]}) as client:
        answer = client.post(PAIRS, **_json("{}"))
    assert answer.status_code == 422, answer.text
    assert "a picture or a text is needed" in answer.json()["error"]["message"]


def test_an_error_stays_short(client: TestClient) -> None:
    answer = client.post(PAIRS, **_json(json.dumps({"x" * 1_000_000: 1})))
    assert answer.status_code == 422
    assert len(answer.content) < 5000


class _Echo(PairLearner):
    def predict(self, batch: dict[str, Any]) -> list[Prediction]:
        """The names and sums of the arrays of each item."""
        rows = [{n: float(a[k].sum()) for n, a in batch.items()} for k in range(len(batch["a"]))]
        return [Prediction(row) for row in rows]


def test_records_with_different_inputs_share_no_batch() -> None:
    """Equal shapes are not enough: one lacks what another has."""
    one, two = np.ones(2, np.float32), np.full(2, 2, np.float32)
    task = Pairs(Pairs.Settings(), ())
    model = Model(recipe_of("pairs:Pairs"), task, _Echo(task.settings), "f")
    items = [{"a": one, "b": two}, {"a": two, "c": one}, {"b": one, "a": one}]
    found = [prediction.row for prediction in model.predict(items, "cpu")]
    assert found == [{"a": 2, "b": 4}, {"a": 4, "c": 2}, {"a": 2, "b": 2}]
