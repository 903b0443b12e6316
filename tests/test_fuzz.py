"""The service under what no client should send: no 5xx, and the same replicas afterwards."""

import io
import json
from collections.abc import Iterator

import numpy as np
import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, settings
from PIL import Image
from schemathesis.specs.openapi.checks import positive_data_acceptance
from service import ADMIN, Service, declared

from imgray.data.pixels import FORMATS
from imgray.data.samples import photographs
from imgray.serving.http import app
from imgray.serving.openapi import description

pytestmark = pytest.mark.slow
DESCRIPTION = description(app, declared(), indexed=True)
API = schemathesis.openapi.from_dict(DESCRIPTION)
PAIRS = "models/pairs"
HEAD = 2**16 - 2**12
"""Of a request that is longer Uvicorn tells the client, before the application hears of it."""
PATHS = ("search", "embed", "classify", "segment", "edges", "search/batch", "models/edges", PAIRS)


@pytest.fixture(scope="module")
def fuzzed(running: Service) -> Iterator[str]:
    """The address of a service that must come out of this module as it went in."""
    before = running.replicas()
    yield running.url
    assert running.replicas() == before


@API.parametrize()
@settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)
def test_every_route_keeps_to_its_schema(case: schemathesis.Case, fuzzed: str) -> None:
    """Statuses, headers and bodies are as `/docs` says; a picture of random bytes is refused."""
    response = case.call(base_url=fuzzed, headers={"X-API-Key": ADMIN}, timeout=60)
    if len(str(response.request.url)) > HEAD:
        assert response.status_code < 500
    else:
        case.validate_response(response, excluded_checks=[positive_data_acceptance])


def _encoded(picture: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def _hostile() -> Iterator[tuple[str, bytes]]:
    """Pictures by what is wrong with them, the same ones every time."""
    photo = next(iter(photographs().values())).resize((96, 64))
    for kind in FORMATS:
        whole = _encoded(photo, kind)
        for length in range(0, len(whole), len(whole) // 8):
            yield f"{kind} cut at {length}", whole[:length]
        yield f"{kind} with a tail", whole + b"<?php ?>" * 1000
        for seed in range(25):
            random = np.random.default_rng(seed)
            data = np.frombuffer(whole, np.uint8).copy()
            places = random.integers(0, len(data), random.integers(1, 30))
            data[places] = random.integers(0, 256, len(places))
            yield f"{kind} with bytes changed, seed {seed}", data.tobytes()
    for mode in ("1", "L", "LA", "P", "RGBA", "I;16", "CMYK", "YCbCr"):
        kind = "JPEG" if mode in ("CMYK", "YCbCr") else "PNG"
        yield f"{kind} of mode {mode}", _encoded(photo.convert("L").convert(mode), kind)
    yield from ((kind, _encoded(photo, kind)) for kind in ("ICO", "PPM", "TGA"))
    yield "SVG", b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>'
    yield "one pixel", _encoded(photo.resize((1, 1)), "PNG")
    yield "one row", _encoded(photo.resize((4000, 1)), "PNG")
    yield "one column", _encoded(photo.resize((1, 4000)), "JPEG")
    exif = Image.Exif()
    exif[0x0112] = 99
    yield "an orientation that is none", _encoded(photo, "JPEG", exif=exif)
    frames = [photo.rotate(90 * n) for n in range(4)]
    yield "animated", _encoded(photo, "WEBP", save_all=True, append_images=frames)


PHOTO = _encoded(next(iter(photographs().values())).resize((96, 64)), "PNG")


def test_hostile_pictures_are_answered_or_refused(fuzzed: str) -> None:
    refused = set()
    with requests.Session() as session:
        for number, (name, data) in enumerate(_hostile()):
            for path in (PATHS[number % len(PATHS)], "search"):
                field, form = ("second", {"caption": "a"}) if path == PAIRS else ("image", {})
                files = {field: ("x", data)} | ({"first": PHOTO} if path == PAIRS else {})
                answer = session.post(f"{fuzzed}/v1/{path}", form, files=files, timeout=60)
                assert answer.status_code in (200, 422), (name, path, answer.text)
                if answer.status_code == 422:
                    assert answer.json()["error"]["field"] == field, (name, path, answer.text)
                    refused.add(name)
    assert all(f"{kind} cut at 0" in refused for kind in FORMATS)
    assert {"ICO", "PPM", "TGA", "SVG"} <= refused
    assert not {"PNG of mode LA", "JPEG of mode CMYK", "one pixel", "animated"} & refused


HOSTILE = {
    "empty": "",
    "blank": " \t\u3000\n",
    "of nothing to see": "\u200b\u2060\ufeff",
    "control characters": "a coffee\x00\x01\x08\x1b[31m\x7f\x85",
    "from right to left": "\u202ea coffee\u202c \u05db\u05dc\u05d1",
    "marks without end": "a" + "\u0301" * 5000,
    "no characters": "\ufffe\uffff\U0010ffff",
    "emoji": "\U0001f468\u200d\U0001f469\u200d\U0001f467" * 100,
    "the longest": "coffee, " * 1250,
    "too long": "x" * 10_001,
    "100,000 characters": "a coffee " * 12_000,
    "one word": "coffee" * 1600,
    "markup": '<script>alert(1)</script> & "coffee" \'; DROP TABLE images; --',
    "JSON": '{"text": ["a coffee"]}',
    "a format": "%s %n {0} ${coffee} $(coffee)",
    "a path": "../../etc/passwd",
    "dotless": "\u0130\u0131\u017f\ufb03 \u00df",
}


def test_hostile_texts_are_answered_or_refused(fuzzed: str) -> None:
    taken = set()
    [id] = requests.get(f"{fuzzed}/v1/images?limit=1", timeout=30).json()["ids"]
    ways = {
        "search": {"id": id},
        "search/batch": {"ids": [id]},
        "embed": {},
        "match": {"ids": [id]},
    }
    with requests.Session() as session:
        for name, text in HOSTILE.items():
            for path, more in ways.items():
                url = f"{fuzzed}/v1/{path}"
                as_json = {"texts": [text]} if "ids" in more else {"text": text}
                parts = [("text", (None, text)), *([("image", ("x", PHOTO))] if more else [])]
                answers = [session.post(url, json=as_json | more, timeout=60)]
                answers.append(session.post(url, files=parts, timeout=60))
                for answer in answers:
                    assert answer.status_code in (200, 422), (name, path, answer.text)
                    if answer.status_code == 422:
                        field = answer.json()["error"]["field"]
                        assert field.startswith("text"), (name, path, answer.text)
                    elif path != "search/batch":
                        taken.add(name)
    assert {"the longest", "markup", "control characters", "from right to left"} <= taken
    assert not {"empty", "blank", "too long", "100,000 characters"} & taken


def test_the_schema_is_the_one_that_is_served(fuzzed: str) -> None:
    served = requests.get(f"{fuzzed}/openapi.json", timeout=30).json()
    assert served == json.loads(json.dumps(DESCRIPTION))
