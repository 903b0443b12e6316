"""What contact sheets are drawn with: colours, type, tiles."""

from __future__ import annotations

import io
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont, ImageOps

from imgray.artifacts.folder import Folder
from imgray.data.pixels import Rejected, decode
from imgray.errors import UserError

MAX_PIXELS = 200_000_000

WHITE, INK, PALE, HAIR, MAT = "#ffffff", "#111827", "#6b7280", "#e5e7eb", "#f3f4f6"

DISTINCT = (
    "#0072b2", "#e69f00", "#00ffb4", "#c3004b", "#ffb4f0", "#1e9687", "#691e69", "#d2f078",
    "#873c00", "#9687ff", "#c3a569", "#3c4b2d", "#788700", "#e1e1e1", "#003ca5", "#695a78",
    "#ff69a5", "#f078e1", "#ffe14b", "#e19687", "#d25a4b", "#ff964b", "#a51e96", "#96b4ff",
)  # fmt: skip
"""Each is as far as can be from those before it in CIELAB, as people of full, of no red and of no
green sight see them (Machado et al. 2009): 19 apart up to the twelfth, 13 up to the last."""


MIXED = (0.4, 0.6, 0.2, 0.3, 0.5)
"""Shares of black, then of white, in the colours of classes beyond those: none is twice."""


def distinct(count: int) -> NDArray[np.uint8]:
    """Colours (count, 3), at most 256, that tell classes apart.

    The first 24 do so to the colour-blind too; then these come again, darker and lighter.
    """
    rows = np.array([tuple(bytes.fromhex(colour[1:])) for colour in DISTINCT], float)
    tones = [rows] + [(1 - share) * rows + share * tone for share in MIXED for tone in (0.0, 255.0)]
    return np.concatenate(tones)[:count].round().astype(np.uint8)


def blank(width: int, height: int, path: Path | str, what: str) -> Image.Image:
    """A white sheet. Raises `UserError` where it is too large; `what` is to be drawn on it."""
    if width * height > MAX_PIXELS:
        raise UserError(f"{path}: {what} are too large a picture")
    return Image.new("RGB", (width, height), WHITE)


def save(sheet: Image.Image, path: Path) -> None:
    """Write a PNG, seen whole or not at all. Raises `UserError`."""
    Folder(str(path.parent)).write(path.name, png(sheet))


def png(sheet: Image.Image) -> bytes:
    """A picture as PNG."""
    data = io.BytesIO()
    sheet.save(data, "PNG")
    return data.getvalue()


def tile(size: tuple[int, int], picture: Image.Image | bytes | None, frame: int) -> Image.Image:
    """A mat of width and height with a picture, encoded or not, as large as fits in its frame.

    One that is missing or cannot be decoded is a grey tile that says so.
    """
    mat = Image.new("RGB", size, MAT)
    inner = (size[0] - 2 * frame, size[1] - 2 * frame)
    try:
        if not isinstance(picture, Image.Image):
            picture = decode(picture or b"", max(inner))
        fitted = ImageOps.contain(picture, inner)
        mat.paste(fitted, ((size[0] - fitted.width) // 2, (size[1] - fitted.height) // 2))
    except Rejected:
        draw = ImageDraw.Draw(mat)
        draw.rectangle((0, 0, *size), HAIR)
        draw.text((size[0] / 2, size[1] / 2), "not readable", PALE, font(15), anchor="mm")
    return mat


def short(text: str, size: int, width: int) -> str:
    """The text in one line of at most `width` pixels, its middle left out where it is too long."""
    type_ = font(size)
    text = "".join(letter if letter.isprintable() else "?" for letter in text)
    keep = min(len(text), width)
    found = text if keep == len(text) else _ends(text, keep)
    while keep > 1 and type_.getlength(found) > width:
        keep -= 1
        found = _ends(text, keep)
    return found


def wrapped(text: str, size: int, width: int, most: int) -> list[str]:
    """The text in a few lines of at most `width` pixels; the last is cut where more follow."""
    words = [short(word, size, width) for word in text.split()]
    lines: list[str] = []
    for place, word in enumerate(words):
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and font(size).getlength(longer) <= width:
            lines[-1] = longer
        elif len(lines) < most:
            lines.append(word)
        else:
            lines[-1] = short(" ".join([lines[-1], *words[place:]]), size, width)
            break
    return lines


def _ends(text: str, keep: int) -> str:
    return f"{text[: (keep + 1) // 2]}...{text[len(text) - keep // 2 :]}"


@cache
def font(size: int) -> ImageFont.FreeTypeFont:
    """The type of all sheets. Raises `UserError`."""
    found = ImageFont.load_default(size)
    if not isinstance(found, ImageFont.FreeTypeFont):
        raise UserError("this build of Pillow lacks FreeType, which text in pictures needs")
    return found
