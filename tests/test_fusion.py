"""Late fusion against its definition, written out for one query at a time."""

import itertools

import numpy as np
import pytest

from imgray.retrieval.fusion import LEAST_AREA, LEAST_FACTOR, adaptive, areas, average, minmax


def lists_of(seed: int, shape: tuple[int, ...], count: int) -> list[np.ndarray]:
    chance = np.random.default_rng(seed)
    scales = chance.uniform(0.1, 50, count)
    return [s * chance.normal(size=shape) ** 3 + s for s in scales]


def scaled_by_hand(row: np.ndarray) -> list[float]:
    have = [value for value in row.tolist() if value != -np.inf]
    if not have or max(have) == min(have):
        return [0.0] * len(row)
    low, high = min(have), max(have)
    return [0.0 if v == -np.inf else (v - low) / (high - low) for v in row.tolist()]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("count", [1, 2, 4])
def test_fusions_are_as_defined(seed: int, count: int) -> None:
    lists = lists_of(seed, (3, 7), count)
    weights = np.random.default_rng(seed + 9).uniform(0.2, 3, count).tolist()
    found = {
        "average": average(lists, weights),
        "sum": adaptive(lists, weights),
        "product": adaptive(lists, weights, "product"),
    }
    for query in range(3):
        rows = [scaled_by_hand(one[query]) for one in lists]
        shares = [
            w / max(sum(row) / len(row), LEAST_AREA) for w, row in zip(weights, rows, strict=True)
        ]
        for place in range(7):
            values = [row[place] for row in rows]
            mean = sum(w * v for w, v in zip(weights, values, strict=True)) / sum(weights)
            total = sum(s * v for s, v in zip(shares, values, strict=True)) / sum(shares)
            powers = [
                max(v, LEAST_FACTOR) ** (s / sum(shares))
                for s, v in zip(shares, values, strict=True)
            ]
            expected = {"average": mean, "sum": total, "product": float(np.prod(powers))}
            for name, value in expected.items():
                assert found[name][query, place] == pytest.approx(value, abs=1e-12), name


def test_the_order_of_lists_changes_no_bit() -> None:
    lists = lists_of(1, (5, 40), 4)
    weights = [0.3, 1.7, 0.9, 2.2]
    for fuse in (average, adaptive, lambda a, b: adaptive(a, b, "product")):
        first = fuse(lists, weights)
        for order in itertools.permutations(range(4)):
            again = fuse([lists[i] for i in order], [weights[i] for i in order])
            np.testing.assert_array_equal(again, first)


def test_scores_of_any_scale_count_alike() -> None:
    one, other = lists_of(2, (4, 9), 2)
    for fuse in (average, adaptive):
        np.testing.assert_allclose(fuse([one * 1000 - 5, other]), fuse([one, other]), atol=1e-12)


def test_a_list_that_drops_sharply_decides() -> None:
    sharp = np.array([0.0, 0.05, 1.0, 0.02, 0.01])
    flat = np.array([1.0, 0.9, 0.0, 0.95, 0.9])
    assert areas(sharp) < areas(flat)
    assert average([sharp, flat]).argmax() != 2
    assert adaptive([sharp, flat]).argmax() == 2
    assert adaptive([sharp, flat], combine="product").shape == (5,)


def test_what_is_lacking_counts_as_the_lowest() -> None:
    row = np.array([3.0, -np.inf, 1.0, 2.0])
    np.testing.assert_array_equal(minmax(row), [1.0, 0.0, 0.0, 0.5])
    np.testing.assert_array_equal(minmax(np.full(3, -np.inf)), np.zeros(3))
    np.testing.assert_array_equal(minmax(np.full(3, 7.0)), np.zeros(3))
    assert minmax(np.zeros((0,))).shape == (0,)


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_scores_that_are_no_numbers_are_refused(wrong: float) -> None:
    with pytest.raises(ValueError, match="must be numbers"):
        average([np.array([1.0, wrong])])


@pytest.mark.parametrize("weights", [[0, 0], [1, -1], [np.nan, 1], [1]])
def test_weights_that_cannot_be_are_refused(weights: list[float]) -> None:
    with pytest.raises(ValueError, match="weights"):
        adaptive(lists_of(0, (3,), 2), weights)


def test_nothing_to_fuse_is_refused() -> None:
    with pytest.raises(ValueError, match="no scores"):
        average([])


@pytest.mark.parametrize("huge", [1e308, 1e-308])
def test_only_the_proportion_of_weights_counts(huge: float) -> None:
    lists = lists_of(3, (2, 6), 2)
    for fuse in (average, adaptive):
        np.testing.assert_allclose(fuse(lists, [huge, huge]), fuse(lists), rtol=1e-12)
