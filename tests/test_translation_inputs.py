"""Pictures and domains to translate: sizes, strips, pairs, and what is refused of them."""

import io
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from domains import COUNTS, picture, recipe, settings, write_domains
from PIL import Image
from torch import nn

from imgray.data import pixels
from imgray.data.pixels import Rejected
from imgray.data.sources import Source
from imgray.engine.examples import open_examples
from imgray.errors import UserError
from imgray.synthesis import strips, translator
from imgray.synthesis.generator import Generator, to_pixels, to_range
from imgray.synthesis.translator import TranslationLearner
from imgray.training.wanted import while_wanted

pytestmark = pytest.mark.usefixtures("undrawn")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_domains(tmp_path_factory.mktemp("domains"))


def test_a_picture_is_translated_at_its_size_either_way(data: Path) -> None:
    examples = open_examples(recipe(), str(data))
    task = examples.task
    assert task.classes == ("A", "B")
    torch.manual_seed(0)
    learner = task.learner()
    pictures = []
    for to in (None, "A", "B"):
        values = {"image": picture(5, 31, 18)} | ({"to": to} if to else {})
        arrays = {name: torch.as_tensor(a)[None] for name, a in task.prepare(values).items()}
        with torch.no_grad():
            [found] = learner.predict(arrays)
        assert found.picture is not None
        assert found.picture.shape == (18, 31, 3)
        pictures.append(found.picture)
    assert np.array_equal(pictures[0], pictures[2])
    assert not np.array_equal(pictures[0], pictures[1])
    with pytest.raises(Rejected, match="no 'C'; there are A, B"):
        task.inputs["to"].value("C")


def test_domains_of_unequal_size_are_drawn_from_whole(data: Path) -> None:
    examples = open_examples(recipe(), str(data))
    train = examples.train
    assert len(train) == 7
    images = {
        name: [(data / f"train{name}/{n}.png").read_bytes() for n in range(COUNTS[f"train{name}"])]
        for name in "AB"
    }
    records = [train.drawn(n, np.random.default_rng(n)) for n in range(7)]
    assert [r["x"] for r in records] == images["A"]
    assert {r["y"] for r in records} <= set(images["B"])
    partners = {train.drawn(0, np.random.default_rng(seed))["y"] for seed in range(60)}
    assert partners == set(images["B"])
    assert [train[n]["y"] for n in range(7)] == [*images["B"], *images["B"][:2]]


def test_pairs_go_by_name_and_are_whole(data: Path, tmp_path: Path) -> None:
    shutil.copytree(data, tmp_path / "pairs")
    val = open_examples(recipe(paired=True), str(tmp_path / "pairs")).val
    assert [val[n]["ids"] for n in range(3)] == [
        {"x": f"valA/{n}.png", "y": f"valB/{n}.png"} for n in range(3)
    ]
    (tmp_path / "pairs/valB/1.png").rename(tmp_path / "pairs/valB/9.png")
    with pytest.raises(UserError, match=r"valA/1.png: settings.paired, but there is no picture"):
        open_examples(recipe(paired=True), str(tmp_path / "pairs"))


@pytest.mark.parametrize("supervised", [0.0, 1.0])
def test_true_pairs_are_drawn_and_cut_alike_where_they_are_learnt_from(
    supervised: float, data: Path, tmp_path: Path
) -> None:
    """Partners here are one picture, so that a pair cut alike is equal."""
    for part in ("trainA", "trainB", "valA", "valB"):
        shutil.copytree(data / "trainA", tmp_path / part)
    examples = open_examples(recipe(paired=True, supervised=supervised), str(tmp_path))
    batches = [examples.training(step, 0, 1) for step in range(12)]
    alike = [
        np.array_equal(x, y) for one in batches for x, y in zip(one["x"], one["y"], strict=True)
    ]
    assert all(alike) if supervised else sum(alike) < 3
    assert len({one.tobytes() for batch in batches for one in batch["x"]}) > 20


def test_a_damaged_picture_is_named_whichever_domain_it_is_of(data: Path, tmp_path: Path) -> None:
    shutil.copytree(data, tmp_path / "damaged")
    (tmp_path / "damaged/trainB/1.png").write_bytes(b"no picture")
    examples = open_examples(recipe(), str(tmp_path / "damaged"))
    with pytest.raises(UserError, match=r"^trainB/1.png: not a readable"):
        [examples.training(step, 0, 1) for step in range(20)]
    sample = examples.task.sample(examples.val[2], 1)
    assert (sample["id"], sample["to"]) == ("valB/2.png", "A")
    assert sample["image"] == (data / "valB/2.png").read_bytes()


def test_a_part_before_two_domains(data: Path, tmp_path: Path) -> None:
    """Folders that end in A and B count only where there is none of the part's own name."""
    shutil.copytree(data, tmp_path / "both")
    for name in ("cat", "dog"):
        shutil.copytree(data / "trainA", tmp_path / "both/train" / name)
    assert Source(str(tmp_path / "both")).part("train", truth="folders").classes == ["cat", "dog"]
    assert Source(str(tmp_path / "both")).part("val", truth="folders").classes == ["A", "B"]


@pytest.mark.parametrize("larger", ["A", "B"])
def test_the_first_domain_is_gone_through(larger: str, data: Path, tmp_path: Path) -> None:
    shutil.copytree(data, tmp_path / "more")
    for n in range(20, 29):
        (tmp_path / f"more/train{larger}/{n}.png").write_bytes(picture(n))
    train = open_examples(recipe(), str(tmp_path / "more")).train
    drawn = [train.drawn(n, np.random.default_rng(n))["ids"]["x"] for n in range(len(train))]
    assert set(drawn) == {f"trainA/{p.name}" for p in (tmp_path / "more/trainA").iterdir()}


def test_strips_end_where_nobody_waits_for_them() -> None:
    wanted = iter([True, True, False])
    maps = strips.Pixels(np.zeros((16, 16, 3), np.uint8))
    with (
        torch.inference_mode(),
        while_wanted(lambda: next(wanted)),
        pytest.raises(UserError, match="nobody waits"),
    ):
        strips.run(settings().generator(), maps)
    assert next(wanted, None) is None, "it was asked until it said no"


def test_a_batch_ends_where_nobody_waits_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(translator, "TOGETHER", 1)
    wanted = iter([True, False])
    batch = {
        "image": torch.zeros(3, 8, 8, 3, dtype=torch.uint8),
        "to": torch.zeros(3, dtype=torch.int64),
    }
    with (
        torch.inference_mode(),
        while_wanted(lambda: next(wanted)),
        pytest.raises(UserError, match="nobody waits"),
    ):
        TranslationLearner(settings()).predict(batch)


@pytest.mark.parametrize("whole", [0, translator.WHOLE])
def test_numbers_that_are_not_finite_are_no_picture(
    whole: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(translator, "WHOLE", whole)
    learner = TranslationLearner(settings())
    batch = {"image": torch.zeros(1, 8, 8, 3, dtype=torch.uint8), "to": torch.tensor([0])}
    for net in learner.made.values():
        for values in net.parameters():
            nn.init.constant_(values, float("nan"))
    with torch.inference_mode():
        [found] = learner.predict(batch)
    assert (found.picture, found.fault) == (None, "numbers that are not finite")


@pytest.mark.parametrize("strip", [300, 2**20])
def test_strips_keep_what_varies_little_beside_its_mean(
    strip: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(strips, "STRIP", strip)
    torch.manual_seed(0)
    net = Generator(8, 2)
    flat = (250 + np.random.default_rng(0).integers(0, 2, (64, 64, 3))).astype(np.uint8)
    with torch.inference_mode():
        for values in net.parameters():
            values.fill_(3.0) if values.ndim == 1 else values.mul_(5.0)
        whole = to_pixels(net(to_range(torch.tensor(flat)[None])))[0].numpy()
        found = strips.picture_of(strips.run(net, strips.Pixels(flat)))
    assert np.abs(whole.astype(int) - found).max() <= 1


def test_no_room_for_strips_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", "/nonexistent")
    net = Generator(2, 0)
    with pytest.raises(UserError, match=r"cannot write to /nonexistent: No such file.*set TMPDIR"):
        strips.run(net, strips.Pixels(np.zeros((8, 8, 3), np.uint8)))


@pytest.mark.parametrize(
    ("folders", "message"),
    [
        (["train/a", "train/b", "train/c"], "two classes are needed, the domains; not a, b, c"),
        (["train/a"], "two classes are needed, the domains; not a"),
    ],
)
def test_other_than_two_domains_are_refused(
    folders: list[str], message: str, tmp_path: Path
) -> None:
    for name in [*folders, "val/a", "val/b"]:
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "1.png").write_bytes(picture(1))
    with pytest.raises(UserError, match=message):
        open_examples(recipe(), str(tmp_path))


@pytest.mark.parametrize("strip", [300, 3000, 2**22])
@pytest.mark.parametrize("changes", [{"upsampling": "resize"}, {"stages": 2, "average": 0.5}])
def test_strips_give_what_the_whole_gives(
    changes: dict[str, Any], strip: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    learner = TranslationLearner(settings(**changes))
    for net in learner.modules.values():
        for module in net.modules():
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
                nn.init.normal_(module.weight, std=0.1)
    batch = {"image": torch.tensor(np.asarray(pixels.decode(picture(3, 52, 38))))[None]}
    batch["to"] = torch.tensor([0])
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):  # which both leave aside
        [whole] = learner.predict(batch)
        monkeypatch.setattr(translator, "WHOLE", 0)
        monkeypatch.setattr(strips, "STRIP", strip)
        [found] = learner.predict(batch)
    assert whole.picture is not None
    assert found.picture is not None
    assert whole.picture.std() > 20
    assert np.abs(whole.picture.astype(int) - found.picture).max() <= 1


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (7, 3)])
def test_the_smallest_pictures_are_translated(size: tuple[int, int], data: Path) -> None:
    examples = open_examples(recipe(), str(data))
    buffer = io.BytesIO()
    Image.new("LA", size, (90, 128)).save(buffer, "PNG")
    arrays = examples.task.prepare({"image": buffer.getvalue()})
    with torch.inference_mode():
        [found] = examples.task.learner().predict(
            {name: torch.tensor(array)[None] for name, array in arrays.items()}
        )
    assert found.picture is not None
    assert found.picture.shape == (*size[::-1], 3)
