"""A browser on the page of the service, and what that service answers without the page."""

import json
import shutil
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

FLAGS = (
    "--no-sandbox --disable-gpu --no-first-run --disable-sync"
    " --disable-background-networking --disable-component-update"
)
PATIENCE = 90_000
"""Milliseconds that the page has for what is expected of it."""
IDLE = "#panel[aria-busy=false]"


@pytest.fixture(scope="module")
def browser() -> "Iterator[Browser]":
    """Chromium without a window."""
    program = shutil.which("chromium") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("there is no chromium on this machine")
    driver = pytest.importorskip("playwright.sync_api")
    driver.expect.set_options(timeout=PATIENCE)
    with driver.sync_playwright() as player:
        chromium = player.chromium.launch(executable_path=program, args=FLAGS.split())
        yield chromium
        chromium.close()


@pytest.fixture
def page(browser: "Browser", served: str) -> "Iterator[Page]":
    """A browser tab, empty, on a desktop's screen."""
    context = browser.new_context(viewport={"width": 1280, "height": 900}, base_url=served)
    yield context.new_page()
    context.close()


@pytest.fixture
def photo(photos: Path) -> Path:
    return min(photos.rglob("*.jpg"))


@pytest.fixture
def ask(served: str) -> Callable[..., Any]:
    """Ask the service without the page: `ask(path)`, with bytes, or with a JSON object."""

    def answer(path: str, body: bytes | dict[str, Any] | None = None) -> Any:
        kind = "application/json" if isinstance(body, dict) else "application/octet-stream"
        data = json.dumps(body).encode() if isinstance(body, dict) else body
        request = urllib.request.Request(f"{served.rstrip('/')}/v1/{path}", data)
        request.add_header("Content-Type", kind)
        try:
            with urllib.request.urlopen(request) as response:
                return json.load(response)
        except urllib.error.HTTPError as fault:
            return json.load(fault)

    return answer
