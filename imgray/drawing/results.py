"""Contact sheets: search results as a picture, for those who would rather see than read."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from PIL import Image, ImageDraw

from imgray.drawing.canvas import HAIR, INK, PALE, WHITE, blank, font, save, short, tile, wrapped
from imgray.errors import UserError

TILE = 152
FRAME = 5
GAP = 16
MARGIN = 32
QUERY_GAP = 40
CAPTION = 48
HEAD = 34
WORD_LINES = 6
TITLE = 46
FOOT = 48

QUERY = "#2563eb"
COLOURS: dict[bool | None, str] = {True: "#15803d", False: "#dc2626", None: "#9ca3af"}
WORDS: dict[bool | None, str] = {True: "right", False: "wrong", None: "truth unknown"}


@dataclass(frozen=True)
class Result:
    """One answer: its id, its score, its encoded image and whether it is right (None: unknown)."""

    id: str
    score: float
    image: bytes | None
    right: bool | None


@dataclass(frozen=True)
class Row:
    """A query, as encoded image and id, or words, or both, with its results, best first."""

    query: bytes | None
    query_id: str
    results: list[Result]
    words: str = ""


def contact_sheet(rows: Sequence[Row], path: Path, columns: int = 8, title: str = "") -> None:
    """Draw one row per query, the query at the left and its best results in order, into a PNG.

    A result has a green frame and a check mark if it is right, a red frame and a cross if it is
    wrong, a grey frame and a question mark if that is unknown; where nothing is known of any, there
    are no marks. Words stand in the place of the query, or below its image. An image that is
    missing or cannot be decoded is a grey tile that says so. The file appears whole or not at all.

    Args:
        rows: the queries; of each at most `columns` results are drawn.
        path: the PNG to write; its folder is made if absent.
        columns: results per row, at least 1.
        title: a line above the sheet; empty for none.

    Raises:
        UserError: `rows` is empty, `columns` is below 1, the sheet would exceed 200 million
            pixels, or `path` cannot be written.
    """
    if not rows or columns < 1:
        raise UserError(f"{path}: a contact sheet needs 1 query and 1 column or more")
    width, height = tile_origin(len(rows), columns, bool(title))
    what = f"{len(rows)} queries x {columns} columns"
    sheet = blank(width - GAP + MARGIN, height + FOOT, path, what)
    _head(sheet, columns, title)
    known = {result.right for row in rows for result in row.results[:columns]}
    marked = known != {None}
    for number, row in enumerate(rows):
        _row(sheet, row, number, columns, bool(title), marked)
    if marked:
        _legend(sheet, known)
    save(sheet, path)


def tile_origin(row: int, column: int, titled: bool = False) -> tuple[int, int]:
    """Left upper corner (x, y) in pixels of a tile; column -1 is the query, 0 the best result."""
    x = MARGIN if column < 0 else MARGIN + TILE + QUERY_GAP + column * (TILE + GAP)
    return x, MARGIN + titled * TITLE + HEAD + row * (TILE + CAPTION + GAP)


def _head(sheet: Image.Image, columns: int, title: str) -> None:
    draw = ImageDraw.Draw(sheet)
    if title:
        text = short(title, 24, sheet.width - 2 * MARGIN)
        draw.text((MARGIN, MARGIN), text, INK, font(24), anchor="lt")
    for column, heading in enumerate(["query", *map(str, range(1, columns + 1))], start=-1):
        x, y = tile_origin(0, column, bool(title))
        draw.text((x + TILE / 2, y - 12), heading, PALE, font(15), anchor="ms")


def _row(
    sheet: Image.Image, row: Row, number: int, columns: int, titled: bool, marked: bool
) -> None:
    draw = ImageDraw.Draw(sheet)
    x, y = tile_origin(number, -1, titled)
    if row.words and row.query is None:
        _words(sheet, (x, y), row.words)
    else:
        _tile(sheet, (x, y), row.query, QUERY)
        _caption(draw, (x, y + TILE + 6), row.words or row.query_id, 15, INK)
    line = x + TILE + QUERY_GAP // 2
    draw.line((line, y, line, y + TILE), HAIR, 2)
    if not row.results:
        x, y = tile_origin(number, 0, titled)
        draw.text((x, y + TILE / 2), "no results", PALE, font(15), anchor="lm")
    for column, result in enumerate(row.results[:columns]):
        x, y = tile_origin(number, column, titled)
        _tile(sheet, (x, y), result.image, COLOURS[result.right])
        if marked:
            badge = _badge(result.right)
            sheet.paste(badge, (x + TILE - badge.width - 1, y + TILE - badge.height - 1), badge)
        _caption(draw, (x, y + TILE + 6), _score(result.score), 15, INK)
        _caption(draw, (x, y + TILE + 26), result.id, 13, PALE)


def _legend(sheet: Image.Image, shown: set[bool | None]) -> None:
    draw = ImageDraw.Draw(sheet)
    x, y = MARGIN, sheet.height - MARGIN
    for right, word in WORDS.items():
        if right in shown:
            badge = _badge(right)
            sheet.paste(badge, (x, y - badge.height // 2), badge)
            draw.text((x + badge.width + 6, y), word, PALE, font(15), anchor="lm")
            x += badge.width + 6 + int(font(15).getlength(word)) + 24


def _tile(sheet: Image.Image, at: tuple[int, int], data: bytes | None, colour: str) -> None:
    framed = tile((TILE, TILE), data, FRAME)
    ImageDraw.Draw(framed).rectangle((0, 0, TILE - 1, TILE - 1), outline=colour, width=FRAME)
    sheet.paste(framed, at)


def _words(sheet: Image.Image, at: tuple[int, int], text: str) -> None:
    """Words in a frame as that of a picture, as many of them as there is room for."""
    draw, (x, y) = ImageDraw.Draw(sheet), at
    draw.rectangle((x, y, x + TILE - 1, y + TILE - 1), outline=QUERY, width=FRAME)
    lines = wrapped(text, 15, TILE - 2 * FRAME - 12, WORD_LINES)
    middle = (x + TILE / 2, y + TILE / 2)
    draw.multiline_text(middle, "\n".join(lines), INK, font(15), "mm", align="center")


@cache
def _badge(right: bool | None, size: int = 26) -> Image.Image:
    """Round mark, drawn at four times its size so that its edges come out smooth."""
    big = Image.new("RGBA", (4 * size, 4 * size), (255, 255, 255, 0))
    draw, unit = ImageDraw.Draw(big), 4 * size / 24
    draw.ellipse((0, 0, 4 * size - 1, 4 * size - 1), WHITE)
    draw.ellipse((2 * unit, 2 * unit, 22 * unit, 22 * unit), COLOURS[right])
    strokes: dict[bool | None, list[list[tuple[float, float]]]] = {
        True: [[(7, 12.5), (10.5, 16), (17, 8.5)]],
        False: [[(8, 8), (16, 16)], [(16, 8), (8, 16)]],
        None: [],
    }
    for stroke in strokes[right]:
        points = [(x * unit, y * unit) for x, y in stroke]
        draw.line(points, WHITE, round(2.6 * unit), joint="curve")
    if right is None:
        draw.text((12 * unit, 12 * unit), "?", WHITE, font(round(15 * unit)), anchor="mm")
    return big.resize((size, size), Image.Resampling.LANCZOS)


def _caption(
    draw: ImageDraw.ImageDraw,
    at: tuple[int, int],
    text: str,
    size: int,
    colour: str,
) -> None:
    draw.text((at[0] + TILE / 2, at[1]), short(text, size, TILE), colour, font(size), anchor="ma")


def _score(score: float) -> str:
    return f"{score:.3f}" if score == 0 or 0.001 <= abs(score) < 100_000 else f"{score:.3g}"
