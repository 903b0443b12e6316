"""Pictures as image-level classification sees them: brought to size, cropped, in bounded memory."""

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from poison import encoded

from imgray.classification import images
from imgray.classification.images import Classification, ClassificationSettings

Size = tuple[int, int]


def _task(**settings: Any) -> Classification:
    return Classification(ClassificationSettings(**settings), ["a", "b"])


def _noise(size: Size, seed: int = 0) -> Image.Image:
    values = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(values)


@contextmanager
def _memory(more: int) -> Iterator[None]:
    """At most so many bytes more than now."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + more, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


@pytest.mark.parametrize("size", [(300, 200), (41, 640), (2000, 3), (1, 1)])
@pytest.mark.parametrize("settings", [{"size": 32}, {"size": 48, "resize": 64}])
def test_a_picture_is_scaled_whole_and_its_centre_cut(size: Size, settings: Any) -> None:
    short, side = settings.get("resize", settings["size"]), settings["size"]
    scale = short / min(size)
    whole = tuple(max(short, round(scale * length)) for length in size)
    picture = _noise(size)
    scaled = picture.resize(whole, Image.Resampling.BICUBIC, reducing_gap=3.0)  # type: ignore[arg-type]
    left, top = ((length - side) // 2 for length in whole)
    found = _task(**settings).prepare({"image": encoded(picture, "PNG")})["image"]
    np.testing.assert_array_equal(found, scaled.crop((left, top, left + side, top + side)))


@pytest.mark.parametrize("size", [(40_000, 1), (1, 40_000), (3, 40_001)])
@pytest.mark.parametrize(("short", "side"), [(256, 224), (2048, 1024)])
def test_a_thin_picture_needs_bounded_memory(size: Size, short: int, side: int) -> None:
    data = encoded(_noise(size), "PNG")
    task = _task(size=side, resize=short, pad=4, mirror=True)
    with _memory(400 * 2**20):
        seen = [
            task.prepare({"image": data})["image"],
            task.example({"image": data, "label": 0}, np.random.default_rng(0))["image"],
        ]
    assert {(image.dtype.name, image.shape) for image in seen} == {("uint8", (side, side, 3))}


@pytest.mark.parametrize("length", [400, 401])
@pytest.mark.parametrize("upright", [False, True])
def test_leaving_out_the_ends_hardly_changes_the_centre(
    length: int, upright: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    picture = _noise((length, 2), seed=1)
    data = encoded(picture.transpose(Image.Transpose.ROTATE_90) if upright else picture, "PNG")
    task = _task(size=32)
    whole = task.prepare({"image": data})["image"].astype(int)
    monkeypatch.setattr(images, "MOST_PIXELS", 32 * 500)
    assert np.abs(task.prepare({"image": data})["image"] - whole).max() <= 1
