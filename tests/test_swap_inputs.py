"""People to swap: poses, parsing, tables of pairs, and what is refused of them."""

import io
import math
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import persons
import pytest
import torch
from persons import parsing, png, record, settings
from PIL import Image
from torch import Tensor, nn

from imgray.data import people
from imgray.data.people import People
from imgray.data.pixels import Rejected, decode
from imgray.engine.examples import check_examples, open_examples
from imgray.errors import UserError
from imgray.synthesis.pose import COCO18, MEDIAPIPE33, body18, heat_maps, mirrored
from imgray.synthesis.segmenter import Segmenter, nearest
from imgray.synthesis.swapping import Swapping
from imgray.training.task import Prediction

pytestmark = pytest.mark.usefixtures("undrawn")


def test_heat_maps_are_bells_of_visible_points() -> None:
    points = torch.tensor([[[3.5, 2.5, 1.0], [0.0, 9.0, 0.5], [4.0, 4.0, 0.49]]])
    found = heat_maps(points, (6, 8), 2.0, 0.5)
    assert found.shape == (1, 3, 6, 8)
    for k, (px, py) in enumerate([(3.5, 2.5), (0.0, 9.0)]):
        for y in range(6):
            for x in range(8):
                squared = (x + 0.5 - px) ** 2 + (y + 0.5 - py) ** 2
                assert float(found[0, k, y, x]) == pytest.approx(math.exp(-squared / 8), rel=1e-5)
    assert float(found[0, 0, 2, 3]) == 1.0
    assert not found[0, 2].any()


def test_33_points_become_18() -> None:
    given = persons.pose33()
    found = body18(given, "mediapipe33")
    left, right = (given[MEDIAPIPE33.index(f"{side}_shoulder")] for side in ("left", "right"))
    for place, name in enumerate(COCO18):
        if name == "neck":
            neck = [(left[0] + right[0]) / 2, (left[1] + right[1]) / 2, min(left[2], right[2])]
            np.testing.assert_allclose(found[place], neck, rtol=1e-6)
        else:
            assert np.array_equal(found[place], given[MEDIAPIPE33.index(name)]), name
    assert np.array_equal(body18(found, "coco18"), found)


@pytest.mark.data
def test_the_landmarks_are_those_of_the_table(shared_data: Path) -> None:
    with open(shared_data / "ccp/pose.csv") as file:
        columns = file.readline().strip().split(",")[1:]
    assert columns == [f"{p}_{axis}" for p in MEDIAPIPE33 for axis in ("x", "y", "visibility")]


def test_a_mirrored_pose_is_that_of_the_mirrored_picture() -> None:
    points = persons.pose(2.0)
    found = mirrored(points, 24)
    wanted = {name: points[place] for place, name in enumerate(COCO18)}
    for place, name in enumerate(COCO18):
        side, _, part = name.partition("_")
        other = {"left": f"right_{part}", "right": f"left_{part}"}.get(side, name)
        x, y, seen = wanted[other]
        assert found[place].tolist() == [24 - x, y, seen]
    assert np.array_equal(mirrored(found, 24), points)


def test_examples_are_mirrored_whole() -> None:
    """Picture, parsing and pose together; the target by itself."""
    task, given = Swapping(settings(), ()), record()
    given |= {"reference": png(persons.photo(0, 3)), "parsing": png(parsing(3))}
    given |= {"pose": persons.pose(3)}
    plain = task.example(given, None)
    seen = set()
    for seed in range(16):
        found = task.example(given, np.random.default_rng(seed))
        flipped = not np.array_equal(found["reference"], plain["reference"])
        step = -1 if flipped else 1
        assert np.array_equal(found["reference"], plain["reference"][:, ::step])
        assert np.array_equal(found["parsing"], plain["parsing"][:, ::step])
        pose = mirrored(plain["pose"], 16) if flipped else plain["pose"]
        np.testing.assert_allclose(found["pose"], pose)
        turned = not np.array_equal(found["target"], plain["target"])
        seen.add((flipped, turned))
        if turned:
            assert np.array_equal(found["target"], plain["target"][:, ::-1])
    assert "target_parsing" not in found
    assert len(seen) > 1
    assert plain["pose"][0].tolist() == [15 * 16 / 24, 6 * 24 / 36, 1]


def test_nearest_is_that_of_pillow() -> None:
    values = np.random.default_rng(0).integers(0, 9, (37, 23)).astype(np.uint8)
    for height, width in ((24, 16), (37, 23), (80, 50)):
        found = Image.fromarray(values).resize((width, height), Image.Resampling.NEAREST)
        assert np.array_equal(nearest(values, (height, width)), np.asarray(found))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(persons.write(tmp_path_factory.mktemp("people")))


def test_targets_of_a_large_table_are_of_the_same_piece(
    data: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = open_examples(persons.recipe(), data).train
    assert isinstance(given, People)
    whole = given.whole
    pieces = np.array([2, len(whole) - 2]), np.array([60, 60])
    monkeypatch.setattr(type(whole), "pieces", pieces)
    monkeypatch.setattr(people, "WINDOW", 100)
    train = People(whole)
    assert train.pieces is pieces
    for index in range(len(train)):
        drawn = [train.drawn(index, np.random.default_rng(n)) for n in range(40)]
        own = train.names[:2] if index < 2 else train.names[2:]
        assert {one["ids"]["target"] for one in drawn} == {*own} - {train.names[index]}
    train.people = np.array([0, 0, *range(1, len(whole) - 1)])
    drawn = [train.drawn(0, np.random.default_rng(n)) for n in range(40)]
    assert {one["ids"]["target"] for one in drawn} == {*train.names[2:]}


def test_targets_are_any_other_person(data: str) -> None:
    train = open_examples(persons.recipe(), data).train
    count = len(train)
    assert 2 < count < 8
    drawn = [train.drawn(n, np.random.default_rng(n)) for n in range(count)]
    assert [one["ids"]["reference"] for one in drawn] == list(train.names)
    targets = {train.drawn(0, np.random.default_rng(n))["ids"]["target"] for n in range(60)}
    assert targets == {*train.names} - {train.names[0]}
    assert [train[n]["ids"]["target"] for n in range(count)] == [*train.names[1:], train.names[0]]
    assert not any(one["own"] for one in drawn)


@pytest.mark.parametrize("views", [1, 2])
def test_a_share_of_pairs_shows_one_person(views: int, tmp_path: Path) -> None:
    """By another view where there is one; else by that photograph."""
    recipe = persons.recipe({"data": {"validate": "train"}}, own=0.5, reconstruction=1.0)
    rows = persons.write(tmp_path, views=views).read_text().splitlines()
    text = "\n".join([f"split,{rows[0]}", *(f"train,{row}" for row in rows[1:])])
    (tmp_path / "people.csv").write_text(text)
    train = open_examples(recipe, str(tmp_path / "people.csv")).train
    drawn = [train.drawn(4, np.random.default_rng(n)) for n in range(200)]
    own = [one["ids"]["target"] for one in drawn if one["own"]]
    assert 0.35 < len(own) / 200 < 0.65
    assert set(own) == ({"p5"} if views == 2 else {"p4"})
    others = {one["ids"]["target"] for one in drawn if not one["own"]}
    assert others == {f"p{n}" for n in range(8)} - ({"p4", "p5"} if views == 2 else {"p4"})


@pytest.mark.parametrize(
    ("size", "seen"),
    [((24, 36), (32, 48)), ((8, 1024), (32, 128)), ((1024, 2), (128, 32)), ((64, 256), (32, 128))],
)
def test_what_a_parser_sees_is_bounded(size: tuple[int, int], seen: tuple[int, int]) -> None:
    shapes: list[torch.Size] = []

    class Learner:
        modules = MappingProxyType({"net": nn.Linear(1, 1)})

        def predict(self, batch: dict[str, Tensor]) -> list[Prediction]:
            shapes.append(batch["image"].shape)
            return [Prediction({}, np.zeros(batch["image"].shape[1:3], np.uint8))]

    learner: Any = Learner()
    found = Segmenter(learner, "image", 32).classes(torch.zeros(1, *size, 3, dtype=torch.uint8))
    assert shapes == [(1, *seen, 3)]
    assert found.shape == (1, *size)


def test_a_sample_of_long_pictures_is_bounded() -> None:
    task, given = Swapping(settings(), ()), record()
    long, high = (png(np.zeros((*shape, 3), np.uint8)) for shape in ((1, 20_000), (9000, 3)))
    for reference, target in ((long, long), (high, long), (long, high)):
        shown = task.shown(given | {"reference": reference, "target": target})
        assert max(decode(shown).size) <= 2 * 512


def test_a_photograph_is_decoded_at_the_size_that_crops_need() -> None:
    """A JPEG by a fraction; the pose is still that of the whole."""
    task, given = Swapping(settings(), ()), record()
    noise = np.random.default_rng(0).integers(0, 256, (360, 240, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, "JPEG")
    size, found = (240, 360), given | {"reference": buffer.getvalue(), "pose": persons.pose() * 10}
    found["pose"][:, 2] = 1
    found["parsing"] = png(np.kron(parsing(), np.ones((10, 10), np.uint8)))
    image, whole = task._decoded("reference", found["reference"])
    assert (image.size, whole) == ((60, 90), size)
    plain = task.example(given, None)
    large = task.example(found, None)
    np.testing.assert_allclose(large["pose"], plain["pose"])
    assert np.array_equal(large["parsing"], plain["parsing"])


def test_a_sample_shows_both_people() -> None:
    task, given = Swapping(settings(), ()), record()
    sample = task.sample(given, 0)
    assert sample.keys() == {"id", "reference", "target", "pose", "parsing"}
    both = np.asarray(decode(task.shown(sample)))
    assert np.array_equal(both, np.concatenate([persons.photo(0), persons.photo(1)], axis=1))


def _shoulderless() -> np.ndarray:
    points = persons.pose()
    points[[2, 5], 2] = 0.1
    return points


def _seen(visibility: float) -> np.ndarray:
    points = persons.pose()
    points[3, 2] = visibility
    return points


BAD: list[tuple[dict[str, Any], str]] = [
    ({"pose": _shoulderless()}, "pose: no shoulder has a visibility of 0.5"),
    ({"pose": persons.pose() / [24, 36, 1]}, "pose: all points lie within one pixel"),
    ({"pose": persons.pose(500)}, "pose: no visible point lies in the picture of 24 x 36 pixels"),
    ({"pose": _seen(7)}, "pose: visibility 7; 0 to 1 is expected"),
    ({"parsing": png(parsing() + 3)}, "parsing: label 7, but the recipe names 5 labels"),
    ({"parsing": png(parsing(0, (24, 35)))}, "parsing: 24 x 35 pixels, for a picture of 24 x 36"),
    ({"parsing": png(parsing() * 0)}, "parsing: no pixel of a person"),
    ({"parsing": png(persons.photo(0))}, "parsing: RGB; one 8-bit channel is needed"),
    ({"parsing": b"no picture"}, "parsing: no PNG"),
    ({"reference": b"no picture"}, "reference: not a readable"),
    ({"target": b"no picture"}, "target: not a readable"),
]


@pytest.mark.parametrize(("changes", "fault"), BAD)
def test_bad_input_is_told_by_its_name(changes: dict[str, Any], fault: str) -> None:
    task, given = Swapping(settings(), ()), record() | changes
    with pytest.raises(Rejected, match=f"^{fault}") as refused:
        task.prepare({name: given[name] for name in task.inputs})
    assert "\n" not in str(refused.value)
    id = "p1" if "target" in changes else "p0"
    with pytest.raises(UserError, match=f"^{id}: {fault}.*; mend or remove it"):
        task.example(given, None)


def test_the_targets_parsing_is_told_to_be_the_targets() -> None:
    given = record() | {"target_parsing": png(parsing() + 3)}
    with pytest.raises(UserError, match=r"^p1: parsing: label 7"):
        Swapping(settings(), ()).example(given, None)


def test_tables_are_checked_before_a_run(tmp_path: Path) -> None:
    path = persons.write(tmp_path)
    (tmp_path / "parsing-3.png").write_bytes(png(parsing(0, (24, 30))))
    with pytest.raises(UserError, match="p3: parsing: 24 x 30 pixels"):
        check_examples(open_examples(persons.recipe(), str(path)))
    rows = path.read_text().splitlines()
    path.write_text("\n".join([rows[0], rows[1].replace("12.0", "NaN", 1), *rows[2:]]))
    with pytest.raises(UserError, match="row 0, column 'pose': a number that is not finite"):
        check_examples(open_examples(persons.recipe(), str(path)))
    path.write_text("\n".join(rows[:2]))
    whole = persons.recipe({"data": {"train": ".", "validate": "."}})
    with pytest.raises(UserError, match="one person alone"):
        open_examples(whole, str(path))
