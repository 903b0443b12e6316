"""Retrieval metrics against loops written from their definitions, on random rankings."""

import random

import pytest

from imgray.retrieval.metrics import average_precision, evaluate, precision_at, recall_at

KS = (1, 2, 5, 10)
Case = tuple[dict[str, list[str]], dict[str, str], set[str]]


def _average_precision(ranking: list[str], right: set[str]) -> float:
    """The mean over all right images of the precision at their rank, 0 for one not found."""
    if not right:
        return 0.0
    total = 0.0
    for image in right:
        if image in ranking:
            first = ranking[: ranking.index(image) + 1]
            total += len([i for i in first if i in right]) / len(first)
    return total / len(right)


def _expected(case: Case) -> dict[str, float]:
    rankings, groups, indexed = case
    totals: dict[str, float] = {}
    for query, ranking in rankings.items():
        others = [id for id in ranking if id != query]
        right = {id for id in indexed if id != query and groups.get(id) == groups[query]}
        values = {"map": _average_precision(others, right)}
        for k in KS:
            found = 0
            for id in others[:k]:
                found += id in right
            values[f"precision@{k}"] = found / k
            values[f"recall@{k}"] = 1.0 if found else 0.0
        first_four = ([query] if query in indexed else []) + others
        group = right | ({query} & indexed)
        values["ns_score"] = sum(id in group for id in first_four[:4])
        totals = {name: totals.get(name, 0.0) + value for name, value in values.items()}
    return {name: total / len(rankings) for name, total in totals.items()}


def _case(seed: int) -> Case:
    """Random rankings, some cut short; queries in and out of the index; images without a group."""
    rng = random.Random(seed)
    images = [f"{n}.jpg" for n in range(rng.randint(1, 40))]
    queries = [*rng.sample(images, rng.randint(1, len(images))), "outside-1", "outside-2"]
    names = [f"group {n}" for n in range(rng.randint(1, 8))]
    known = [id for id in images if id in queries or rng.random() < 0.8] + queries[-2:]
    groups = {id: rng.choice(names) for id in known}
    rankings = {q: rng.sample(images, rng.randint(0, len(images))) for q in queries}
    return rankings, groups, set(images)


@pytest.mark.parametrize("seed", range(200))
def test_metrics_are_their_definitions(seed: int) -> None:
    case = _case(seed)
    found = evaluate(*case, ks=KS)
    assert found == pytest.approx(_expected(case), abs=1e-12)
    assert all(0 <= value <= 1 for name, value in found.items() if name != "ns_score")


def test_known_values() -> None:
    assert average_precision([True, False, True, False], 2) == pytest.approx((1 + 2 / 3) / 2)
    assert average_precision([False, False, True], 3) == pytest.approx(1 / 9)
    assert average_precision([], 0) == average_precision([False], 0) == 0
    assert precision_at([True, True, False, True], 4) == 0.75
    assert precision_at([True], 5) == 0.2
    assert (recall_at([False, True], 1), recall_at([False, True], 2), recall_at([], 1)) == (0, 1, 0)


def test_a_query_does_not_find_itself() -> None:
    groups = {"q": "x", "right": "x", "wrong": "y"}
    own = evaluate({"q": ["q", "wrong", "right"]}, groups, set(groups), ks=(1, 2))
    without = evaluate({"q": ["wrong", "right"]}, groups, set(groups), ks=(1, 2))
    assert own == without
    assert (own["map"], own["precision@1"], own["recall@1"], own["recall@2"]) == (0.5, 0, 0, 1)


def test_relevant_images_that_are_not_returned_count_as_not_found() -> None:
    groups = {id: "x" for id in ("q", "a", "b", "c", "not indexed")}
    indexed = {"q", "a", "b", "c"}
    found = evaluate({"q": ["a"]}, groups, indexed, ks=(1, 5))
    assert found["map"] == pytest.approx(1 / 3)
    assert (found["precision@5"], found["recall@5"]) == (1 / 5, 1)
    assert evaluate({"q": []}, groups, indexed)["map"] == 0
    assert evaluate({}, groups, indexed) == {}


@pytest.mark.parametrize("seed", range(20))
def test_the_ns_score_lies_between_one_and_four(seed: int) -> None:
    rng = random.Random(seed)
    images = [f"{n:02}" for n in range(40)]
    groups = {id: str(n // 4) for n, id in enumerate(images)}
    rankings = {q: rng.sample(images, 12) for q in images}
    assert 1 <= evaluate(rankings, groups, set(images))["ns_score"] <= 4
    best = {q: sorted(images, key=lambda id: (groups[id] != groups[q], id)) for q in images}
    assert evaluate(best, groups, set(images))["ns_score"] == 4
    worst = {q: best[q][::-1][:30] for q in images}
    assert evaluate(worst, groups, set(images))["ns_score"] == 1
