"""Predictions beside photographs, and the figures of learned fusion weights."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from poison import encoded, halves

from imgray.artifacts.folder import Folder
from imgray.artifacts.manifest import Manifest, entry_of, sha256
from imgray.config import class_named
from imgray.data.collections import Files
from imgray.drawing import canvas, plots
from imgray.drawing.canvas import DISTINCT, distinct
from imgray.drawing.predictions import (
    BETWEEN,
    COLUMNS,
    HEIGHT,
    WIDTH,
    Panel,
    panel_origin,
    panel_sheet,
)
from imgray.engine.sheets import draw_predictions
from imgray.errors import UserError
from imgray.training.task import Task

WORDS = [("seven", 0.75), ("one", 0.25), ("zero", 0.0)]


def _sheet(folder: Path, panels: list[Panel], legend: dict[str, str] | None = None) -> Image.Image:
    path = folder / "new" / "sheet.png"
    panel_sheet(panels, legend or {}, path)
    with Image.open(path) as sheet:
        sheet.load()
        return sheet


def _tile(sheet: Image.Image, number: int, beside: bool) -> Image.Image:
    x, y = panel_origin(number)
    x += beside * (WIDTH + BETWEEN)
    return sheet.crop((x, y, x + WIDTH, y + HEIGHT))


def _ink(image: Image.Image) -> np.ndarray:
    return np.asarray(image.convert("L")) < 250


def test_a_picture_stands_beside_its_photograph(tmp_path: Path) -> None:
    colours = ["red", "lime", "blue", "yellow"]
    panels = [
        Panel(c, encoded(halves(), "PNG"), picture=Image.new("RGB", (80, 60), c)) for c in colours
    ]
    sheet = _sheet(tmp_path, panels)
    for number, colour in enumerate(colours):
        photograph = _tile(sheet, number, beside=False)
        assert photograph.getpixel((WIDTH // 4, HEIGHT // 2)) == (230, 120, 20)
        assert photograph.getpixel((3 * WIDTH // 4, HEIGHT // 2)) == (0, 0, 0)
        shown = _tile(sheet, number, beside=True).getpixel((WIDTH // 2, HEIGHT // 2))
        assert shown == Image.new("RGB", (1, 1), colour).getpixel((0, 0))
    assert not _ink(_tile(sheet, len(colours), beside=False)).any()


def test_bars_are_as_long_as_the_shares(tmp_path: Path) -> None:
    [panel] = [_tile(_sheet(tmp_path, [Panel("a", None, WORDS)]), 0, beside=True)]
    pixels = np.asarray(panel).astype(int)
    blue = (np.abs(pixels - [0x25, 0x63, 0xEB]).sum(axis=2) < 9).sum(axis=1).max()
    grey = (np.abs(pixels - [0x9C, 0xA3, 0xAF]).sum(axis=2) < 9).sum(axis=1).max()
    assert blue == pytest.approx(3 * grey, abs=6)


@pytest.mark.parametrize("count", [1, 2, 3, 4, 12])
@pytest.mark.parametrize("classes", [0, 1, 21])
def test_nothing_is_cut(tmp_path: Path, count: int, classes: int) -> None:
    legend = {f"class number {n}": colour for n, colour in enumerate(DISTINCT[:classes])}
    panels = [Panel("long/" * 40, None, [("word " * 20, 0.999)] * 7)] * count
    ink = _ink(_sheet(tmp_path, panels, legend))
    border = np.ones_like(ink)
    border[16:-16, 24:-24] = False
    assert not (ink & border).any()
    assert ink[-60:].any()


def test_the_legend_has_every_colour(tmp_path: Path) -> None:
    legend = {f"class {n}": colour for n, colour in enumerate(DISTINCT[:12])}
    sheet = np.asarray(_sheet(tmp_path, [Panel("a", None)] * COLUMNS, legend))
    for colour in distinct(12):
        assert (sheet == colour).all(axis=2).sum() > 100


def test_an_empty_or_huge_sheet_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="no predictions to draw"):
        _sheet(tmp_path, [])
    monkeypatch.setattr(canvas, "MAX_PIXELS", 1000)
    with pytest.raises(UserError, match="too large a picture"):
        _sheet(tmp_path, [Panel("a", None)])


def test_classes_are_told_apart_without_red_or_green() -> None:
    """As Machado et al. (2009) simulate it, in linear RGB."""
    deuteranopia = [[0.367, 0.861, -0.228], [0.280, 0.673, 0.047], [-0.012, 0.043, 0.969]]
    colours = distinct(12) / 255
    for seen in (colours, ((colours**2.2) @ np.array(deuteranopia).T).clip(0, 1) ** (1 / 2.2)):
        gaps = np.abs(seen[:, None] - seen[None]).sum(axis=2) + np.eye(12)
        assert gaps.min() > 0.15
    assert len(set(DISTINCT)) == len(DISTINCT)
    assert len({tuple(colour) for colour in distinct(256).tolist()}) == 256


def _artifact(folder: Path, rows: list[dict[str, Any]]) -> tuple[Folder, Manifest]:
    """Predictions in parts of five."""
    output, files = Folder(str(folder / "out")), []
    for start in range(0, len(rows), 5):
        buffer, part = io.BytesIO(), rows[start : start + 5]
        pq.write_table(pa.Table.from_pylist(part), buffer)
        name = f"part-{start:05d}.parquet"
        output.write(name, buffer.getvalue())
        files.append(entry_of(name, buffer.getvalue(), len(part)))
    return output, Manifest(kind="predictions", config={}, files=files)


def _task(name: str, **settings: Any) -> Task:
    kind = class_named(f"imgray.classification.{name}", Task, "task")
    return kind(kind.Settings(**settings), ["zero", "one"])


def test_some_rows_of_an_artifact_from_first_to_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [
        {"id": f"{n}.png", "labels": ["one"], "scores": [n / 40], "picture": None, "sha256": None}
        for n in range(33)
    ]
    drawn: list[Panel] = []
    monkeypatch.setattr("imgray.engine.sheets.panel_sheet", lambda panels, *_: drawn.extend(panels))
    task = _task("images:Classification")
    output, manifest = _artifact(tmp_path, rows)
    draw_predictions(
        tmp_path / "a.png", Files(Folder(str(tmp_path)), "image"), output, manifest, task
    )
    numbers = [int(panel.id.removesuffix(".png")) for panel in drawn]
    assert len(numbers) == 12
    assert (numbers[0], numbers[-1]) == (0, 32)
    assert set(np.diff(numbers)) <= {2, 3}
    assert [panel.words for panel in drawn] == [[("one", n / 40)] for n in numbers]


@pytest.mark.parametrize(
    ("name", "settings", "colour"),
    [
        ("segmentation:Segmentation", {"classes": ["zero", "one"]}, distinct(2)[1].tolist()),
        ("edges:EdgeDetection", {}, [254] * 3),
    ],
)
def test_pictures_are_coloured_and_verified(
    tmp_path: Path, name: str, settings: Any, colour: Any
) -> None:
    painted = encoded(Image.new("L", (40, 30), 1), "PNG")
    (tmp_path / "0.png").write_bytes(encoded(halves(), "PNG"))
    row = {"id": "0.png", "picture": "pictures/0.png.png", "sha256": sha256(painted)}
    output, manifest = _artifact(tmp_path, [{"classes": ["one"], "shares": [1.0], **row}])
    output.write("pictures/0.png.png", painted)
    places = tmp_path / "sheet.png", Files(Folder(str(tmp_path)), "image"), output, manifest
    draw_predictions(*places, _task(name, **settings))
    with Image.open(tmp_path / "sheet.png") as sheet:
        shown = _tile(sheet, 0, beside=True)
        assert list(shown.getpixel((WIDTH // 2, HEIGHT // 2))) == colour  # type: ignore[arg-type]
    output.write("pictures/0.png.png", painted + b"x")
    with pytest.raises(UserError, match=r"pictures/0.png.png: its content differs"):
        draw_predictions(*places, _task(name, **settings))


@pytest.mark.parametrize(
    ("weights", "channels"),
    [((3, 192), 0), ((5, 1), 0), ((5, 11), 11), ((5, 90), 90)],
    ids=["vectors", "one class", "classes", "many classes"],
)
def test_fusion_weights_are_a_figure_of_readable_size(
    weights: tuple[int, int], channels: int
) -> None:
    branches = [f"side{place}" for place in range(weights[0])]
    drawn = plots.fusion(np.full(weights, 0.2), branches, [f"class {n}" for n in range(channels)])
    with Image.open(io.BytesIO(drawn)) as figure:
        assert 400 < figure.width < 1200
        assert 300 < figure.height < 1200
