"""Closed forms from second moments, against solutions from the pairs themselves."""

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import linalg

from imgray.errors import UserError
from imgray.matching.closed import moments, solve


def _pairs(seed: int, count: int = 80, dims: tuple[int, int] = (7, 5)) -> list[NDArray[Any]]:
    chance = np.random.default_rng(seed)
    hidden = chance.normal(size=(count, 3))
    return [
        (hidden @ chance.normal(size=(3, n)) + chance.normal(size=(count, n)) + 2).astype(
            np.float32
        )
        for n in dims
    ]


def _solved(
    kind: Any, pairs: list[NDArray[Any]], *given: Any, parts: int = 1
) -> list[NDArray[Any]]:
    """Both sides, mapped; the moments are those of several batches."""
    batches = zip(*(np.array_split(one, parts) for one in pairs), strict=True)
    groups = [moments(torch.as_tensor(x), torch.as_tensor(y)) for x, y in batches]
    sums = {name: torch.cat([group[name] for group in groups]) for name in groups[0]}
    maps = solve(kind, sums, *given)
    assert all(one.weight.dtype == torch.float64 for one in maps)
    return [x @ m.weight.numpy() + m.bias.numpy() for x, m in zip(pairs, maps, strict=True)]


def _regularised(x: NDArray[Any], shrink: float) -> NDArray[Any]:
    variances = np.cov(x.T, bias=True)
    return variances + shrink * np.trace(variances) / len(variances) * np.eye(len(variances))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("shrink", [(0.0, 0.0), (0.3, 2.0)])
@pytest.mark.parametrize("power", [0.0, 1.0])
def test_canonical_correlations_are_those_of_the_eigenproblem(
    seed: int, shrink: tuple[float, float], power: float
) -> None:
    """Cxx^-1 Cxy Cyy^-1 Cyx w = rho^2 w."""
    x, y = (one.astype(float) for one in _pairs(seed))
    xx, yy = _regularised(x, shrink[0]), _regularised(y, shrink[1])
    xy = np.cov(x.T, y.T, bias=True)[:7, 7:]
    squares, vectors = linalg.eigh(xy @ np.linalg.solve(yy, xy.T), xx)
    rho = np.sqrt(squares[::-1][:4])
    wanted = (x - x.mean(axis=0)) @ vectors[:, ::-1][:, :4] * rho**power
    images, texts = _solved("cca", _pairs(seed), 4, shrink, power, parts=3)
    assert images.shape == texts.shape == (80, 4)
    scale = np.linalg.norm(images) / np.linalg.norm(wanted)
    assert np.allclose(np.abs(images), scale * np.abs(wanted), atol=1e-4)
    if shrink == (0.0, 0.0):
        found = [np.corrcoef(a, b)[0, 1] for a, b in zip(images.T, texts.T, strict=True)]
        assert found == pytest.approx(rho.tolist(), abs=1e-4)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("shrink", [0.0, 0.5])
def test_ridge_predicts_the_texts(seed: int, shrink: float) -> None:
    x, y = _pairs(seed)
    xc, yc = (one.astype(float) - one.mean(axis=0) for one in (x, y))
    weight = np.linalg.solve(_regularised(x, shrink), xc.T @ yc / len(x))
    images, texts = _solved("ridge", [x, y], 99, (shrink, 0.0), 1.0, parts=2)
    for found, wanted in ((images, xc @ weight), (texts, yc)):
        wanted = wanted / np.sqrt((wanted**2).sum(axis=1).mean())
        assert np.allclose(found, wanted, atol=1e-4)


@pytest.mark.parametrize("kind", ["cca", "ridge"])
def test_outputs_have_a_mean_square_length_of_one(kind: str) -> None:
    for found in _solved(kind, _pairs(0), 3, (0.2, 0.1), 0.5):
        assert (found**2).sum(axis=1).mean() == pytest.approx(1, abs=1e-4)
        assert np.allclose(found.mean(axis=0), 0, atol=1e-4)


@pytest.mark.parametrize("kind", ["cca", "ridge"])
def test_batches_may_be_cut_anywhere(kind: str) -> None:
    given = 4, (0.2, 0.1), 0.5
    whole, cut = (_solved(kind, _pairs(1), *given, parts=parts) for parts in (1, 7))
    for one, other in zip(whole, cut, strict=True):
        assert np.allclose(one, other, atol=1e-4)


@pytest.mark.parametrize("kind", ["cca", "ridge"])
def test_a_dimension_that_never_changes_is_borne(kind: str) -> None:
    x, y = _pairs(2)
    x[:, 0] = 3
    found = _solved(kind, [x, y], 4, (0.1, 0.1), 0.5)
    assert all(np.isfinite(one).all() for one in found)


@pytest.mark.parametrize("kind", ["cca", "ridge"])
@pytest.mark.parametrize(
    ("rows", "other"),
    [([0], [0]), ([0] * 5, [0, 1, 2, 3, 4]), ([0, 1, 2, 3, 4], [0] * 5), ([0, 1, 2], [0, 1, 2])],
    ids=["one pair", "one image", "one text", "fewer pairs than numbers"],
)
@pytest.mark.parametrize("shrink", [(0.0, 0.0), (5.0, 0.3)])
def test_what_does_not_vary_has_a_solution_too(
    kind: Any, rows: list[int], other: list[int], shrink: tuple[float, float]
) -> None:
    x, y = _pairs(4)
    images, texts = _solved(kind, [x[rows], y[other]], 4, shrink, 0.5)
    assert np.isfinite(images).all()
    assert np.isfinite(texts).all()


def test_numbers_out_of_proportion_are_one_line() -> None:
    x, y = _pairs(4)
    with pytest.raises(UserError, match=r"raise settings\.shrink, or look for numbers out of all"):
        _solved("cca", [x * 1e30, y], 4, (1.0, 1.0), 0.5)
