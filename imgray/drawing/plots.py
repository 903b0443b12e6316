"""Figures of models as PNG: curves, confusion matrices, precision and recall, fusion weights."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from imgray.artifacts.folder import Folder

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INK, GREY, PALE, FIRST, SECOND = "#111827", "#6b7280", "#d1d5db", "#2563eb", "#c2410c"
DPI = 120
PLACES = ("step", "epoch", "part")
"""What says where a line of the curves belongs; all else are values."""
NAMED = 40
"""Classes that a figure names at most."""
ABREAST = 4
FUSION = "fusion.png"


def png(figure: Figure) -> bytes:
    """A figure as PNG."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI, metadata={"Software": None})
    return buffer.getvalue()


def save(figure: Figure, path: Path) -> None:
    """Write a figure, seen whole or not at all. Raises `UserError`."""
    Folder(str(path.parent)).write(path.name, png(figure))


def curves(lines: Sequence[Mapping[str, Any]]) -> bytes:
    """Training and validation values over epochs, a panel for each, four abreast, as PNG.

    Values of single classes, such as `iou/road`, are left out.
    """
    parts = {"train": FIRST, "validate": SECOND}
    names = [
        n
        for n in dict.fromkeys(k for line in lines for k in line)
        if n not in PLACES and "/" not in n
    ]
    columns = min(ABREAST, max(1, len(names)))
    rows = max(1, -(-len(names) // columns))
    figure = _figure((4.6 * columns, 3.4 * rows), "constrained")
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in grid[len(names) :]:
        axes.set_axis_off()
    for axes, name in zip(grid, names, strict=False):
        for part, colour in parts.items():
            points = [(x["epoch"], x[name]) for x in lines if x["part"] == part and name in x]
            if points:
                mark = "o" if part == "validate" else None
                axes.plot(*zip(*points, strict=True), color=colour, label=part, marker=mark, ms=4)
        axes.set_title(name.replace("_", " "), loc="left", color=INK, fontsize=11)
        axes.set_xlabel("epoch")
        axes.legend(frameon=False)
        _tidy(axes)
    return png(figure)


def confusion(counts: NDArray[np.floating[Any]], classes: Sequence[str], path: Path) -> None:
    """Draw a confusion matrix, rows the truth, columns the prediction, as shares of each row.

    Args:
        counts: (C, C).
        classes: C names.
        path: the PNG to write.
    """
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    side = min(14.0, 2.5 + 0.45 * len(classes))
    figure = _figure((side + 1.2, side), "compressed")
    axes = figure.subplots()
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axes.set_xlabel("predicted")
    axes.set_ylabel("truth")
    if len(classes) <= NAMED:
        axes.set_xticks(range(len(classes)), classes, rotation=60, ha="right", fontsize=8)
        axes.set_yticks(range(len(classes)), classes, fontsize=8)
        for (row, column), share in np.ndenumerate(shares):
            if share >= 0.005:
                colour = "white" if share > 0.5 else INK
                text = f"{100 * share:.0f}"
                axes.text(column, row, text, ha="center", va="center", color=colour, fontsize=7)
    figure.colorbar(image, ax=axes, shrink=0.7, label="share of the true class")
    save(figure, path)


def precision_recall(
    systems: Mapping[str, tuple[NDArray[np.floating[Any]], NDArray[np.floating[Any]]]], path: Path
) -> None:
    """Draw precision over recall of several systems with lines of equal F-measure.

    Args:
        systems: by name recall and precision (n,).
        path: the PNG to write.
    """
    figure = _figure((6, 5.6), "constrained")
    axes = figure.subplots()
    grid = np.linspace(1e-3, 1, 200)
    recall, precision = np.meshgrid(grid, grid)
    f_measure = 2 * recall * precision / (recall + precision)
    levels = np.arange(1, 10) / 10
    axes.contour(recall, precision, f_measure, levels, colors=PALE, linewidths=0.8)
    for level in levels:
        axes.text(1.01, level / (2 - level), f"F {level:.1f}", va="center", color=GREY, fontsize=8)
    for (name, (r, p)), colour in zip(systems.items(), (FIRST, SECOND, "#15803d"), strict=False):
        axes.plot(r, p, color=colour, lw=2, label=name)
        if len(r):
            best = (2 * r * p / np.maximum(r + p, 1e-12)).argmax()
            axes.plot(r[best], p[best], "o", color=colour)
    axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="recall", ylabel="precision", aspect="equal")
    axes.legend(frameon=False, loc="lower left")
    _tidy(axes)
    save(figure, path)


def recalls(ranks: Mapping[str, NDArray[np.int64]], path: Path) -> None:
    """Draw the share of queries whose rank is k at most, over k.

    Args:
        ranks: from 1 (n,), by the name of a curve.
        path: the PNG to write.
    """
    figure = _figure((6, 4.2), "constrained")
    axes = figure.subplots()
    for (name, some), colour in zip(ranks.items(), (FIRST, SECOND), strict=False):
        places, counts = np.unique(some, return_counts=True)
        axes.step(places, counts.cumsum() / len(some), color=colour, lw=2, where="post", label=name)
    axes.set(xscale="log", ylim=(0, 1), xlabel="k", ylabel="recall@k")
    axes.legend(frameon=False, loc="lower right")
    _tidy(axes)
    save(figure, path)


def fusion(
    weights: NDArray[np.floating[Any]], branches: Sequence[str], channels: Sequence[str] = ()
) -> bytes:
    """Learned weights of a fusion of branches as PNG; their start, the mean's 1/S, is marked.

    With up to 40 names of channels a heat map of branches by channels; else the spread over them: a
    dot for every weight, and of several the mean and one standard deviation to either side.

    Args:
        weights: (S, K).
        branches: S names, shallow to deep.
        channels: K names or none.
    """
    if 0 < len(channels) <= NAMED:
        return png(_fusion_map(weights, branches, channels))
    return png(_fusion_dots(weights, branches))


def _fusion_dots(weights: NDArray[np.floating[Any]], branches: Sequence[str]) -> Figure:
    count, several = len(branches), weights.shape[1] > 1
    figure = _figure((1.6 + 1.2 * count, 3.8), "constrained")
    axes = figure.subplots()
    axes.axhline(1 / count, color=SECOND, lw=1, ls="--", label=f"at the start, 1/{count}")
    aside = np.random.default_rng(0).uniform(-0.16, 0.16, weights.shape[1]) * several
    for place, values in enumerate(weights):
        size, opacity = (8, 0.35) if several else (36, 1)
        axes.scatter(place + aside, values, s=size, color=FIRST, alpha=opacity, lw=0)
        mean, spread = values.mean(), values.std()
        if several:
            axes.errorbar(place + 0.26, mean, spread, fmt="o", color=INK, ms=5, capsize=4)
        axes.annotate(
            f"{mean:.3f}",
            (place + 0.26 * several, mean),
            (8, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
            bbox={"fc": "white", "lw": 0, "pad": 1},
        )
    axes.set_xticks(range(count), branches)
    axes.set_xlim(-0.4, count - 0.2)
    axes.set_ylabel("weight")
    title = f"Fusion: {weights.shape[1]} weights for each branch" if several else "Fusion weights"
    axes.set_title(title, loc="left", color=INK, fontsize=11)
    axes.legend(frameon=False, fontsize=8, loc="best")
    _tidy(axes)
    return figure


def _fusion_map(
    weights: NDArray[np.floating[Any]], branches: Sequence[str], channels: Sequence[str]
) -> Figure:
    start = 1 / len(branches)
    reach = max(float(np.abs(weights - start).max()), 1e-3)
    size = (3.2 + 0.75 * len(branches), 1.6 + 0.3 * len(channels))
    figure = _figure(size, "constrained")
    axes = figure.subplots()
    image = axes.imshow(
        weights.T, cmap="PuOr", vmin=start - reach, vmax=start + reach, aspect="auto"
    )
    axes.set_xticks(range(len(branches)), branches)
    axes.set_yticks(range(len(channels)), channels)
    for (row, column), weight in np.ndenumerate(weights.T):
        colour = "white" if abs(weight - start) > 0.7 * reach else INK
        axes.text(column, row, f"{weight:.3f}", ha="center", va="center", color=colour, fontsize=8)
    axes.set_title("Fusion weights", loc="left", color=INK, fontsize=11)
    label = f"weight (at the start 1/{len(branches)})"
    figure.colorbar(image, ax=axes, shrink=0.8, label=label)
    axes.tick_params(colors=INK, labelsize=9, length=0)
    return figure


def _figure(size: tuple[float, float], layout: Literal["constrained", "compressed"]) -> Figure:
    from matplotlib.figure import Figure  # slow to load, and many a process draws nothing

    return Figure(figsize=size, layout=layout)


def _tidy(axes: Any) -> None:
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.tick_params(colors=INK, labelsize=8)
