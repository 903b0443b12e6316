"""Swaps over HTTP: two pictures, key points as JSON, and perhaps a class map, in one form."""

import io
import json
from collections.abc import Iterator
from typing import Any

import inprocess
import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image
from swaptask import SIDE, SKELETON
from trained import untrained

from imgray.artifacts.folder import Folder

POSE = [[16, 12, 1], [10, 20, 0.5], [20, 20, 1]]
PNG = {"Accept": "image/png"}


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    folder = str(tmp_path_factory.mktemp("swap"))
    untrained("swaptask:Swap", Folder(folder))
    with inprocess.client({"clothes": folder}) as found:
        yield found


def _plain(*shape: int, value: int = 0) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.full(shape, value, np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


RED, BLUE = _plain(SIDE, SIDE, 3, value=200), _plain(SIDE, SIDE, 3, value=50)


def _form(**changes: Any) -> dict[str, Any]:
    """A whole form; what is None is left out."""
    fields = {"reference": RED, "target": BLUE, "pose": json.dumps(POSE), **changes}
    return {
        "files": {
            name: (None, value) if isinstance(value, str) else ("x.png", value)
            for name, value in fields.items()
            if value is not None
        }
    }


@pytest.mark.parametrize("route", ["/v1/swap", "/v1/swap?model=clothes", "/v1/models/clothes"])
def test_two_pictures_and_a_pose_make_one(client: TestClient, route: str) -> None:
    for parsing in (None, _plain(SIDE, SIDE)):
        answer = client.post(route, headers=PNG, **_form(parsing=parsing))
        assert answer.status_code == 200, answer.text
        made = np.asarray(Image.open(io.BytesIO(answer.content)))
        assert (made[:12] == 200).all()
        assert (made[12:] == 50).all()
    said = client.post(route, **_form()).json()
    assert said["outputs"] == {"picture": {"width": SIDE, "height": SIDE}}


BAD = {
    "no pose": ({"pose": None}, "pose", "missing"),
    "no target": ({"target": None}, "target", "missing"),
    "no reference": ({"reference": None}, "reference", "missing"),
    "no JSON": ({"pose": "neck at 3, 4"}, "pose", "no JSON, where 3 x 3 numbers"),
    "two points": ({"pose": json.dumps(POSE[:2])}, "pose", "2 x 3 numbers, where 3 x 3"),
    "a file": ({"pose": b"[[1, 2, 3]]"}, "pose", "texts, where 3 x 3 numbers"),
    "no parsing": ({"parsing": b"x"}, "parsing", "not a readable"),
    "another field": ({"mask": RED}, "mask", "no such input"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_lacks_or_is_wrong_is_named(client: TestClient, name: str) -> None:
    changes, field, said = BAD[name]
    answer = client.post("/v1/swap", **_form(**changes))
    assert answer.status_code == 422, answer.text
    assert answer.json()["error"]["field"] == field
    assert said in answer.json()["error"]["message"]


def test_a_picture_alone_is_not_enough(client: TestClient) -> None:
    answer = client.post("/v1/swap", content=RED)
    assert (answer.status_code, answer.json()["error"]["field"]) == (422, "body")


def test_all_pictures_have_one_size_and_no_longest(client: TestClient) -> None:
    answer = client.post("/v1/swap?longest=64", **_form())
    assert (answer.status_code, answer.json()["error"]["field"]) == (422, "longest")


def test_a_service_without_such_a_model_says_so(client: TestClient) -> None:
    assert client.post("/v1/swap?model=other", **_form()).json()["error"]["field"] == "model"
    answer = client.post("/v1/translate", content=RED)
    assert answer.json()["error"]["message"] == "this service has no model for translate"


def test_a_client_learns_the_form(client: TestClient) -> None:
    [model] = client.get("/v1/models").json()["models"]
    assert model["kind"] == "swap"
    assert model["inputs"]["pose"]["skeleton"] == list(SKELETON)
    assert model["inputs"]["parsing"] == {
        "type": "class map", "required": False, "labels": ["skin", "shirt"],
    }  # fmt: skip
    assert client.get("/openapi.json").json()["paths"]["/v1/swap"]["post"]["parameters"]
