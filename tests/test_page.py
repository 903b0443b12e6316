"""The web page of the service, as a person uses it in a browser."""

import json
import re
import shutil
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

pytest.importorskip("playwright", reason="playwright is not installed")
from playwright.sync_api import (
    Browser,
    Page,
    Request,
    Route,
    expect,
    sync_playwright,
)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

FLAGS = (
    "--no-sandbox --disable-gpu --no-first-run --disable-sync"
    " --disable-background-networking --disable-component-update"
)
KINDS = ("search", "classify", "segment", "edges")
TOP = 20  # results that the page asks for
RESULTS = "#result .ranking a"
IDLE = "#panel[aria-busy=false]"
expect.set_options(timeout=30_000)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Chromium without a window."""
    program = shutil.which("chromium") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("there is no chromium on this machine")
    with sync_playwright() as player:
        chromium = player.chromium.launch(executable_path=program, args=FLAGS.split())
        yield chromium
        chromium.close()


@pytest.fixture
def page(browser: Browser, served: str) -> Iterator[Page]:
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


def test_classes_are_shown_with_their_scores(
    page: Page, photo: Path, ask: Callable[..., Any]
) -> None:
    expected = ask("classify?top=10", photo.read_bytes())["classes"]
    page.goto("/#tab=classify")
    page.set_input_files("#file", photo)
    expect(page.locator(".bars li")).to_have_count(len(expected))
    assert page.locator(".bars span").all_text_contents() == [one["name"] for one in expected]


def test_a_map_of_classes_stands_beside_its_picture(
    page: Page, photo: Path, ask: Callable[..., Any]
) -> None:
    expected = ask("segment", photo.read_bytes())
    page.goto("/#tab=segment")
    page.set_input_files("#file", photo)
    figures = page.locator(".pair figure")
    expect(figures).to_have_count(2)
    for figure in figures.all():
        for image in figure.locator("img").all():
            expect(image).not_to_have_js_property("naturalWidth", 0)
    boxes = [figure.locator(".layers").bounding_box() for figure in figures.all()]
    assert boxes[0]
    assert boxes[1]
    assert boxes[0]["y"] == boxes[1]["y"]
    assert boxes[0]["width"] <= boxes[1]["x"] - boxes[0]["x"]
    for box in boxes:
        ratio = expected["width"] / expected["height"]
        assert box["width"] / box["height"] == pytest.approx(ratio, rel=0.02)
    legend = page.locator(".legend span").all_text_contents()
    assert legend == [one["name"] for one in expected["classes"]]


def test_a_line_between_before_and_after_is_moved_by_keys_and_by_hand(
    page: Page, photo: Path, ask: Callable[..., Any]
) -> None:
    expected = ask("edges", photo.read_bytes())
    page.goto("/#tab=edges")
    page.set_input_files("#file", photo)
    line = page.get_by_role("slider", name="Image and Edges")
    expect(line).to_have_value("50")
    for image in page.locator(".compared img").all():
        expect(image).not_to_have_js_property("naturalWidth", 0)
    expect(page.locator(".compared figcaption span")).to_have_text(["Image", "Edges"])
    before, after = (one.bounding_box() for one in page.locator(".compared img").all())
    assert before
    assert before == after, "one lies upon the other"
    ratio = expected["width"] / expected["height"]
    assert before["width"] / before["height"] == pytest.approx(ratio, rel=0.02)
    assert hidden(page) == pytest.approx(before["width"] / 2, abs=2)
    line.focus()
    page.keyboard.press("ArrowLeft")
    expect(line).to_have_value("49")
    page.keyboard.press("Home")
    assert hidden(page) <= 2
    middle = before["y"] + before["height"] / 2
    page.mouse.click(before["x"] + 0.75 * before["width"], middle)
    assert hidden(page) == pytest.approx(0.75 * before["width"], abs=0.02 * before["width"])


def hidden(page: Page) -> float:
    """Pixels of what is painted that the picture before it covers."""
    found = page.locator(".after").evaluate(
        """(image) => {
            const {left, width, top, height} = image.getBoundingClientRect();
            const y = top + height / 2;
            const behind = (x) => getComputedStyle(image).clipPath !== "none"
                && !document.elementsFromPoint(left + x, y).includes(image);
            let x = 0;
            while (x < width && behind(x + 0.5)) x += 1;
            return x;
        }"""
    )
    return float(found)


def test_the_mask_is_as_opaque_as_asked(page: Page, photo: Path) -> None:
    page.goto("/#tab=segment")
    page.set_input_files("#file", photo)
    expect(page.locator(".mask")).to_have_css("opacity", "0.6")
    page.fill("#opacity", "100")
    expect(page.locator(".mask")).to_have_css("opacity", "1")


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


# --- models of several inputs --------------------------------------------------------------------

VERDICT = ".bars b"


def verdict(answer: Any) -> list[str]:
    """The scores of an answer as the page writes them."""
    return [f"{score:.3f}" for score in answer["outputs"]["verdict"].values()]


def test_a_model_of_several_inputs_is_asked_once_all_are_given(
    page: Page, photo: Path, ask: Callable[..., Any]
) -> None:
    first, second = ask("images?limit=2")["ids"]
    page.goto("/#tab=models")
    expect(page.locator(".hint")).to_have_text("Still to be given: First, Caption.")
    expect(page.get_by_role("radio", name="First")).to_be_checked()
    page.locator(f'#collection a[title="{first}"]').click()
    expect(page.locator("#collection h2")).to_have_text("Collection for Second")
    expect(page.locator(".hint")).to_have_text("Still to be given: Caption.")
    page.get_by_label("Caption").fill("a cup")
    alone = ask("models/pairs", {"first": first, "caption": "a cup"})
    expect(page.locator(".pair figure")).to_have_count(2)
    assert page.locator(VERDICT).all_text_contents() == verdict(alone)
    page.locator(f'#collection a[title="{second}"]').click()
    both = {"first": first, "second": second, "caption": "a cup", "style": [3, 0, 0]}
    expect(page.locator(".pair figcaption")).to_have_text(["First", "Second", "Blend"])
    page.get_by_label("Style").fill("[3, 0, 0]")
    expect(page.locator(VERDICT)).to_have_text(verdict(ask("models/pairs", both)))
    page.reload()
    expect(page.locator(VERDICT)).to_have_text(verdict(ask("models/pairs", both)))
    page.get_by_role("button", name="Remove Second").click()
    expect(page.locator(".pair figure")).to_have_count(2)
    page.go_back()
    expect(page.locator(".pair figure")).to_have_count(3)


def test_a_file_is_dropped_on_the_slot_that_it_is_for(page: Page, photo: Path) -> None:
    page.goto("/#tab=models&text.caption=a")
    page.set_input_files("#file", photo)
    expect(page.locator(".pair figure")).to_have_count(2)
    page.get_by_role("radio", name="First").check()
    page.evaluate(
        """(bytes) => {
            const dataTransfer = new DataTransfer();
            dataTransfer.items.add(new File([new Uint8Array(bytes)], "other.jpg"));
            const event = new DragEvent("drop", {bubbles: true, cancelable: true, dataTransfer});
            document.querySelector("[data-input=second] .box").dispatchEvent(event);
        }""",
        list(photo.read_bytes()),
    )
    expect(page.locator("[data-input=second] figcaption")).to_have_text("other.jpg")
    expect(page.locator("[data-input=first] figcaption")).to_have_text(photo.name)
    expect(page.locator(".pair figure")).to_have_count(3)


def test_a_vector_of_another_length_shows_the_words_of_the_service(
    page: Page, ask: Callable[..., Any]
) -> None:
    id = ask("images?limit=1")["ids"][0]
    page.goto("/#tab=models")
    page.get_by_label("Style").fill("[1, 2]")
    page.get_by_label("Caption").fill("a")
    page.locator(f'#collection a[title="{id}"]').click()
    fault = ask("models/pairs", {"first": id, "caption": "a", "style": [1, 2]})["error"]
    expect(page.get_by_role("alert")).to_have_text(f"style: {fault['message']}")


def declared(**model: Any) -> dict[str, Any]:
    """A model as `GET /v1/models` names it."""
    return {"name": "m", "kind": "", "uri": "x", "fingerprint": "f" * 64, "classes": [], **model}


def answer_with(page: Page, models: list[Any], outputs: dict[str, Any]) -> None:
    """Let the service have other models."""
    page.route("**/v1/models", lambda route: route.fulfill(json={"models": models}))
    said = {"model": "m", "fingerprint": "f" * 64, "outputs": outputs}
    page.route("**/v1/models/m?*", lambda route: route.fulfill(json=said))


def test_every_type_of_output_is_shown(page: Page) -> None:
    inputs = {"words": {"type": "text", "required": True, "longest": 9}}
    types = ("labels", "scores", "scores", "text", "vector", "of the future")
    names = ("labels", "match", "losses", "said", "code", "odd")
    outputs = {name: {"type": type} for name, type in zip(names, types, strict=True)}
    found = {
        "labels": [{"name": "cat", "score": 0.75}, {"name": "dog", "score": 0.25}],
        "match": 0.5,
        "losses": {"a": -3.5, "b": 1234.5},
        "said": "<b>two</b> cats",
        "code": [0.5] * 16,
        "odd": {"x": 1},
    }
    answer_with(page, [declared(inputs=inputs, outputs=outputs)], found)
    page.goto("/#tab=models")
    expect(page.locator("#slots > *")).to_have_count(0)
    expect(page.locator("#collection")).to_be_hidden()
    page.get_by_role("textbox", name="Words").fill("more than nine")
    expect(page.get_by_role("textbox", name="Words")).to_have_value("more than")
    expect(page.locator("#result h2")).to_have_text(["Labels", "Losses", "Said", "Code", "Odd"])
    expect(page.locator(".bars span")).to_have_text(["cat", "dog", "Match", "a", "b"])
    expect(page.locator(".bars b")).to_have_text(["0.750", "0.250", "0.500", "-3.500", "1235"])
    expect(page.locator(".bar:visible")).to_have_count(3)
    expect(page.locator(".text")).to_have_text("<b>two</b> cats")
    expect(page.locator(".vector")).to_contain_text("16 numbers: 0.500, 0.500")
    expect(page.locator("pre")).to_contain_text('"x": 1')


def test_a_swap_takes_two_pictures_and_a_pose(page: Page, photo: Path) -> None:
    picture = {"type": "picture", "required": True}
    pose = {"type": "key points", "required": True, "skeleton": ["neck", "left_hip"]}
    parsing = {"type": "class map", "required": False, "labels": ["skin", "shirt"]}
    inputs = {"reference": picture, "target": picture, "pose": pose, "parsing": parsing}
    dot = "data:image/gif;base64,R0lGODlhAQABAAAAACH5BAEKAAEALAAAAAABAAEAAAICTAEAOw=="
    painted = {"picture": {"width": 40, "height": 60, "data": dot}}
    model = declared(kind="swap", inputs=inputs, outputs={"picture": {"type": "picture"}})
    answer_with(page, [model], painted)
    page.goto("/#tab=swap")
    expect(page.locator("#slots .choice")).to_have_text(
        ["Reference", "Target", "Parsing (optional)"]
    )
    page.set_input_files("#file", photo)
    expect(page.locator(".hint")).to_have_text("Still to be given: Target, Pose.")
    page.set_input_files("[data-input=target] [type=file]", photo)
    with page.expect_request("**/v1/models/m?picture=true") as asked:
        page.get_by_label("Pose").fill("[[20, 12, 1], [18, 40, 1]]")
    sent = asked.value.post_data_buffer or b""
    for name in ("reference", "target", "pose"):
        assert f'name="{name}"'.encode() in sent
    assert b"[[20, 12, 1], [18, 40, 1]]" in sent
    assert b'name="parsing"' not in sent
    expect(page.locator(".pair figcaption")).to_have_text(["Reference", "Target", "Picture"])


def test_the_longest_side_is_asked_for_where_the_model_has_one(page: Page, photo: Path) -> None:
    inputs = {"image": {"type": "picture", "required": True}}
    more = {"inputs": inputs, "outputs": {"caption": {"type": "text"}}}
    models = [declared(kind="translate", longest=1024, **more), declared(kind="segment", **more)]
    answer_with(page, models, {"caption": "done"})
    page.goto("/#tab=translate")
    page.set_input_files("#file", photo)
    expect(page.locator(".text")).to_have_text("done")
    with page.expect_request("**/v1/models/m?picture=true&longest=512"):
        page.get_by_label("Longest side in pixels").fill("512")
    with page.expect_request("**/v1/models/m?picture=true"):
        page.get_by_label("Longest side in pixels").fill("")
    with page.expect_request("**/v1/models/m?picture=true"):
        page.get_by_role("tab", name="Segment").click()
    expect(page.get_by_label("Longest side in pixels")).to_be_hidden()


def test_one_of_some_texts_is_chosen(page: Page, photo: Path) -> None:
    to = {"type": "text", "required": False, "longest": 99, "choices": ["day", "night"]}
    inputs = {"image": {"type": "picture", "required": True}, "to": to}
    model = declared(kind="translate", inputs=inputs, outputs={"caption": {"type": "text"}})
    answer_with(page, [model], {"caption": "done"})
    page.goto("/#tab=translate")
    page.set_input_files("#file", photo)
    expect(page.locator(".text")).to_have_text("done")
    with page.expect_request("**/v1/models/m?picture=true") as asked:
        page.get_by_label("To (optional)").select_option("night")
    assert b'name="to"\r\n\r\nnight' in (asked.value.post_data_buffer or b"")
    page.reload()
    expect(page.get_by_label("To (optional)")).to_have_value("night")


def test_a_kind_that_the_page_does_not_know_gets_a_tab(page: Page, photo: Path) -> None:
    one = {"photo": {"type": "picture", "required": True}}
    model = declared(kind="describe", inputs=one, outputs={"caption": {"type": "text"}})
    answer_with(page, [model], {"caption": "a cup"})
    page.goto("/")
    page.get_by_role("tab", name="Describe").click()
    with page.expect_request("**/v1/models/m?picture=true") as asked:
        page.set_input_files("#file", photo)
    assert asked.value.method == "POST"
    expect(page.locator(".text")).to_have_text("a cup")
    expect(page.locator("#facts")).to_contain_text("model m")


def test_of_several_models_the_address_names_the_chosen(page: Page, photo: Path) -> None:
    one = {"photo": {"type": "picture", "required": True}}
    both = {**one, "words": {"type": "text", "required": False, "longest": 9}}
    text = {"caption": {"type": "text"}}
    models = [declared(name="n", inputs=both, outputs=text), declared(inputs=one, outputs=text)]
    answer_with(page, models, {"caption": "a cup"})
    page.goto("/#tab=models")
    expect(page.get_by_role("textbox", name="Words")).to_be_visible()
    page.get_by_label("Model", exact=True).select_option("m")
    expect(page.get_by_role("textbox", name="Words")).to_have_count(0)
    page.reload()
    expect(page.get_by_label("Model", exact=True)).to_have_value("m")
    page.set_input_files("#file", photo)
    expect(page.locator(".text")).to_have_text("a cup")
