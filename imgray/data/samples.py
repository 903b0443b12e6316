"""Real images without a download: they lie inside the wheels of scikit-image and scikit-learn.

`write_views` turns photographs into a retrieval collection with a known truth: each photograph as
several other cameras would have seen it; the views of one are each other's right answers.
`write_digits` writes handwritten digits to classify, `write_tones` pictures to translate.
"""

import json
import math
import zlib
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

from imgray.artifacts.folder import Folder
from imgray.errors import UserError

_FILES: dict[str, tuple[str, str]] = {
    "astronaut": ("skimage", "data/astronaut.png"),
    "brick": ("skimage", "data/brick.png"),
    "camera": ("skimage", "data/camera.png"),
    "cell": ("skimage", "data/cell.png"),
    "chelsea": ("skimage", "data/chelsea.png"),
    "china": ("sklearn", "datasets/images/china.jpg"),
    "clock": ("skimage", "data/clock_motion.png"),
    "coffee": ("skimage", "data/coffee.png"),
    "coins": ("skimage", "data/coins.png"),
    "flower": ("sklearn", "datasets/images/flower.jpg"),
    "grass": ("skimage", "data/grass.png"),
    "gravel": ("skimage", "data/gravel.png"),
    "hubble": ("skimage", "data/hubble_deep_field.jpg"),
    "ihc": ("skimage", "data/ihc.png"),
    "moon": ("skimage", "data/moon.png"),
    "motorcycle": ("skimage", "data/motorcycle_left.png"),
    "page": ("skimage", "data/page.png"),
    "retina": ("skimage", "data/retina.jpg"),
    "rocket": ("skimage", "data/rocket.jpg"),
    "text": ("skimage", "data/text.png"),
}
_QUARTERED = ("gravel", "hubble", "ihc")
_BRIGHT = {
    "astronaut", "chelsea", "china", "coffee", "flower", "ihc", "motorcycle", "retina",
    "rocket",
}  # fmt: skip
_DOCUMENTS = {"page", "text"}
_LONG_SIDE = 640


def photographs() -> dict[str, Image.Image]:
    """Open the photographs: 29 RGB pictures of 172 to 1411 px a side, by name in sorted order.

    Three large fields of texture are cut in quarters, which are four places that look alike:
    what a retrieval system finds hard.

    Raises:
        UserError: scikit-image or scikit-learn is missing, or came without its pictures.
    """
    found: dict[str, Image.Image] = {}
    for name, where in _FILES.items():
        picture = Image.open(_find(*where)).convert("RGB")
        parts = _quarters(picture) if name in _QUARTERED else [picture]
        found |= zip(_scenes(name), parts, strict=True)
    return found


def write_views(folder: Path, views: int = 8, seed: int = 0) -> Path:
    """Write every photograph in `views` versions and the truth about them; return `folder`.

    The views are `images/NAME-K.jpg`, at most 640 px long; view 0 is the photograph itself. The
    truth is `truth.csv` with the columns id (path below `images/`) and group (NAME); it is written
    last. A view depends on `seed`, NAME and K only. What is there already is kept, so a second call
    completes an interrupted one and costs nothing after a finished one.

    Args:
        folder: where to write, made if absent.
        views: versions of each photograph, at least 1.
        seed: not negative; another seed gives other views.

    Raises:
        UserError: `views` or `seed` is out of range, `folder` holds views of other settings, it
            cannot be written, or the photographs are missing.
    """
    if views < 1 or seed < 0:
        raise UserError(f"views = {views}, seed = {seed}: at least 1 view and a seed from 0")
    place = Folder(str(folder))
    _claim(place, {"views": views, "seed": seed})
    names = [scene for name in _FILES for scene in _scenes(name)]
    truth = [(f"{name}-{k}.jpg", name, k) for name in names for k in range(views)]
    there = place.sizes("images")
    missing = [row for row in truth if f"images/{row[0]}" not in there]
    pictures = photographs() if missing else {}
    for file, name, k in missing:
        place.write(f"images/{file}", _view(pictures[name], name, k, seed))
    if not place.exists("truth.csv"):
        lines = ["id,group", *(f"{file},{name}" for file, name, _ in truth), ""]
        place.write("truth.csv", "\n".join(lines).encode())
    return folder


def write_digits(folder: Path | str, side: int = 32) -> Path:
    """Write scikit-learn's 1,797 handwritten digits as `DIGIT/NUMBER.png`; return the folder.

    They are 8 x 8 pixels of 17 greys (Alpaydin and Kaynak, UCI, 1998), enlarged to `side`.

    Raises:
        UserError: scikit-learn is missing, or came without them.
    """
    place = Path(folder)
    table = np.loadtxt(_find("sklearn", "datasets/data/digits.csv.gz"), np.uint8, delimiter=",")
    for digit in range(10):
        (place / str(digit)).mkdir(parents=True, exist_ok=True)
    for number, (*greys, digit) in enumerate(table):
        small = (np.reshape(greys, (8, 8)) * (255 / 16)).astype(np.uint8)
        image = Image.fromarray(small).resize((side, side), Image.Resampling.BICUBIC)
        image.save(place / str(digit) / f"{number:04d}.png")
    return place


def write_tones(folder: Path | str, count: int = 200, side: int = 64, seed: int = 0) -> Path:
    """Write crops of the photographs in two domains, `black-and-white` and `colour`; return it.

    In `train` they are of different places; `val` holds a tenth as many pairs.

    Raises:
        UserError: scikit-image or scikit-learn is missing, or came without its pictures.
    """
    place, rng = Path(folder), np.random.default_rng(seed)
    found = photographs()
    bright = [found[name] for name in sorted(found) if name.partition("_")[0] in _BRIGHT]
    for part, crops in (("train", count), ("val", max(1, count // 10))):
        for name in ("black-and-white", "colour"):
            (place / part / name).mkdir(parents=True, exist_ok=True)
        for n in range(crops):
            colour = _crop(bright[n % len(bright)], side, rng)
            other = colour if part == "val" else _crop(bright[n % len(bright)], side, rng)
            colour.save(place / part / f"colour/{n:04d}.png")
            other.convert("L").save(place / part / f"black-and-white/{n:04d}.png")
    return place


def _crop(picture: Image.Image, side: int, rng: np.random.Generator) -> Image.Image:
    """A square of a third to all of the shorter side, anywhere, brought to `side`."""
    size = int(min(picture.size) * rng.uniform(1 / 3, 1))
    left, top = (int(rng.integers(length - size + 1)) for length in picture.size)
    return picture.resize(
        (side, side), Image.Resampling.BICUBIC, (left, top, left + size, top + size)
    )


def _scenes(name: str) -> list[str]:
    return [f"{name}_{part}" for part in "abcd"] if name in _QUARTERED else [name]


def _quarters(picture: Image.Image) -> list[Image.Image]:
    x, y = picture.width // 2, picture.height // 2
    return [picture.crop((i, j, i + x, j + y)) for j in (0, y) for i in (0, x)]


def _find(package: str, file: str) -> Path:
    spec = find_spec(package)
    path = Path(spec.origin).parent / file if spec and spec.origin else None
    if path is None or not path.exists():
        raise UserError(
            f"the sample {package}/{file} is not installed: "
            "install imgray with the extra `demo` (pip install 'imgray[demo]')"
        )
    return path


def _claim(place: Folder, settings: dict[str, int]) -> None:
    if not place.exists("settings.json"):
        place.write("settings.json", json.dumps(settings).encode())
    found = json.loads(place.read("settings.json"))
    if found != settings:
        raise UserError(
            f"{place.uri} holds views written with {found}, not {settings}: "
            "name another folder or delete this one"
        )


def _view(picture: Image.Image, name: str, k: int, seed: int) -> bytes:
    """JPEG of view `k` of the photograph `name`: k = 0 as it is, k > 0 as camera k saw it."""
    if k == 0:
        return _jpeg(_shrunk(picture, _LONG_SIDE), quality=92)
    rng = np.random.default_rng([seed, zlib.crc32(name.encode()), k])
    seen = _exposed(_framed(_shrunk(picture, 1000), rng), rng)
    if name not in _DOCUMENTS and rng.random() < 0.5:
        seen = seen.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return _jpeg(seen, quality=int(rng.integers(20, 81)))


def _framed(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Another standpoint: a turned and slightly tilted crop of 40-90 % of the area, rescaled.

    The crop lies inside the picture, so no corner is black; the larger, the less it is turned.
    """
    size = np.array(picture.size)
    side = math.sqrt(rng.uniform(0.5, 0.9))
    angle = rng.uniform(-1, 1) * _largest_angle(side, size.max() / size.min())
    corners = np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)]) / 2
    tilt = 1 - rng.uniform(0, 0.1, corners.shape)
    turn = np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
    box = (corners * tilt * side * size) @ turn
    room = size / 2 - np.abs(box).max(axis=0)
    source = box + size / 2 + rng.uniform(-1, 1, 2) * np.maximum(room, 0)
    crop = np.round(size * side)
    seen = picture.transform(
        tuple(crop.astype(int)),
        Image.Transform.PERSPECTIVE,
        _homography((corners + 0.5) * crop, source),
        Image.Resampling.BICUBIC,
    )
    scale = min(rng.uniform(0.5, 1.1), _LONG_SIDE / crop.max())
    return seen.resize(tuple(np.round(crop * scale).astype(int)), Image.Resampling.LANCZOS)


def _largest_angle(side: float, ratio: float) -> float:
    """Largest turn in radians, up to 25 degrees, of a crop of `side` times the sides that fits.

    Solves side (cos a + ratio sin a) = 1, `ratio` being the long side over the short.
    """
    reach = 1 / (side * math.hypot(1, ratio))
    return min(math.radians(25), math.atan(ratio) - math.acos(min(reach, 1)))


def _homography(target: np.ndarray, source: np.ndarray) -> list[float]:
    """The 8 coefficients with which PIL maps the corners `target` (4 x 2) to `source` (4 x 2)."""
    rows = []
    for (x, y), (u, v) in zip(target, source, strict=True):
        rows.append([x, y, 1, 0, 0, 0, -u * x, -u * y])
        rows.append([0, 0, 0, x, y, 1, -v * x, -v * y])
    return np.linalg.solve(np.array(rows), source.ravel()).tolist()


def _exposed(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Another sensor: blur, light, gamma, white balance and noise."""
    blurred = picture.filter(ImageFilter.GaussianBlur(rng.uniform(0, 2.2)))
    light = np.asarray(blurred, dtype=np.float32) / 255
    light = light ** rng.uniform(0.6, 1.7) * rng.uniform(0.6, 1.3) * rng.uniform(0.85, 1.15, 3)
    light += rng.normal(0, rng.uniform(0, 0.07), light.shape)
    return Image.fromarray((light.clip(0, 1) * 255).round().astype(np.uint8))


def _shrunk(picture: Image.Image, long_side: int) -> Image.Image:
    small = picture.copy()
    small.thumbnail((long_side, long_side), Image.Resampling.LANCZOS)
    return small


def _jpeg(picture: Image.Image, quality: int) -> bytes:
    data = BytesIO()
    picture.save(data, "JPEG", quality=quality)
    return data.getvalue()
