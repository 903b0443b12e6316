"""Contact sheets of predictions: beside each photograph what a model says of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw

from imgray.artifacts.folder import Folder
from imgray.drawing.canvas import HAIR, INK, PALE, WHITE, blank, font, png, short, tile
from imgray.errors import UserError

COLUMNS = 3
WIDTH, HEIGHT = 224, 168
BETWEEN, CAPTION, GAP, MARGIN = 4, 28, 24, 32
CELL, ROW = 2 * WIDTH + BETWEEN + GAP, HEIGHT + CAPTION + GAP
LINE, SWATCH, MOST_WORDS = 30, 16, 5
FIRST, OTHER = "#2563eb", "#9ca3af"


@dataclass(frozen=True)
class Panel:
    """A photograph and what a model says of it.

    id: of the photograph; image: encoded, None where it cannot be read; words: with their shares
    (0 to 1), best first; picture: instead of words.
    """

    id: str
    image: bytes | None
    words: Sequence[tuple[str, float]] = ()
    picture: Image.Image | None = None


def panel_sheet(panels: Sequence[Panel], legend: Mapping[str, str], path: Path) -> None:
    """Write `panel_png` to a path, seen whole or not at all; its folder is made if absent.

    Raises:
        UserError: as there, or `path` cannot be written.
    """
    Folder(str(path.parent)).write(path.name, panel_png(panels, legend, path))


def panel_png(panels: Sequence[Panel], legend: Mapping[str, str], path: Path | str) -> bytes:
    """Draw photographs, each with the picture or the words that a model gives it, as PNG.

    Three photographs in a row, each with its id below.

    Args:
        panels: what to draw.
        legend: colours by the names of what they stand for in the pictures, below the sheet.
        path: where it is to lie, for errors.

    Raises:
        UserError: nothing to draw, or a sheet of over 200 million pixels.
    """
    if not panels:
        raise UserError(f"{path}: no predictions to draw")
    columns, rows = min(COLUMNS, len(panels)), -(-len(panels) // COLUMNS)
    width, foot = 2 * MARGIN + columns * CELL - GAP, MARGIN + rows * ROW
    places = _legend_places(legend, width)
    below = places[-1][1] + LINE + MARGIN - GAP if places else 0
    sheet = blank(width, foot + below, path, f"{len(panels)} photographs")
    for number, panel in enumerate(panels):
        _draw(sheet, panel, number)
    for (name, colour), (x, y) in zip(legend.items(), places, strict=True):
        _swatch(sheet, (x, foot + y), name, colour)
    return png(sheet)


def panel_origin(number: int) -> tuple[int, int]:
    """Left upper corner (x, y) in pixels of a photograph; what is said of it lies at its right."""
    row, column = divmod(number, COLUMNS)
    return MARGIN + column * CELL, MARGIN + row * ROW


def _draw(sheet: Image.Image, panel: Panel, number: int) -> None:
    x, y = panel_origin(number)
    sheet.paste(tile((WIDTH, HEIGHT), panel.image, 0), (x, y))
    beside = tile((WIDTH, HEIGHT), panel.picture, 0) if panel.picture else _bars(panel.words)
    sheet.paste(beside, (x + WIDTH + BETWEEN, y))
    text = short(panel.id, 14, 2 * WIDTH + BETWEEN)
    ImageDraw.Draw(sheet).text((x, y + HEIGHT + 7), text, PALE, font(14), anchor="la")


def _bars(words: Sequence[tuple[str, float]]) -> Image.Image:
    """Words with their shares as bars, the first in colour."""
    image = Image.new("RGB", (WIDTH, HEIGHT), WHITE)
    draw, left, right = ImageDraw.Draw(image), 12, WIDTH - 4
    for place, (word, share) in enumerate(words[:MOST_WORDS]):
        y = 4 + place * (HEIGHT - 4) // MOST_WORDS
        text, colour = (INK, FIRST) if place == 0 else (PALE, OTHER)
        number = f"{share:.1%}"
        room = right - left - int(font(15).getlength(number)) - 8
        draw.text((left, y + 16), short(word, 15, room), text, font(15), anchor="ls")
        draw.text((right, y + 16), number, text, font(15), anchor="rs")
        draw.rectangle((left, y + 21, right, y + 25), HAIR)
        if round(share * (right - left)):
            draw.rectangle((left, y + 21, left + share * (right - left), y + 25), colour)
    return image


def _legend_places(names: Iterable[str], width: int) -> list[tuple[int, int]]:
    """Where each swatch goes, from the legend's left upper corner, in lines of at most `width`."""
    places, x, y = [], MARGIN, 0
    for name in names:
        length = SWATCH + 8 + int(font(15).getlength(name)) + GAP
        if x > MARGIN and x + length - GAP > width - MARGIN:
            x, y = MARGIN, y + LINE
        places.append((x, y))
        x += length
    return places


def _swatch(sheet: Image.Image, at: tuple[int, int], name: str, colour: str) -> None:
    draw, (x, y) = ImageDraw.Draw(sheet), at
    draw.rectangle((x, y, x + SWATCH, y + SWATCH), colour, HAIR)
    draw.text((x + SWATCH + 8, y + SWATCH // 2), name, INK, font(15), anchor="lm")
