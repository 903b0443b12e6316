"""Boundary evaluation: thinning, non-maximum suppression, exact matching, counts and scores."""

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import gaussian_filter
from scipy.optimize import linear_sum_assignment
from skimage import morphology

from imgray.classification.correspondence import match
from imgray.classification.edge_metrics import THRESHOLDS, Counts, count, scores
from imgray.classification.relaxed import canny_maps
from imgray.classification.ridges import nms, thin
from imgray.errors import UserError

Bools = NDArray[np.bool_]
LEFT_OVER = 1e4


def _random(seed: int, shape: tuple[int, ...], share: float) -> Bools:
    return np.random.default_rng(seed).random(shape) < share


def _blobs(seed: int, shape: tuple[int, ...], share: float) -> Bools:
    """Connected regions, unlike the single pixels of `_random`."""
    smooth = gaussian_filter(
        np.random.default_rng(seed).random(shape), (0,) * (len(shape) - 2) + (2, 2)
    )
    return smooth > np.quantile(smooth, 1 - share)


def _distances(prediction: Bools, truth: Bools) -> NDArray[np.float64]:
    difference = np.argwhere(prediction)[:, None] - np.argwhere(truth)[None]
    return np.sqrt((difference**2).sum(axis=2))


def _best(prediction: Bools, truth: Bools, radius: float) -> tuple[int, float]:
    """Pairs and total distance by dense assignment, where leaving a pixel over costs dearly."""
    costs = _distances(prediction, truth)
    costs = np.where(costs <= radius, costs, LEFT_OVER)
    rows, columns = linear_sum_assignment(costs)
    chosen = costs[rows, columns]
    return int((chosen < LEFT_OVER).sum()), float(chosen[chosen < LEFT_OVER].sum())


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize(
    ("shape", "shares", "radius"),
    [
        ((12, 15), (0.3, 0.3), 1.5),
        ((20, 11), (0.5, 0.1), 3.0),
        ((9, 30), (0.1, 0.5), 2.5),
        ((25, 25), (0.15, 0.12), 4.3),
    ],
)
def test_matching_is_the_best_assignment(
    seed: int, shape: tuple[int, int], shares: tuple[float, float], radius: float
) -> None:
    prediction, truth = _random(seed, shape, shares[0]), _random(seed + 100, shape, shares[1])
    pairs = match(prediction, truth, radius)
    lengths = np.hypot(*(pairs[:, 0] - pairs[:, 1]).T)
    number, total = _best(prediction, truth, radius)
    assert (len(pairs), lengths.sum()) == (number, pytest.approx(total, abs=1e-6))
    assert lengths.max() <= radius
    for side, binary in enumerate((prediction, truth)):
        assert binary[tuple(pairs[:, side].T)].all()
        assert len(np.unique(pairs[:, side], axis=0)) == number  # one to one
    np.testing.assert_array_equal(pairs[:, 0], sorted(pairs[:, 0].tolist()))


def _enumerate(distances: NDArray[np.float64], radius: float) -> tuple[int, float]:
    """The most pairs, and the smallest total distance of so many, over all matchings."""
    best = (0, 0.0)
    n, m = distances.shape
    for size in range(1, min(n, m) + 1):
        for rows in itertools.combinations(range(n), size):
            for columns in itertools.permutations(range(m), size):
                chosen = distances[rows, columns]
                if (chosen <= radius).all() and (size > best[0] or chosen.sum() < best[1]):
                    best = (size, float(chosen.sum()))
    return best


@pytest.mark.parametrize("seed", range(15))
def test_matching_is_the_best_of_all_matchings(seed: int) -> None:
    prediction, truth = np.zeros((2, 4, 5), np.bool_)
    random = np.random.default_rng(seed)
    prediction.flat[random.choice(20, 5, replace=False)] = True
    truth.flat[random.choice(20, 4, replace=False)] = True
    pairs = match(prediction, truth, 1.5)
    number, total = _enumerate(_distances(prediction, truth), 1.5)
    assert len(pairs) == number
    assert np.hypot(*(pairs[:, 0] - pairs[:, 1]).T).sum() == pytest.approx(total)


def _row(*columns: int, width: int = 12) -> Bools:
    row = np.zeros((1, width), np.bool_)
    row[0, list(columns)] = True
    return row


def _columns(pairs: NDArray[np.int64]) -> list[tuple[int, int]]:
    return [(int(a), int(b)) for a, b in pairs[:, :, 1]]


def test_number_goes_before_distance() -> None:
    assert _columns(match(_row(3, 5), _row(3, 1), 2)) == [(3, 1), (5, 3)]
    assert _columns(match(_row(3, 5), _row(3, 1), 1.9)) == [(3, 3)]


def test_of_two_pixels_near_one_the_nearer_matches() -> None:
    assert _columns(match(_row(4, 7), _row(6), 3)) == [(7, 6)]
    assert _columns(match(_row(6), _row(4, 7), 3)) == [(6, 7)]


@pytest.mark.parametrize(("shift", "found"), [(0, 10), (4, 10), (5, 0)])
def test_a_shifted_line_matches_within_the_radius(shift: int, found: int) -> None:
    line = np.zeros((10, 12), np.bool_)
    line[:, 3] = True
    assert len(match(np.roll(line, shift, axis=1), line, 4.3)) == found
    assert len(match(np.roll(line, shift, axis=1), line, 4.0)) == found  # the radius is inside


def test_an_empty_map_matches_nothing() -> None:
    empty, full = np.zeros((2, 5, 5), np.bool_)
    full = ~full
    for pair in itertools.product((empty, full), repeat=2):
        assert match(*pair, 2.0).shape == (25 * all(one.any() for one in pair), 2, 2)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("make", [_random, _blobs])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_thinning_is_that_of_scikit_image(seed: int, make, share: float) -> None:
    stack = make(seed, (3, 40, 33), share)
    expected = np.stack([morphology.thin(one) for one in stack])
    assert 0 < expected.sum() < stack.sum()
    np.testing.assert_array_equal(thin(stack), expected)
    np.testing.assert_array_equal(thin(stack[0]), expected[0])


def _line(angle: float, offset: float = 0.0, size: int = 48) -> NDArray[np.float64]:
    """A straight ridge of Gaussian profile through the middle; `angle` is across it."""
    y, x = np.indices((size, size)) - (size - 1) / 2
    return np.exp(-((x * math.cos(angle) + y * math.sin(angle) - offset) ** 2) / 8)


@pytest.mark.parametrize("degrees", [0, 20, 45, 70, 90, 110, 135, 160])
def test_suppression_keeps_ridges_and_drops_flanks(degrees: int) -> None:
    angle = math.radians(degrees)
    edge_map = _line(angle, offset=0.2)
    kept = nms(edge_map) > 0.1
    y, x = np.argwhere(kept).T - 23.5
    assert np.abs(x * math.cos(angle) + y * math.sin(angle) - 0.2).max() < 1.0  # of a sigma of 2
    across = kept.sum(axis=1 if abs(math.cos(angle)) > 0.7 else 0)[5:-5]
    assert across.min() >= 1
    assert across.max() <= 2
    assert np.isin(thin(kept).sum(axis=1 if abs(math.cos(angle)) > 0.7 else 0)[5:-5], (1, 2)).all()


def test_suppression_smooths_and_fades_towards_the_sides() -> None:
    kept = nms(_line(0.0, offset=0.5))
    ridge = kept[:, 24]
    smooth = (2 * math.exp(0) + 2 * math.exp(-1 / 8)) / 4  # a triangle of radius 1: 1, 2, 1
    weights = [0, 0.2, 0.4, 0.6, 0.8, 1]
    np.testing.assert_allclose(ridge[:6], np.multiply(weights, smooth))
    np.testing.assert_allclose(ridge, ridge[::-1])
    assert np.delete(kept, 24, axis=1).max() == 0


def _soft(seed: int, shape: tuple[int, int]) -> NDArray[np.float64]:
    noise = gaussian_filter(np.random.default_rng(seed).random(shape), 2)
    return nms((noise - noise.min()) / np.ptp(noise))


def _slow(edge_map: NDArray[np.float64], boundaries: Bools, radius: float) -> list[list[int]]:
    """The counts by their definition, every threshold and annotator from scratch."""
    table = []
    for threshold in THRESHOLDS:
        edges = morphology.thin(edge_map >= threshold)
        anyone, found = np.zeros_like(edges), 0
        for truth in boundaries:
            pairs = match(edges, truth, radius)
            anyone[tuple(pairs[:, 0].T)] = True
            found += len(pairs)
        table.append([found, boundaries.sum(), anyone.sum(), edges.sum()])
    return table


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("shape", "tolerance"), [((40, 52), 0.02), ((35, 30), 0.06)])
def test_counts_are_those_of_a_slow_loop(
    seed: int, shape: tuple[int, int], tolerance: float
) -> None:
    edge_map = _soft(seed, shape)
    boundaries = thin(_blobs(seed, (3, *shape), 0.3))
    counts = count(edge_map, boundaries, tolerance)
    table = np.array(_slow(edge_map, boundaries, tolerance * math.hypot(*shape)))
    assert len(np.unique(table, axis=0)) > 20  # the thresholds differ
    np.testing.assert_array_equal(counts.table, table)
    f_measure = [_f(*row) for row in table.tolist()]
    np.testing.assert_array_equal(counts.best, table[int(np.argmax(f_measure))])


def _f(found: int, boundary: int, matched: int, edges: int) -> float:
    recall, precision = found / boundary, matched / edges if edges else 0.0
    return 2 * recall * precision / (recall + precision) if found else 0.0


def _table(seed: int) -> NDArray[np.int64]:
    """Counts as of a detector: the higher the threshold, the fewer and the better its pixels."""
    random = np.random.default_rng(seed)
    edges = np.sort(random.integers(0, 900, 99))[::-1]
    matched = (edges * np.sort(random.random(99))).astype(np.int64)
    return np.stack([np.sort(matched * 2)[::-1], np.full(99, 2000), matched, edges], axis=1)


@pytest.mark.parametrize("seed", range(6))
def test_scores_follow_their_definitions(seed: int) -> None:
    tables = [_table(10 * seed + i) for i in range(4)]
    tops = [t[int(np.argmax([_f(*row) for row in t.tolist()]))] for t in tables]
    parts = [Counts(t, top) for t, top in zip(tables, tops, strict=True)]
    result = scores(parts[0] + parts[1] + (parts[2] + parts[3]))
    total = np.sum(tables, axis=0)
    recall, precision = total[:, 0] / total[:, 1], total[:, 2] / np.maximum(total[:, 3], 1)
    assert result.ois == pytest.approx(_f(*np.sum(tops, axis=0).tolist()))
    best = (-1.0, 0.0, 0.0, 0.0)
    for i, a in itertools.product(range(1, 99), np.linspace(0, 1, 100)):
        r, p, t = (v[i - 1] * (1 - a) + v[i] * a for v in (recall, precision, THRESHOLDS))
        best = max(best, (2 * r * p / (r + p) if r + p else 0.0, t, r, p), key=lambda x: x[0])
    found = (result.ods, result.threshold, result.recall, result.precision)
    assert found == pytest.approx(best)
    assert result.ap == pytest.approx(_slow_average(recall.tolist(), precision.tolist()))


def _slow_average(recall: list[float], precision: list[float]) -> float:
    curve: dict[float, float] = {}
    for r, p in zip(recall, precision, strict=True):
        curve.setdefault(r, p)  # thresholds ascend
    levels, total = sorted(curve), 0.0
    for x in (i / 100 for i in range(101)):
        for low, high in itertools.pairwise(levels):
            if low <= x < high or x == high == levels[-1]:
                total += curve[low] + (curve[high] - curve[low]) * (x - low) / (high - low)
    return total / 100


def test_ods_interpolates_between_thresholds() -> None:
    """Recall falls and precision rises from one threshold to the next: F is best in between."""
    table = np.tile(np.int64([100, 100, 1, 10]), (99, 1))
    table[50:] = [10, 100, 100, 100]
    result = scores(Counts(table, table[0]))
    share = np.linspace(0, 1, 100)
    r, p = 1 - 0.9 * share, 0.1 + 0.9 * share
    assert result.ods == pytest.approx((2 * r * p / (r + p)).max()) == pytest.approx(0.55, abs=1e-3)
    assert result.threshold == pytest.approx(0.505, abs=1e-3)
    assert result.ois == pytest.approx(_f(100, 100, 1, 10))


def _square() -> Bools:
    boundary = np.zeros((40, 40), np.bool_)
    boundary[8, 8:32] = boundary[31, 8:32] = boundary[8:32, 8] = boundary[8:32, 31] = True
    return thin(boundary)


def test_a_perfect_map_scores_1_and_an_empty_one_0() -> None:
    truth = _square()
    boundaries = np.stack([truth, truth])
    perfect = count(truth.astype(np.float32), boundaries)
    assert (perfect.table == [2 * truth.sum(), 2 * truth.sum(), truth.sum(), truth.sum()]).all()
    result = scores(perfect)
    assert (result.ods, result.ois, result.recall, result.precision) == (1, 1, 1, 1)
    assert result.ap == 0  # one recall only
    nothing = scores(count(np.zeros(truth.shape), boundaries))
    assert (nothing.ods, nothing.ois, nothing.recall, nothing.precision, nothing.ap) == (0,) * 5


def test_a_perfect_ranking_has_nearly_full_ap() -> None:
    """Its precision is 1 at every threshold; recall 0 to 0.01 and that of the least may lack."""
    truth = np.zeros((200, 200), np.bool_)
    truth[100] = True
    edge_map = np.where(truth, np.linspace(0.011, 1, 200), 0)
    result = scores(count(edge_map, truth[None]))
    assert result.ods == result.ois == 1
    assert 0.98 < result.ap <= 1.01


@pytest.mark.parametrize(("shift", "score"), [(0.9, 1.0), (1.1, 0.0)])
def test_a_map_shifted_over_the_tolerance_scores_0(shift: float, score: float) -> None:
    truth = np.zeros((300, 400), np.bool_)  # a diagonal of 500
    truth[:, 200] = True
    tolerance = 4 / shift / 500
    result = scores(count(np.roll(truth, 4, axis=1).astype(np.float64), truth[None], tolerance))
    assert (result.ods, result.ois) == (score, score)


def test_precision_takes_any_annotator_and_recall_each() -> None:
    two = np.zeros((2, 40, 40), np.bool_)
    two[0, 10, 5:35] = two[1, 30, 5:35] = True
    counts = count((two[0] | two[1]).astype(np.float64), two)
    assert counts.table[0].tolist() == [60, 60, 60, 60]
    counts = count(two[0].astype(np.float64), two)
    assert counts.table[0].tolist() == [30, 60, 30, 30]
    assert scores(counts).ods == pytest.approx(2 / 3)


def test_thresholds_are_reached_not_passed() -> None:
    for kind in (np.float32, np.float64):
        edge_map = np.zeros((20, 20), kind)
        edge_map[10, 5:15] = kind(0.7)
        edges = count(edge_map, edge_map[None] > 0).table[:, 3]
        assert edges.tolist() == [10] * 70 + [0] * 29


def test_wrong_input_is_refused() -> None:
    good, truth = np.zeros((6, 7)), np.zeros((2, 6, 7), np.bool_)
    count(good, truth)
    for bad, error in (
        (np.full((6, 7), np.nan), "expected finite ones in 0..1"),
        (np.full((6, 7), 1.01), r"values 1.01..1.01: expected"),
        (np.full((6, 7), -0.1), "expected finite ones in 0..1"),
        (np.zeros((6, 7), np.uint8), "edge map of uint8: expected floats"),
        (np.zeros((1, 7)), r"edge map \(1, 7\): expected \(H, W\)"),
        (np.zeros((6, 7, 3)), r"edge map \(6, 7, 3\): expected \(H, W\)"),
    ):
        with pytest.raises(UserError, match=error):
            count(bad, truth)
        with pytest.raises(UserError, match=error):
            nms(bad)
    for boundaries in (truth[:0], truth[0], truth[:, :5]):
        with pytest.raises(UserError, match=r"expected \(annotators, H, W\) with one"):
            count(good, boundaries)
    with pytest.raises(UserError, match=r"radius -0.09.*: expected 0 or more pixels"):
        count(good, truth, -0.01)
    with pytest.raises(UserError, match=r"prediction \(6, 7\) and truth \(6, 5\): expected one"):
        match(truth[0], truth[0, :, :5], 1)


def _annotators(folder: Path, part: str, images: int) -> list[Bools]:
    paths = sorted((folder / "bsds500/boundaries" / part).glob("*.npz"))[:images]
    found = []
    for path in paths:
        with np.load(path) as file:
            *_, width = shape = tuple(file["shape"])
            found.append(np.unpackbits(file["boundaries"], axis=2, count=width).reshape(shape) > 0)
    return found


@pytest.mark.data
def test_annotators_score_one_another(shared_data: Path) -> None:
    total = []
    for boundaries in _annotators(shared_data, "val", 2):
        own = thin(boundaries[0])
        alone = count(own.astype(np.float64), boundaries[:1]).table
        assert (alone == alone[0]).all()  # the same at all thresholds
        found, boundary, matched, edges = alone[0].tolist()
        assert found == matched == edges == own.sum()  # all of it lies on the map it comes from
        assert boundary == boundaries[0].sum()
        others = [count(own.astype(np.float64), one[None]).table[0] for one in boundaries[1:]]
        for one, each in zip(others, boundaries[1:], strict=True):
            radius = 0.0075 * math.hypot(*own.shape)
            assert one[0] == len(match(own, each, radius)) == len(match(each, own, radius))
        counts = count(own.astype(np.float64), boundaries[1:])
        sums, together = np.sum(others, axis=0), counts.table[0]
        assert together[:2].tolist() == sums[:2].tolist()  # recall adds up over annotators
        assert max(one[2] for one in others) <= together[2] <= min(sums[2], edges)
        total.append(counts)
    result = scores(sum(total[1:], start=total[0]))
    assert result.ods == pytest.approx(result.ois)  # one map each, and nothing to choose
    assert 0.6 < result.ods < 0.95


@pytest.mark.data
@pytest.mark.timeout(300)
def test_a_crowded_map_is_counted_in_seconds(shared_data: Path) -> None:
    """SciPy's check before its assignment ran for more than 17 minutes on this one."""
    folder = shared_data / "bsds500"
    image = np.asarray(Image.open(folder / "images/val/227092.jpg"))
    share = canny_maps(image, np.linspace(0.1, 8.0, 80), dilation=0).mean(axis=0)
    with np.load(folder / "boundaries/val/227092.npz") as file:
        *_, width = shape = tuple(file["shape"])
        drawn = np.unpackbits(file["boundaries"], axis=2, count=width).reshape(shape) > 0
    pairs, total, matched, edges = count(share, drawn).table.T
    assert (np.diff(edges) <= 0).all()
    assert (matched <= pairs).all()
    assert (pairs <= total).all()
