"""What the page shows of models: maps, translations, and models of several inputs."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("playwright", reason="playwright is not installed")
from playwright.sync_api import Page, expect

pytestmark = pytest.mark.slow

VERDICT = ".bars b"


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
