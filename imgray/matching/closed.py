"""Linear maps of images and texts into one space in closed form: canonical correlations, and ridge.

Both need no more than the second moments of the pairs, which are sums: batches and workers add
theirs up, and the maps are solved for at the end, in float64.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from imgray.errors import UserError

LEAST = 1e-6
"""Of the mean square of a vector's numbers, above what rounding makes of a variance of 0."""
Solution = Literal["cca", "ridge"]
Moments = Mapping[str, Tensor]
"""Sums over pairs, float64: their `count`, the vectors `x` of images and `y` of texts, and the
products `xx`, `xy` and `yy`. A leading axis holds those of several groups of pairs, to be added."""


class Map(NamedTuple):
    """An affine map (N, d) -> (N, k): vectors @ weight + bias, weight (d, k), float64."""

    weight: Tensor
    bias: Tensor


def moments(images: Tensor, texts: Tensor) -> dict[str, Tensor]:
    """The sums over the pairs of a batch, images (N, d) and texts (N, e), one group."""
    with torch.autocast(images.device.type, enabled=False):
        x, y = images.float(), texts.float()
        sums = {"x": x.sum(dim=0), "y": y.sum(dim=0), "xx": x.T @ x, "xy": x.T @ y, "yy": y.T @ y}
        count = torch.tensor([float(len(x))], dtype=torch.float64, device=x.device)
        return {"count": count} | {name: one.double()[None] for name, one in sums.items()}


def solve(
    kind: Solution, of: Moments, dim: int, shrink: tuple[float, float], power: float
) -> tuple[Map, Map]:
    """The maps of images and of texts, scaled so that their outputs have a mean square length of 1.

    Args:
        kind: `cca`: regularised canonical correlation analysis (Hotelling 1936), each pair of
            directions weighted by a power of its correlation as Gong et al. (IJCV 2014) do.
            `ridge`: image vectors are mapped to those of their texts by ridge regression, and texts
            stay where they are but for their mean.
        of: the moments.
        dim: k of `cca`, d or e at most; `ridge` has k = e.
        shrink: by image and text what is added to the variances, relative to their mean.
        power: of the correlations.

    Raises:
        UserError: numbers too large, or too few pairs for so little shrinkage.
    """
    try:
        return _solved(kind, of, dim, shrink, power)
    except torch.linalg.LinAlgError:
        raise UserError(
            f"{kind}: the vectors of these pairs give no solution; raise settings.shrink, or look "
            "for numbers out of all proportion among them"
        ) from None


def _solved(
    kind: Solution, of: Moments, dim: int, shrink: tuple[float, float], power: float
) -> tuple[Map, Map]:
    sums = {name: one.sum(dim=0) for name, one in of.items()}
    x, y, xx, xy, yy = (sums[name] / sums["count"] for name in ("x", "y", "xx", "xy", "yy"))
    lifts = [LEAST * one.diagonal().mean() for one in (xx, yy)]
    xx, xy, yy = xx - torch.outer(x, x), xy - torch.outer(x, y), yy - torch.outer(y, y)
    if kind == "cca":
        raised = [_raised(*one) for one in zip((xx, yy), shrink, lifts, strict=True)]
        one, other = _canonical(raised[0], xy, raised[1], dim, power)
    else:
        raised = [_raised(xx, shrink[0], lifts[0])]
        one, other = torch.linalg.solve(raised[0], xy), torch.eye(len(y)).to(y)
    return _affine(one, x, xx), _affine(other, y, yy)


def _canonical(xx: Tensor, xy: Tensor, yy: Tensor, dim: int, power: float) -> tuple[Tensor, Tensor]:
    """Directions as columns (d, dim) and (e, dim): the singular vectors of the whitened `xy`."""
    roots = [torch.linalg.cholesky(one) for one in (xx, yy)]
    white = torch.linalg.solve_triangular(roots[0], xy, upper=False)
    white = torch.linalg.solve_triangular(roots[1], white.T, upper=False).T
    left, correlations, right = torch.linalg.svd(white, full_matrices=False)
    weights = correlations[:dim] ** power
    directions = (
        torch.linalg.solve_triangular(root.T, vectors[:, :dim], upper=True) * weights
        for root, vectors in zip(roots, (left, right.T), strict=True)
    )
    one, other = (torch.nn.functional.pad(found, (0, dim - found.shape[1])) for found in directions)
    return one, other


def _raised(variances: Tensor, shrink: float, least: Tensor) -> Tensor:
    """Covariances (d, d) with a multiple of their mean variance on the diagonal, or the least."""
    level = torch.maximum(shrink * variances.diagonal().mean(), least)
    level = level.clamp(min=torch.finfo(variances.dtype).tiny)
    return variances + level * torch.eye(len(variances)).to(variances)


def _affine(weight: Tensor, mean: Tensor, variances: Tensor) -> Map:
    square = (weight * (variances @ weight)).sum()
    weight = weight / square.clamp(min=torch.finfo(weight.dtype).tiny).sqrt()
    return Map(weight, -mean @ weight)
