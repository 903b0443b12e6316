"""The web page of the service, as a person who searches uses it in a browser."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from browsing import IDLE

pytest.importorskip("playwright", reason="playwright is not installed")
from playwright.sync_api import Page, Request, Route, expect

pytestmark = pytest.mark.slow

KINDS = ("search", "classify", "segment", "edges")
TOP = 20  # results that the page asks for
RESULTS = "#result .ranking a"


def shown(page: Page) -> list[str]:
    """Ids of the results, best first."""
    expect(page.locator(IDLE)).to_be_attached()
    return [link.get_attribute("title") or "" for link in page.locator(RESULTS).all()]


def ids(answer: dict[str, Any]) -> list[str]:
    return [result["id"] for result in answer["results"]]


def kinds(ask: Callable[..., Any]) -> list[str]:
    """Tabs that the service can fill."""
    able = {model["kind"] for model in ask("models")["models"]}
    if "uri" in ask("index"):
        able.add("search")
    return [kind for kind in KINDS if kind in able] + ["models"] * ("" in able)


def is_search(request: Request) -> bool:
    return urlsplit(request.url).path == "/v1/search"


def test_page_loads_without_errors_and_from_its_own_host_alone(
    page: Page, served: str, photo: Path
) -> None:
    hosts: set[str] = set()
    faults: list[str] = []
    page.on("request", lambda request: hosts.add(urlsplit(request.url).netloc))
    page.on("pageerror", lambda fault: faults.append(str(fault)))
    page.on("console", lambda said: faults.append(said.text) if said.type == "error" else None)
    page.goto("/")
    page.set_input_files("#file", photo)
    expect(page.locator(RESULTS).first).to_be_visible()
    expect(page.locator(f"{RESULTS} img").first).to_have_js_property("complete", True)
    page.wait_for_load_state("networkidle")
    assert not faults
    assert hosts - {""} == {urlsplit(served).netloc}  # "": of blob URLs


def test_a_chosen_file_is_searched_for(page: Page, photo: Path, ask: Callable[..., Any]) -> None:
    expected = ask(f"search?top={TOP}", photo.read_bytes())
    page.goto("/")
    page.set_input_files("#file", photo)
    expect(page.locator(RESULTS)).to_have_count(len(expected["results"]))
    assert shown(page) == ids(expected)
    scores = page.locator(f"{RESULTS} b").all_text_contents()
    assert scores == [f"{result['score']:.3f}" for result in expected["results"]]
    expect(page.locator("#facts")).to_contain_text(expected["version"][:12])
    expect(page.locator("#preview figcaption")).to_have_text(photo.name)
    expect(page.locator(".warning")).to_have_count(0)


@pytest.mark.parametrize("way", ["drop", "paste"])
def test_an_image_is_taken_by(way: str, page: Page, photo: Path) -> None:
    page.goto("/")
    expect(page.locator(".hint")).to_be_visible()
    page.evaluate(
        """([way, bytes]) => {
            const data = new DataTransfer();
            data.items.add(new File([new Uint8Array(bytes)], "taken.jpg", {type: "image/jpeg"}));
            const bubbles = {bubbles: true, cancelable: true};
            document.querySelector("main").dispatchEvent(way === "drop"
                ? new DragEvent("drop", {...bubbles, dataTransfer: data})
                : new ClipboardEvent("paste", {...bubbles, clipboardData: data}));
        }""",
        [way, list(photo.read_bytes())],
    )
    expect(page.locator("#preview figcaption")).to_have_text("taken.jpg")
    expect(page.locator(RESULTS).first).to_be_visible()


def test_a_result_searches_on_and_back_returns(
    page: Page, photo: Path, ask: Callable[..., Any]
) -> None:
    first = ids(ask(f"search?top={TOP}", photo.read_bytes()))
    second = ids(ask("search", {"id": first[1], "top": TOP}))
    page.goto("/")
    page.set_input_files("#file", photo)
    page.locator(RESULTS).nth(1).click()
    expect(page.locator("#preview figcaption")).to_have_attribute("title", first[1])
    expect(page.locator(RESULTS).first).to_have_attribute("title", second[0])
    assert shown(page) == second
    page.go_back()
    expect(page.locator("#preview figcaption")).to_have_text(photo.name)
    expect(page.locator(RESULTS).nth(1)).to_have_attribute("title", first[1])
    assert shown(page) == first


def test_an_address_names_an_image_of_the_collection(page: Page, ask: Callable[..., Any]) -> None:
    for id in ask("images?limit=3")["ids"]:
        page.goto("/")
        page.locator(f'#collection a[title="{id}"]').click()
        expect(page.locator(RESULTS).first).to_be_visible()
        page.reload()
        expect(page.locator("#preview figcaption")).to_have_attribute("title", id)
        expect(page.locator(RESULTS).first).to_be_visible()
        assert shown(page) == ids(ask("search", {"id": id, "top": TOP}))


def test_words_are_searched_with_by_enter(page: Page, ask: Callable[..., Any]) -> None:
    found = ask("search", {"text": "a photograph of coffee", "top": TOP})
    page.goto("/")
    line = page.get_by_label("Search by words")
    line.fill("a photograph of coffee")
    expect(page.locator(".hint")).to_contain_text("search by words")
    line.press("Enter")
    expect(page.locator(RESULTS)).to_have_count(TOP)
    assert shown(page) == ids(found)
    captions = page.locator(f"{RESULTS} .caption")
    expect(captions).to_have_text([row["captions"][0] for row in found["results"]])
    expect(page.locator("#weights")).to_be_hidden()
    page.reload()
    expect(line).to_have_value("a photograph of coffee")
    expect(page.locator(RESULTS)).to_have_count(TOP)
    line.fill("")
    expect(page.locator(".hint")).to_be_visible()
    page.go_back()
    expect(line).to_have_value("a photograph of coffee")


def test_a_picture_and_words_are_one_question(
    page: Page, photo: Path, ask: Callable[..., Any]
) -> None:
    id = ask("images?limit=1")["ids"][0]
    page.goto("/")
    page.locator(f'#collection a[title="{id}"]').click()
    expect(page.locator(RESULTS).first).to_be_visible()
    expect(page.locator("#blend")).to_be_hidden()
    page.get_by_label("Search by words").fill("rocket")
    page.get_by_role("button", name="Search").click()
    expect(page.locator("#blend")).to_be_visible()
    assert shown(page) == ids(ask("search", {"id": id, "text": "rocket", "top": TOP}))
    page.get_by_label("Fusion").select_option("adaptive")
    with page.expect_response("**/v1/search"):
        page.locator("#by-text").press("ArrowRight")
    asked = {"modalities": {"text": 1.1}, "fusion": "adaptive"}
    assert shown(page) == ids(ask("search", {"id": id, "text": "rocket", "top": TOP, **asked}))
    with page.expect_request(is_search) as sent:
        page.set_input_files("#file", photo)
    assert sent.value.headers["content-type"].startswith("multipart/form-data")
    expect(page.locator(RESULTS).first).to_be_visible()
    expect(page.get_by_role("alert")).to_be_empty()
    page.get_by_role("button", name="Remove").click()
    expect(page.locator("#blend")).to_be_hidden()
    assert shown(page) == ids(ask("search", {"text": "rocket", "top": TOP}))


def test_an_index_that_knows_no_words_says_so(page: Page, photo: Path) -> None:
    def without(route: Route) -> None:
        route.fulfill(json={**route.fetch().json(), "joint": None})

    page.route("**/v1/index", without)
    page.goto("/")
    line = page.get_by_label("Search by words")
    expect(line).to_be_disabled()
    expect(line).to_have_accessible_description(re.compile("knows pictures alone"))
    page.set_input_files("#file", photo)
    expect(page.locator(RESULTS).first).to_be_visible()
    expect(page.get_by_role("button", name="Remove")).to_be_hidden()


def test_a_slider_changes_the_weights(page: Page, photo: Path, ask: Callable[..., Any]) -> None:
    names = list(ask("index")["features"])
    page.goto("/")
    page.set_input_files("#file", photo)
    expect(page.locator(RESULTS).first).to_be_visible()
    with page.expect_request(is_search) as asked:
        page.locator("#weights input").first.press("ArrowRight")
    (weights,) = parse_qs(urlsplit(asked.value.url).query)["weights"]
    assert json.loads(weights) == {name: 1.1 if name == names[0] else 1 for name in names}
    expect(page.locator("#weights output").first).to_have_text("1.1")


def test_the_prefix_and_the_number_of_results_are_asked_for(
    page: Page, ask: Callable[..., Any]
) -> None:
    id = ask("images?limit=1")["ids"][0]
    prefix = id[:3]
    page.goto("/")
    page.locator("#collection a").first.click()
    page.fill("[name=top]", "2")
    page.fill("[name=prefix]", prefix)
    expected = ids(ask("search", {"id": id, "top": 2, "prefix": prefix}))
    expect(page.locator(RESULTS)).to_have_count(len(expected))
    assert shown(page) == expected


def test_only_the_last_question_is_answered(page: Page, ask: Callable[..., Any]) -> None:
    first, second = ask("images?limit=2")["ids"]
    held: list[Route] = []

    def hold_the_first(route: Route) -> None:
        if held:
            route.continue_()
        else:
            held.append(route)

    page.route(lambda url: urlsplit(url).path == "/v1/search", hold_the_first)
    page.goto("/")
    with page.expect_event("requestfailed", is_search):
        page.locator(f'#collection a[title="{first}"]').click()
        expect(page.locator("#panel")).to_have_attribute("aria-busy", "true")
        page.locator(f'#collection a[title="{second}"]').click()
    expect(page.locator(RESULTS).first).to_be_visible()
    assert shown(page) == ids(ask("search", {"id": second, "top": TOP}))


def test_arrow_keys_move_between_tabs(page: Page, photo: Path, ask: Callable[..., Any]) -> None:
    able = kinds(ask)
    page.goto("/")
    page.set_input_files("#file", photo)
    expect(page.locator(IDLE)).to_be_attached()
    page.locator(f"#tab-{able[0]}").focus()
    for kind in [*able[1:], able[0]]:
        page.keyboard.press("ArrowRight")
        expect(page.locator(f"#tab-{kind}")).to_be_focused()
        expect(page.locator("[role=tab][aria-selected=true]")).to_have_id(f"tab-{kind}")
        expect(page.locator("#result > *").first).to_be_visible()
        expect(page.locator("#alert")).to_be_empty()
    page.keyboard.press("ArrowLeft")
    expect(page.locator(f"#tab-{able[-1]}")).to_be_focused()


def test_tabs_that_the_service_cannot_fill_say_so(page: Page, ask: Callable[..., Any]) -> None:
    able = kinds(ask)
    page.goto("/")
    for kind in KINDS:
        tab = page.locator(f"#tab-{kind}")
        expect(tab).to_have_attribute("aria-disabled", "false" if kind in able else "true")
        assert bool(tab.get_attribute("title")) == (kind not in able)


def test_a_broken_file_shows_the_words_of_the_service(
    page: Page, photo: Path, tmp_path: Path, ask: Callable[..., Any]
) -> None:
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"no image")
    fault = ask("search", broken.read_bytes())["error"]
    page.goto("/")
    page.set_input_files("#file", broken)
    alert = page.get_by_role("alert")
    expect(alert).to_have_text(f"{fault['field']}: {fault['message']}")
    page.set_input_files("#file", photo)
    expect(page.locator(RESULTS).first).to_be_visible()
    expect(alert).to_be_empty()


def test_a_busy_service_is_asked_once_more(page: Page) -> None:
    asked: list[str] = []

    def busy_at_first(route: Route) -> None:
        asked.append(route.request.url)
        body = {"error": {"field": None, "message": "come again"}}
        if len(asked) == 1:
            route.fulfill(status=503, headers={"Retry-After": "1"}, json=body)
        else:
            route.continue_()

    page.route(lambda url: urlsplit(url).path == "/v1/search", busy_at_first)
    page.goto("/")
    page.locator("#collection a").first.click()
    expect(page.locator(RESULTS).first).to_be_visible()
    assert len(asked) == 2


def test_missing_shards_are_told(page: Page) -> None:
    def without_a_shard(route: Route) -> None:
        answer = route.fetch().json()
        answer["shards"] = {"total": 3, "answered": 2, "missing": [1]}
        route.fulfill(json=answer)

    page.route(lambda url: urlsplit(url).path == "/v1/search", without_a_shard)
    page.goto("/")
    page.locator("#collection a").first.click()
    expect(page.locator(".warning")).to_contain_text("1 of 3 shards")


def test_a_key_is_asked_for_and_sent_with_every_request(page: Page) -> None:
    def locked(route: Route) -> None:
        if route.request.headers.get("authorization") == "Bearer open-sesame":
            route.continue_()
        else:
            message = {"field": "Authorization", "message": "an API key is needed"}
            route.fulfill(status=401, json={"error": message})

    page.route("**/v1/**", locked)
    page.goto("/")
    expect(page.get_by_role("alert")).to_contain_text("an API key is needed")
    page.get_by_label("API key").fill("open-sesame")
    page.keyboard.press("Enter")
    page.locator("#collection a").first.click()
    expect(page.locator(f"{RESULTS} img").first).not_to_have_js_property("naturalWidth", 0)
    expect(page.get_by_label("API key")).to_be_hidden()
    page.reload()
    expect(page.locator(RESULTS).first).to_be_visible()


def test_a_narrow_screen_needs_no_scrolling_sideways(
    page: Page, photo: Path, ask: Callable[..., Any]
) -> None:
    page.set_viewport_size({"width": 360, "height": 740})
    page.goto("/")
    page.set_input_files("#file", photo)
    for kind in kinds(ask):
        page.locator(f"#tab-{kind}").click()
        if kind == "models":
            page.fill("[name=caption]", "a cup")
            expect(page.locator(".pair figure")).to_have_count(2)
        expect(page.locator("#facts")).to_contain_text("ms")
        assert page.evaluate("document.documentElement.scrollWidth") <= 360, kind


def test_results_are_reached_with_the_keyboard_alone(page: Page, ask: Callable[..., Any]) -> None:
    def tab_to(selector: str) -> str:
        for _ in range(60):
            page.keyboard.press("Tab")
            focused = page.locator(f"{selector}:focus")
            if focused.count():
                style = focused.evaluate("element => getComputedStyle(element).outlineStyle")
                assert style != "none", "the focus cannot be seen"
                return focused.get_attribute("title") or ""
        raise AssertionError(f"Tab does not reach {selector}")

    page.goto("/")
    expect(page.locator("#collection a").first).to_be_visible()
    assert tab_to("#collection a") == ask("images?limit=1")["ids"][0]
    page.keyboard.press("Enter")
    expect(page.locator(RESULTS).first).to_be_visible()
    first, second, *_ = shown(page)
    assert tab_to(RESULTS) == first
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    expect(page.locator("#preview figcaption")).to_have_attribute("title", second)
    expect(page.locator("#panel")).to_be_focused()
    expect(page.locator(RESULTS).first).to_be_visible()
