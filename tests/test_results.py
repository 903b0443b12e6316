import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageColor

from imgray.drawing import canvas, results
from imgray.drawing.results import (
    COLOURS,
    FRAME,
    QUERY,
    TILE,
    Result,
    Row,
    contact_sheet,
    tile_origin,
)
from imgray.errors import UserError


def _encoded(
    colour: str = "orange", size: tuple[int, int] = (300, 300), form: str = "JPEG"
) -> bytes:
    data = io.BytesIO()
    Image.new("RGB", size, colour).save(data, form)
    return data.getvalue()


def _turned() -> bytes:
    """A picture 200 x 100 px as stored, black at its left; upright (EXIF 6) the top is black."""
    image = Image.new("RGB", (200, 100), "white")
    image.paste("black", (0, 0, 100, 100))
    exif = Image.Exif()
    exif[0x0112] = 6
    data = io.BytesIO()
    image.save(data, "JPEG", exif=exif)
    return data.getvalue()


def _drawn(tmp_path: Path, rows: list[Row], **settings: object) -> Image.Image:
    path = tmp_path / "new" / "sheet.png"
    contact_sheet(rows, path, **settings)  # type: ignore[arg-type]
    assert [file.name for file in path.parent.iterdir()] == ["sheet.png"]
    with Image.open(path) as sheet:
        assert sheet.format == "PNG"
        assert sheet.mode == "RGB"
        sheet.load()
        return sheet


def _tile(sheet: Image.Image, row: int, column: int, titled: bool = False) -> Image.Image:
    x, y = tile_origin(row, column, titled)
    return sheet.crop((x, y, x + TILE, y + TILE))


def _frame_is(tile: Image.Image, colour: str) -> bool:
    pixels = np.asarray(tile)
    border = np.ones((TILE, TILE), dtype=bool)
    border[FRAME:-FRAME, FRAME:-FRAME] = False
    border[TILE // 2 :, TILE // 2 :] = False
    return bool((pixels[border] == ImageColor.getrgb(colour)).all())


def _mark(tile: Image.Image) -> np.ndarray:
    return np.asarray(tile.convert("L").crop((TILE - 27, TILE - 27, TILE - 1, TILE - 1)))


def _results(*right: bool | None) -> list[Result]:
    return [Result(f"{i}.jpg", 1 - i / 10, _encoded(), r) for i, r in enumerate(right)]


def _caption(sheet: Image.Image, row: int, column: int) -> Image.Image:
    x, y = tile_origin(row, column)
    return sheet.crop((x - 8, y + TILE + 1, x + TILE + 8, y + TILE + results.CAPTION))


def _has_ink(image: Image.Image) -> bool:
    return bool((np.asarray(image) < 250).any())


def test_frames_tell_right_wrong_and_unknown_at_their_places(tmp_path: Path) -> None:
    rows = [Row(_encoded(), "a", _results(True, False, None)), Row(_encoded(), "b", _results(None))]
    sheet = _drawn(tmp_path, rows, columns=3)
    for row, colours in enumerate([[True, False, None], [None]]):
        assert _frame_is(_tile(sheet, row, -1), QUERY)
        for column, right in enumerate(colours):
            assert _frame_is(_tile(sheet, row, column), COLOURS[right])
    assert not _has_ink(_tile(sheet, 1, 1))
    assert not _has_ink(_tile(sheet, 1, 2))


def test_right_is_green_wrong_is_red_and_unknown_is_grey() -> None:
    red, green, blue = ImageColor.getrgb(COLOURS[True])
    assert green > 2 * max(red, blue) - 30
    red, green, blue = ImageColor.getrgb(COLOURS[False])
    assert red > 2 * max(green, blue)
    assert np.ptp(ImageColor.getrgb(COLOURS[None])) < 30


def test_the_marks_differ_without_colour(tmp_path: Path) -> None:
    sheet = _drawn(tmp_path, [Row(_encoded(), "a", _results(True, False, None))])
    marks = [_mark(_tile(sheet, 0, column)) > 200 for column in range(3)]
    assert all(mark.sum() > 40 for mark in marks)
    assert min((a ^ b).sum() for a, b in zip(marks, marks[1:] + marks[:1], strict=True)) > 30


def test_a_sheet_without_any_truth_bears_no_marks(tmp_path: Path) -> None:
    """What nobody knows of any answer needs no saying; beside known ones it does."""
    sheets = [
        _drawn(tmp_path, [Row(_encoded(), "a", _results(None)), Row(_encoded(), "b", _results(r))])
        for r in (None, True)
    ]
    plain, marked = (np.ptp(_mark(_tile(sheet, 0, 0))[:20, :20]) for sheet in sheets)
    assert plain < 30 < marked
    legends = [sheet.crop((0, sheet.height - 44, sheet.width, sheet.height)) for sheet in sheets]
    assert [_has_ink(legend) for legend in legends] == [False, True]


def test_images_stand_in_rank_order(tmp_path: Path) -> None:
    colours = ["red", "lime", "blue"]
    results = [
        Result(c, 0.5, _encoded(c, form=f), None)
        for c, f in zip(colours, ("PNG", "WEBP", "JPEG"), strict=True)
    ]
    sheet = _drawn(tmp_path, [Row(_encoded("yellow"), "q", results)])
    for column, colour in enumerate(["yellow", *colours], start=-1):
        centre = np.array(_tile(sheet, 0, column).getpixel((TILE // 2, TILE // 2)), dtype=int)
        assert np.abs(centre - ImageColor.getrgb(colour)).max() < 12


@pytest.mark.parametrize("columns", [1, 8])
@pytest.mark.parametrize("rows", [1, 3])
def test_the_size_follows_rows_and_columns(tmp_path: Path, rows: int, columns: int) -> None:
    sheet = _drawn(tmp_path, [Row(_encoded(), "q", _results(True))] * rows, columns=columns)
    x, y = tile_origin(rows - 1, columns - 1)
    assert sheet.width == x + TILE + results.MARGIN
    assert y + TILE + results.CAPTION < sheet.height < y + TILE + 3 * results.CAPTION
    assert sheet.getpixel((0, 0)) == (255, 255, 255)


def test_only_the_best_results_are_drawn(tmp_path: Path) -> None:
    few = _drawn(tmp_path, [Row(_encoded(), "q", _results(True, False))], columns=2)
    many = _drawn(tmp_path, [Row(_encoded(), "q", _results(True, False, None, True))], columns=2)
    assert few.tobytes() == many.tobytes()


def test_a_title_moves_the_tiles_down(tmp_path: Path) -> None:
    rows = [Row(_encoded(), "q", _results(True))]
    plain = _drawn(tmp_path, rows)
    titled = _drawn(tmp_path, rows, title="A title " * 100)
    assert titled.height == plain.height + results.TITLE
    assert titled.width == plain.width
    assert _frame_is(_tile(titled, 0, 0, titled=True), COLOURS[True])
    assert _has_ink(titled.crop((0, results.MARGIN, titled.width, results.MARGIN + 24)))
    assert not _has_ink(titled.crop((titled.width - results.MARGIN + 1, 0, titled.width, 100)))


@pytest.mark.parametrize("data", [None, b"", b"no image", _encoded()[:400], b"GIF89a" + bytes(20)])
def test_an_unreadable_image_is_a_grey_tile_with_words(tmp_path: Path, data: bytes | None) -> None:
    rows = [
        Row(data, "q", [Result("broken", 0.5, data, False), Result("fine", 0.4, _encoded(), True)])
    ]
    sheet = _drawn(tmp_path, rows)
    for column, frame in ((-1, QUERY), (0, COLOURS[False])):
        tile = _tile(sheet, 0, column)
        assert _frame_is(tile, frame)
        grey = np.asarray(tile)[FRAME : TILE - 30, FRAME:-FRAME].astype(int)
        assert np.ptp(grey, axis=2).max() < 30
        assert tile.getpixel((FRAME + 5, FRAME + 5)) == ImageColor.getrgb(canvas.HAIR)
        words = tile.convert("L").crop((20, TILE // 2 - 12, TILE - 20, TILE // 2 + 12))
        assert np.asarray(words).min() < 140
    assert _frame_is(_tile(sheet, 0, 1), COLOURS[True])


def test_the_whole_image_is_shown_upright(tmp_path: Path) -> None:
    sheet = _drawn(tmp_path, [Row(_turned(), "q", [])])
    tile = _tile(sheet, 0, -1).convert("L")
    assert tile.getpixel((TILE // 2, 30)) < 20
    assert tile.getpixel((TILE // 2, TILE - 30)) > 235
    assert tile.getpixel((20, 30)) == tile.getpixel((TILE - 20, TILE - 30)) > 235


def test_long_and_strange_ids_stay_under_their_tile(tmp_path: Path) -> None:
    ids = [
        "folder/" * 3000 + "end.jpg",
        "two\nlines\tand\x00more",
        "\udcff\udcfe.jpg",
        "",
        "W" * 200,
    ]
    rows = [Row(_encoded(), id, [Result(id, 0.5, _encoded(), None)]) for id in ids]
    sheet = _drawn(tmp_path, rows, columns=1)
    for row, id in enumerate(ids):
        for column in (-1, 0):
            caption = _caption(sheet, row, column)
            assert not _has_ink(caption.crop((0, 0, 7, caption.height)))
            assert not _has_ink(caption.crop((caption.width - 7, 0, *caption.size)))
        assert _has_ink(_caption(sheet, row, -1)) == bool(id)


def test_an_id_is_one_line_of_printable_letters() -> None:
    assert canvas.short("two\nlines\x00\udcff.jpg", 15, TILE) == "two?lines??.jpg"


def test_ids_are_shortened_in_the_middle_only_where_needed() -> None:
    font = canvas.font(15)
    assert canvas.short("coins-3.jpg", 15, TILE) == "coins-3.jpg"
    short = canvas.short("2024/holiday/IMG_20240807_113344.jpg", 15, TILE)
    start, end = short.split("...")
    assert "2024/holiday".startswith(start)
    assert "IMG_20240807_113344.jpg".endswith(end)
    assert abs(len(start) - len(end)) <= 1
    assert TILE - 20 < font.getlength(short) <= TILE


@pytest.mark.parametrize(
    ("score", "text"),
    [(0.91349, "0.913"), (-1, "-1.000"), (0, "0.000"), (2e-7, "2e-07"), (1.5e9, "1.5e+09")],
)
def test_scores_keep_their_digits(score: float, text: str) -> None:
    assert results._score(score) == text


def test_scores_are_captions(tmp_path: Path) -> None:
    def caption(score: float) -> bytes:
        rows = [Row(_encoded(), "q", [Result("same", score, _encoded(), True)])]
        return _caption(_drawn(tmp_path, rows), 0, 0).tobytes()

    assert caption(0.5) == caption(0.5)
    assert caption(0.5) != caption(0.6)


def test_a_query_without_results_says_so(tmp_path: Path) -> None:
    sheet = _drawn(tmp_path, [Row(_encoded(), "q", [])])
    assert _frame_is(_tile(sheet, 0, -1), QUERY)
    assert _has_ink(_tile(sheet, 0, 0))
    assert not _has_ink(_tile(sheet, 0, 1))


@pytest.mark.parametrize(("rows", "columns"), [(0, 8), (1, 0)])
def test_impossible_sheets_are_refused(tmp_path: Path, rows: int, columns: int) -> None:
    path = tmp_path / "sheet.png"
    with pytest.raises(UserError, match=r"sheet\.png"):
        contact_sheet([Row(None, "q", [])] * rows, path, columns)
    assert not path.exists()


def test_a_sheet_of_too_many_pixels_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [Row(None, "q", [])]
    sheet = _drawn(tmp_path, rows)
    monkeypatch.setattr(canvas, "MAX_PIXELS", sheet.width * sheet.height)
    _drawn(tmp_path, rows)
    with pytest.raises(UserError, match=r"2 queries x 8 columns"):
        contact_sheet(rows * 2, tmp_path / "sheet.png")
    assert not (tmp_path / "sheet.png").exists()


def test_a_failed_drawing_keeps_the_former_sheet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [Row(_encoded(), "q", _results(True))]
    before = _drawn(tmp_path, rows).tobytes()

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", fail)
    path = tmp_path / "new" / "sheet.png"
    with pytest.raises(UserError, match=r"sheet\.png"):
        contact_sheet(rows * 2, path)
    assert [file.name for file in path.parent.iterdir()] == ["sheet.png"]
    with Image.open(path) as after:
        assert after.tobytes() == before
