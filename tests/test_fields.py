"""What a task declares: values that it takes, columns and answers of what it gives."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from tinytask import TinySettings, TinyTask

from imgray.data import pixels
from imgray.data.fields import (
    Boundaries,
    ClassMap,
    Input,
    KeyPoints,
    Label,
    Labels,
    Output,
    Picture,
    Scores,
    Text,
    Vector,
    checked,
    sole_picture,
)
from imgray.data.pixels import Rejected
from imgray.errors import UserError
from imgray.training.recipe import Recipe
from imgray.training.task import task_of

POINTS = [[1.0, 2.0, 0.5], [3.0, 4.0, 1.0]]


@pytest.mark.parametrize(
    ("declared", "given", "expected"),
    [
        (Picture(), b"x", b"x"),
        (Picture(), {"bytes": b"x", "path": "a.jpg"}, b"x"),
        (Text(), " a dog\n", " a dog\n"),
        (Vector(2), [1, 2.5], [1, 2.5]),
        (Vector(2), "[1, 2.5]", [1, 2.5]),
        (Vector(2), np.array([1, 2.5], np.float16), [1, 2.5]),
        (KeyPoints(("nose", "neck")), POINTS, POINTS),
        (KeyPoints(("nose", "neck")), [1, 2, 0.5, 3, 4, 1], POINTS),
        (Label(), 3, 3),
        (Label(), "dog", "dog"),
    ],
)
def test_values_are_taken(declared: Input, given: Any, expected: Any) -> None:
    found = declared.value(given)
    np.testing.assert_array_equal(found, expected)
    if isinstance(declared, Vector | KeyPoints):
        assert found.dtype == np.float32


@pytest.mark.parametrize(
    ("declared", "given", "reason"),
    [
        (Picture(), "a.jpg", "a text, where a picture is expected"),
        (Picture(), {"path": "a.jpg", "bytes": None}, "an object, where a picture"),
        (Text(), 3, "a number, where a text is expected"),
        (Text(), b"x", "bytes, where a text"),
        (Text(), " \n\t", "an empty text"),
        (Text(), "a" * 1_000_000, "a text of 1,000,000 characters; at most 10,000"),
        (Text(longest=3), "four", "4 characters; at most 3"),
        (Text(), "half \ud83d", "half of a surrogate pair"),
        (Vector(3), [1, 2], "2 numbers, where 3 numbers are expected"),
        (Vector(3), [[1], [2], [3]], "3 x 1 numbers, where 3"),
        (Text(choices=("day", "night")), "dusk", "no 'dusk'; there are day, night"),
        (Text(choices=("day", "night")), "x" * 9999, "no 'xxx.*; there are day, night"),
        (Vector(3), 1, "one numbers, where 3"),
        (Vector(3), [1, 2, float("nan")], "not finite"),
        (Vector(3), "[1, 2, Infinity]", "not finite"),
        (Vector(3), [1, 2, 1e300], "not finite"),
        (Vector(3), "none", "a text that is no JSON, where 3"),
        (Vector(3), "[" * 100_000, "a text that is no JSON"),
        (Vector(3), ["a", "b", "c"], "truth values or texts, where 3"),
        (Vector(3), ["1", "2", "3"], "truth values or texts, where 3"),
        (Vector(3), '[1, 2, "3"]', "truth values or texts, where 3"),
        (Vector(3), [1, 2.5, True], "truth values or texts, where 3"),
        (Vector(3), np.array([True, False, True]), "truth values or texts, where 3"),
        (Vector(3), True, "truth values or texts, where 3"),
        (KeyPoints(("nose",)), [[1, 2, True]], "truth values or texts, where 1 x 3"),
        (Vector(3), {"a": 1}, "an object, where 3"),
        (Vector(3), None, "0 numbers, where 3"),
        (KeyPoints(("nose",)), [[1, 2]], "1 x 2 numbers, where 1 x 3"),
        (Label(), 1.5, "a number, where a class"),
        (Label(), True, "a truth value, where a class"),
        (Boundaries(), np.zeros((0, 4, 4), bool), "annotators x height x width"),
        (Boundaries(), [[[1, 0], [1]]], "annotators x height x width"),
        (Boundaries(), [[["1", "0"]]], "annotators x height x width"),
    ],
)
def test_other_values_are_rejected(declared: Input, given: Any, reason: str) -> None:
    with pytest.raises(Rejected, match=reason):
        declared.value(given)


def test_a_file_that_is_too_large_is_no_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("imgray.data.fields.MAX_BYTES", 10)
    with pytest.raises(Rejected, match="a picture of 11 bytes; at most 10"):
        Picture().value(bytes(11))
    assert pixels.MAX_BYTES == 2**28


INPUTS: Mapping[str, Input] = {"photo": Picture(), "caption": Text(optional=True), "v": Vector(2)}


def test_a_record_is_checked_by_name() -> None:
    found = checked(INPUTS, {"photo": b"x", "caption": None, "v": [1, 2]})
    assert list(found) == ["photo", "v"]
    for given, reason in (
        ({"photo": b"x"}, "^v: missing$"),
        ({"photo": None, "v": [1, 2]}, "^photo: missing$"),
        ({"photo": b"x", "v": [1]}, "^v: 1 numbers"),
        ({"photo": b"x", "v": [1, 2], "tiger": 1}, "^tiger: no such input; there are photo, cap"),
    ):
        with pytest.raises(Rejected, match=reason):
            checked(INPUTS, given)


@pytest.mark.parametrize(
    ("inputs", "expected"),
    [
        ({"photo": Picture()}, "photo"),
        ({"caption": Text(optional=True), "photo": Picture()}, "photo"),
        ({"photo": Picture(optional=True), "caption": Text(optional=True)}, "photo"),
        ({"caption": Text(optional=True), "photo": Picture(optional=True)}, None),
        ({"a": Picture(), "b": Picture()}, None),
        ({"caption": Text()}, None),
        ({"parsing": ClassMap(("hat",))}, None),
    ],
)
def test_what_a_mere_picture_fills(inputs: Mapping[str, Input], expected: str | None) -> None:
    assert sole_picture(inputs) == expected


ROW = {
    "label": "dog", "score": 0.7, "labels": ["cat", "dog"], "scores": [0.3, 0.7],
    "classes": ["a"], "classes_scores": [1.0], "share": 0.25, "x": 1.0, "y": 2.0,
    "said": "a dog", "v": [1.0, 2.0],
}  # fmt: skip
STRINGS, FLOATS = pa.list_(pa.string()), pa.list_(pa.float32())
PAIRS = [{"name": "dog", "score": 0.7}, {"name": "cat", "score": 0.3}]


@pytest.mark.parametrize(
    ("name", "declared", "columns", "answer"),
    [
        (
            "labels",
            Labels(scores="scores", best=("label", "score")),
            [
                ("label", pa.string()),
                ("score", pa.float32()),
                ("labels", STRINGS),
                ("scores", FLOATS),
            ],
            PAIRS,
        ),
        (
            "classes",
            Labels(),
            [("classes", STRINGS), ("classes_scores", FLOATS)],
            [{"name": "a", "score": 1.0}],
        ),
        ("share", Scores(), [("share", pa.float32())], 0.25),
        ("xy", Scores(("x", "y")), [("x", pa.float32()), ("y", pa.float32())], {"x": 1, "y": 2}),
        ("said", Text(), [("said", pa.string())], "a dog"),
        ("v", Vector(2), [("v", pa.list_(pa.float32(), 2))], [1, 2]),
        ("picture", Picture(), [], None),
    ],
)
def test_outputs_have_columns_and_answers(
    name: str, declared: Output, columns: list[tuple[str, pa.DataType]], answer: Any
) -> None:
    assert declared.columns(name) == [pa.field(*column) for column in columns]
    if declared.painted:
        with pytest.raises(TypeError):
            declared.answer(name, ROW)
    else:
        assert declared.answer(name, ROW) == answer


@pytest.mark.parametrize(
    ("declared", "reason"),
    [
        ({"inputs": {"id": Text()}}, "input 'id': declared twice, or a name of ours"),
        ({"inputs": {"label": Text()}}, "input 'label': declared twice"),
        ({"outputs": {"a": Scores(("x",)), "b": Scores(("x",))}}, "column of an output 'x'"),
        ({"outputs": {"sha256": Text()}}, "column of an output 'sha256'"),
        ({"outputs": {"a": Picture(), "b": ClassMap(("x",))}}, "more than one output is a picture"),
    ],
)
def test_a_declaration_that_names_twice_is_refused(
    monkeypatch: pytest.MonkeyPatch, declared: dict[str, Any], reason: str
) -> None:
    recipe = {"task": "tinytask:TinyTask", "data": {"format": "parquet"}}
    found = Recipe.model_validate({**recipe, "batch_size": 1, "steps": 1})
    for name, fields in declared.items():
        monkeypatch.setattr(TinyTask, name, fields)
    with pytest.raises(UserError, match=f"TinyTask: {reason}"):
        task_of(found, ("a", "b"))


def test_a_task_speaks_by_its_outputs(monkeypatch: pytest.MonkeyPatch) -> None:
    outputs = {"labels": Labels(scores="scores"), "map": ClassMap(("a", "b"))}
    monkeypatch.setattr(TinyTask, "outputs", outputs)
    task = TinyTask(TinySettings(), ("cat", "dog"))
    assert task.words(ROW) == [("dog", 0.7), ("cat", 0.3)]
    assert task.painted == "map"
    assert task.columns.names == ["labels", "scores"]
    assert task.palette is not None
    assert task.palette.shape == (2, 3)
