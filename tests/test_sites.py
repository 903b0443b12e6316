"""Where no key is needed: whose requests are answered, by their headers alone."""

import asyncio
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from pydantic import ValidationError

from imgray.serving.settings import ServiceSettings
from imgray.serving.sites import OwnSite

NAMES = ["pictures.example", "2001:db8::7"]
LOCAL = "127.0.0.1:8000"
VISIT = {
    "Sec-Fetch-Site": "cross-site",
    "Sec-Fetch-Mode": "navigate",
    "Sec-Fetch-Dest": "document",
}


def _status(method: str, headers: dict[str, str], names: list[str] | None) -> tuple[int, Any]:
    app = FastAPI()
    app.add_middleware(OwnSite, names=lambda: names)

    @app.api_route("/", methods=["GET", "POST"])
    async def answer() -> str:
        return "a private picture"

    answered = TestClient(app).request(method, "/", headers=headers)
    return answered.status_code, answered.json()


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", LOCAL, "localhost", "LocalHost:1", "[::1]", "[::1]:8000", "pictures.example:443",
     "[2001:db8::7]"],
)  # fmt: skip
def test_this_machines_names_and_those_allowed_are_answered(host: str) -> None:
    assert _status("POST", {"Host": host}, NAMES) == (200, "a private picture")


@pytest.mark.parametrize(
    "host",
    ["evil.example", "evil.example:8000", "127.0.0.1.evil.example", "localhost@evil.example",
     "127.0.0.1:8000:80", "[::1", "::1", "192.168.0.7:8000", "0.0.0.0:8000", "", "[]"],
)  # fmt: skip
def test_another_name_is_refused(host: str) -> None:
    """A site whose name leads to this machine, by DNS rebinding, is its page's own."""
    status, answer = _status("GET", {"Host": host}, NAMES)
    assert (status, answer["error"]["field"]) == (421, "Host")
    assert "--hosts" in answer["error"]["message"]
    assert _status("GET", {"Host": host}, None)[0] == 200


OTHERS = {
    "a page of another site": {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "cors"},
    "a page on another port": {"Sec-Fetch-Site": "same-site", "Sec-Fetch-Mode": "no-cors"},
    "a frame": {**VISIT, "Sec-Fetch-Dest": "iframe"},
    "an older browser": {"Origin": "http://evil.example"},
    "an older browser, on another port": {"Origin": "http://127.0.0.1:3000"},
    "the other loopback name": {"Origin": "http://localhost:8000"},
    "a page of no origin": {"Origin": "null"},
    "an extension under an allowed name": {"Origin": "app://pictures.example"},
    "another port of an allowed name": {"Origin": "https://pictures.example:3000"},
}
OWN = {
    "curl": {},
    "its own page": {"Sec-Fetch-Site": "same-origin", "Origin": f"http://{LOCAL}"},
    "its own page in an older browser": {"Origin": f"http://{LOCAL}"},
    "the address bar": {**VISIT, "Sec-Fetch-Site": "none"},
    "a page behind a proxy that renames it": {"Origin": "https://pictures.example"},
    "a page behind a proxy on the same port": {"Origin": "http://pictures.example:8000"},
}


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_other_sites_are_refused(method: str) -> None:
    for name, headers in OTHERS.items():
        status, answer = _status(method, {"Host": LOCAL, **headers}, NAMES)
        assert status == 403, name
        assert "another site" in answer["error"]["message"]
        assert _status(method, {"Host": LOCAL, **headers}, None)[0] == 200


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_its_own_page_and_programs_are_answered(method: str) -> None:
    for name, headers in OWN.items():
        assert _status(method, {"Host": LOCAL, **headers}, NAMES)[0] == 200, name


def test_a_link_of_another_site_leads_here_but_its_form_does_not() -> None:
    assert _status("GET", {"Host": LOCAL, **VISIT}, [])[0] == 200
    assert _status("POST", {"Host": LOCAL, **VISIT}, [])[0] == 403
    assert _status("GET", {"Host": "evil.example", **VISIT}, [])[0] == 421


def test_what_is_no_request_passes() -> None:
    passed = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        passed.append(scope["type"])

    def never() -> None:
        raise AssertionError("asked before anything is served")

    asyncio.run(OwnSite(app, never)({"type": "lifespan"}, None, None))  # type: ignore[arg-type]
    assert passed == ["lifespan"]


def test_hosts_are_names_without_scheme_and_port() -> None:
    settings = ServiceSettings(hosts=["Pictures.Example", "[2001:DB8::7]", "10.0.0.7"])
    assert settings.hosts == ["pictures.example", "2001:db8::7", "10.0.0.7"]
    for wrong in ("https://pictures.example", "pictures.example:443", "*", "", "a b", "[::1]:80"):
        with pytest.raises(ValidationError, match="without scheme and port"):
            ServiceSettings(hosts=[wrong])
