"""An index with a joint part is asked by words, by pictures, and by both."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from jointly import Made, check_same, photo_of

import imgray
import imgray.training.joint
from imgray.cli import run_job
from imgray.engine.search import SearchEngine, SearchResult, search
from imgray.engine.settings import (
    SearchConfig,
)
from imgray.errors import UserError
from imgray.retrieval.deepindex import Hits
from imgray.retrieval.modalities import Blend

pytestmark = pytest.mark.usefixtures("knowing_jobs")


def _fused(
    lists: Mapping[str, Hits], weights: Mapping[str, float], fusion: str, top: int
) -> list[tuple[int, float]]:
    """By the definition, in loops: min-max of what a list has, 0 for what it lacks."""
    scaled: dict[str, dict[int, float]] = {}
    for name, hits in lists.items():
        low, high = min(hits.scores), max(hits.scores)
        pairs = zip(hits.positions.tolist(), hits.scores.tolist(), strict=True)
        scaled[name] = {position: (score - low) / (high - low) for position, score in pairs}
    candidates = sorted({position for one in scaled.values() for position in one})
    shares = dict(weights)
    if fusion == "adaptive":
        for name, one in scaled.items():
            shares[name] /= sum(one.values()) / len(candidates)
    total = sum(shares.values())
    scores = {
        c: sum(shares[name] / total * one.get(c, 0) for name, one in scaled.items())
        for c in candidates
    }
    return sorted(scores.items(), key=lambda item: (-item[1], item[0]))[:top]


@pytest.mark.parametrize("fusion", ["average", "adaptive"])
@pytest.mark.parametrize("weights", [{}, {"image": 3.0}, {"text": 0.2, "image": 1.0}])
def test_an_image_and_a_text_are_fused_by_definition(
    opened: dict[int, SearchEngine], made: Made, fusion: Any, weights: dict[str, float]
) -> None:
    for image, number, top in ((0, 0, 5), (3, 20, 10), (30, 1, 40)):
        [text] = made.texts(number)
        blend, photo = Blend(weights, fusion), photo_of(made, image)
        found = [o.search(photo, text, top=top, blend=blend) for o in opened.values()]
        check_same(*found)
        lists = {
            "image": opened[1].search_images({"": photo}, 400)[0],
            "text": opened[1].search_texts([text], 400)[0],
        }
        expected = _fused(lists, {"image": 1.0, "text": 1.0} | weights, fusion, top)
        pairs = list(zip(found[0].positions.tolist(), found[0].scores.tolist(), strict=True))
        assert [round(score, 9) for _, score in pairs] == [round(s, 9) for _, s in expected]
        assert {p for p, _ in pairs} == {p for p, _ in expected} or top < 40
        assert [made.ids[position] for position, _ in pairs] == found[0].ids
        assert found[0].touched == sum(hits.touched for hits in lists.values())


def test_one_modality_keeps_the_scores_that_it_has_alone(
    opened: dict[int, SearchEngine], made: Made
) -> None:
    photo, [text] = photo_of(made, 4), made.texts(9)
    one = opened[3]
    [image], [by_text] = one.search_images({"": photo}, 6), one.search_texts([text], 6)
    for blend in (Blend(), Blend({"text": 0}), Blend({"text": 0}, "adaptive")):
        check_same(
            one.search(photo, None if not blend.weights else text, top=6, blend=blend), image
        )
    for given in (None, photo):
        check_same(
            one.search(given, text, top=6, blend=Blend({"image": 0} if given else {})), by_text
        )


def test_a_prefix_holds_in_a_question_of_both(opened: dict[int, SearchEngine], made: Made) -> None:
    photo, [text] = photo_of(made, 4), made.texts(9)
    found = opened[3].search(photo, text, top=40, prefix="b/")
    assert found.ids
    assert all(id.startswith("b/") for id in found.ids)
    assert opened[3].search(photo, text, prefix="nowhere/").ids == []


@pytest.mark.parametrize(
    ("asked", "reason"),
    [
        ({}, "an image, a text, or both"),
        ({"text": ""}, "text: an empty text"),
        ({"text": " \n"}, "text: an empty text"),
        ({"text": "a" * 10_001}, "text: a text of 10,001 characters; at most 10,000"),
        ({"text": "7 \ud800"}, "text: a text with half of a surrogate pair"),
        ({"text": "7", "blend": Blend({"text": 0})}, "text have weight 0"),
        ({"text": "7", "blend": Blend({"sound": 1})}, "modality 'sound': there are image and text"),
        ({"text": "7", "blend": Blend({"image": -1})}, "weight of image: -1"),
        ({"text": "7", "blend": Blend({"text": float("nan")})}, "weight of text: nan"),
        ({"text": "7", "image": b"none"}, "image: not a readable"),
    ],
)
def test_a_wrong_question_is_one_line(
    opened: dict[int, SearchEngine], asked: dict[str, Any], reason: str
) -> None:
    with pytest.raises(UserError, match=reason):
        opened[1].search(**asked)


def test_an_index_of_pictures_refuses_words_and_says_how_to_make_one(
    plain: str, made: Made, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UserError, match="knows pictures alone, no words; make one with imgray ind"):
        SearchEngine(plain).search(photo_of(made, 0), "7")
    assert run_job(SearchConfig, search, ["--index", plain, "--text", "7 dogs"]) == 2
    out, err = capsys.readouterr()
    assert err.count("\n") == 1
    assert "--joint MODEL" in err
    assert out == ""


# --- the command and the library --------------------------------------------------------------


def _answers(flags: Sequence[str], capsys: pytest.CaptureFixture[str]) -> SearchResult:
    assert run_job(SearchConfig, search, [*flags, "--json"]) == 0
    return SearchResult.model_validate(json.loads(capsys.readouterr().out))


def test_the_command_takes_words_images_and_both(
    opened: dict[int, SearchEngine], indexes: dict[int, str], made: Made, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    texts, photos = made.texts(3, 8), [str(made.photos / made.ids[n]) for n in (1, 2)]
    flags, sheet = ["--index", indexes[3], "--top", "4"], tmp_path / "sheet.png"
    found = _answers([*flags, "--text", *texts, "--contact-sheet", str(sheet)], capsys)
    assert [answer.query for answer in found.answers] == texts
    for answer, hits in zip(found.answers, opened[3].search_texts(texts, 4), strict=True):
        assert answer.results == hits.results()
    assert sheet.stat().st_size > 10_000
    found = _answers([*flags, "--text", *texts, "--query", *photos], capsys)
    assert [answer.query for answer in found.answers] == [*photos, *texts]
    both = [*flags, "--text", texts[0], "--query", photos[0], "--fusion", "adaptive"]
    found = _answers([*both, "--modalities", "image=0.5", "text=2"], capsys)
    hits = opened[3].search(
        Path(photos[0]).read_bytes(), texts[0], top=4,
        blend=Blend({"image": 0.5, "text": 2}, "adaptive"),
    )  # fmt: skip
    [answer] = found.answers
    assert answer.query == f"{photos[0]} + {texts[0]}"
    assert answer.results == hits.results()


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        ([], "say --query IMAGE, --text WORDS, or both"),
        (["--text", ""], "text: an empty text"),
        (["--text", "7", "--modalities", "text"], "--modalities text: expected NAME=WEIGHT"),
        (["--text", "7", "--modalities", "text=x"], "--modalities text=x: expected a number"),
        (["--text", "7", "--modalities", "text=0"], "text have weight 0"),
    ],
)
def test_wrong_flags_are_one_line(
    indexes: dict[int, str], flags: list[str], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_job(SearchConfig, search, ["--index", indexes[1], *flags]) == 2
    out, err = capsys.readouterr()
    [line] = err.splitlines()
    assert line.startswith("error: ")
    assert reason in line
    assert out == ""


def test_the_library_answers_as_the_engine(
    opened: dict[int, SearchEngine], indexes: dict[int, str], made: Made
) -> None:
    index, photo, [text] = imgray.open_index(indexes[3]), photo_of(made, 5), made.texts(6)
    assert index.search(text=text, top=3) == opened[3].search(text=text, top=3).results()
    both = opened[3].search(photo, text, blend=Blend({"image": 2}, "adaptive")).results()
    given = {"modalities": {"image": 2}, "fusion": "adaptive"}
    assert index.search(photo, text, **given) == both  # type: ignore[arg-type]
    assert index.search(id=made.ids[5], text=text, **given) == both  # type: ignore[arg-type]
    for asked, reason in (
        ({}, "takes an image or an id"),
        ({"image": photo, "id": "a", "text": text}, "takes an image or an id"),
        ({"text": text, "fusion": "sum"}, "fusion='sum': expected average or adaptive"),
        ({"text": text, "top": 0}, "top=0"),
    ):
        with pytest.raises(UserError, match=reason):
            index.search(**asked)  # type: ignore[arg-type]
