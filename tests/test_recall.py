"""Ranks and metrics of image-text matching against brute force, and against ranx."""

import warnings
from functools import partial
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from imgray.retrieval import fusion, recall
from imgray.retrieval.recall import (
    Ranking,
    category_map,
    incidence,
    matching_metrics,
    matching_ranks,
    recalls,
)

KS = (1, 5, 10)


def _pairs(seed: int, images: int, texts: int, shared: int, dim: int = 5) -> dict[str, Any]:
    """Pairs in a random order; the last `shared` captions are also ones of other images."""
    chance = np.random.default_rng(seed)
    image = np.repeat(np.arange(images), texts)
    text = np.arange(len(image))
    text[len(text) - shared :] = chance.integers(0, len(text) - shared, shared)
    vectors = [chance.normal(size=(n, dim)).astype(np.float32) for n in (images, len(text))]
    vectors[1] += vectors[0][image]
    order = chance.permutation(len(image))
    image, text = image[order], text[order]
    hashes = chance.integers(-(2**62), 2**62, 10_000)
    return {
        "images": vectors[0][image], "texts": vectors[1][text],
        "image_ids": hashes[image], "text_ids": hashes[5000 + text],
    }  # fmt: skip


def _found(*given: Any, **named: Any) -> dict[str, float]:
    return matching_metrics(matching_ranks(*given, **named))


def _brute(images: Any, texts: Any, image_ids: Any, text_ids: Any, score: Any = None) -> Any:
    """Both lists of ranks, query by query and item by item."""
    firsts = [int(np.flatnonzero(image_ids == id)[0]) for id in np.unique(image_ids)]
    scores = score if score is not None else images[firsts] @ texts.T
    captions = {i: set(text_ids[image_ids == image_ids[i]]) for i in firsts}
    right = np.array([[text_ids[j] in captions[i] for j in range(len(texts))] for i in firsts])
    return _ranks(scores, right), _ranks(scores.T, right.T)


def _ranks(scores: NDArray[Any], right: NDArray[Any]) -> list[int]:
    found = []
    for row, hits in zip(scores, right, strict=True):
        best = max(s for s, hit in zip(row, hits, strict=True) if hit)
        found.append(1 + sum(s >= best for s, hit in zip(row, hits, strict=True) if not hit))
    return found


def _metrics(ranks: Any) -> dict[str, float]:
    found = {}
    for name, some in zip(("i2t", "t2i"), ranks, strict=True):
        found |= {f"{name}_recall@{k}": sum(r <= k for r in some) / len(some) for k in KS}
        found[f"{name}_median_rank"] = float(np.median(some))
    rsum = sum(100 * value for name, value in found.items() if "recall" in name)
    return found | {"rsum": rsum}


@pytest.mark.parametrize("held", [1, 333, recall.SCORES])
@pytest.mark.parametrize(
    ("seed", "images", "texts", "shared"),
    [(0, 30, 5, 0), (1, 25, 5, 40), (2, 40, 1, 7), (3, 1, 3, 0)],
)
def test_metrics_are_those_of_brute_force(
    monkeypatch: pytest.MonkeyPatch, seed: int, images: int, texts: int, shared: int, held: int
) -> None:
    monkeypatch.setattr(recall, "SCORES", held)
    pairs = _pairs(seed, images, texts, shared)
    found = _found(**pairs | {"images": [pairs["images"]], "texts": [pairs["texts"]]})
    assert found == pytest.approx(_metrics(_brute(**pairs)))


@pytest.mark.parametrize("seed", range(2))
def test_the_order_of_pairs_does_not_matter(seed: int) -> None:
    pairs = _pairs(seed, 20, 3, 9, dim=2)
    pairs["images"], pairs["texts"] = (pairs[name].round() for name in ("images", "texts"))
    order = np.random.default_rng(9).permutation(60)
    found = [
        _found([p["images"]], [p["texts"]], p["image_ids"], p["text_ids"])
        for p in (pairs, {name: values[order] for name, values in pairs.items()})
    ]
    assert found[0] == found[1] == pytest.approx(_metrics(_brute(**pairs)))


def test_ties_count_against_the_query() -> None:
    one = np.ones((12, 3), np.float32)
    found = _found([one], [one], np.arange(12), np.arange(12))
    assert found["rsum"] == 0
    assert found["i2t_median_rank"] == 12
    nothing = _found([one * np.nan], [one], np.arange(12), np.arange(12))
    assert nothing["rsum"] == 0


def test_a_shared_caption_is_a_hit_for_each_of_its_images() -> None:
    images = np.eye(3, dtype=np.float32)
    texts = np.array([[0, 1, 0], [0, 1, 0], [0, 0, 1]], np.float32)
    apart = _found([images], [texts], np.arange(3), np.arange(3))
    shared = _found([images], [texts], np.arange(3), np.array([4, 4, 5]))
    assert apart["t2i_recall@1"] == pytest.approx(2 / 3)
    assert shared["t2i_recall@1"] == 1


@pytest.mark.parametrize(
    "fuse", [fusion.average, fusion.adaptive, partial(fusion.adaptive, combine="product")]
)
@pytest.mark.parametrize("held", [64, recall.SCORES])
def test_several_embeddings_are_fused_query_by_query(
    monkeypatch: pytest.MonkeyPatch, fuse: Any, held: int
) -> None:
    monkeypatch.setattr(recall, "SCORES", held)
    pairs, other = _pairs(0, 20, 3, 5), _pairs(7, 20, 3, 5)
    ids = {name: pairs[name] for name in ("image_ids", "text_ids")}
    _, first, place = np.unique(ids["image_ids"], return_index=True, return_inverse=True)
    images = [pairs["images"], other["images"][first][place]]
    texts = [pairs["texts"], other["texts"]]
    found = _found(images, texts, **ids, fuse=fuse)
    lists = [image[first] @ text.T for image, text in zip(images, texts, strict=True)]
    to_texts = _brute(**pairs, score=fuse(lists))[0]
    to_images = _brute(**pairs, score=fuse([one.T for one in lists]).T)[1]
    assert found == pytest.approx(_metrics((to_texts, to_images)))


@pytest.mark.parametrize("held", [16, recall.SCORES])
@pytest.mark.parametrize("seed", range(3))
def test_category_map_is_that_of_brute_force(
    monkeypatch: pytest.MonkeyPatch, seed: int, held: int
) -> None:
    monkeypatch.setattr(recall, "SCORES", 16 * held)
    chance = np.random.default_rng(seed)
    queries, items = (chance.normal(size=(n, 4)).round().astype(np.float32) for n in (17, 40))
    of, among = (chance.random((n, 6)) < 0.2 for n in (17, 40))
    precisions = []
    for query, labels in zip(queries, of, strict=True):
        hits = (among & labels).any(axis=1)
        order = sorted(range(40), key=lambda j, q=query, h=hits: (-float(q @ items[j]), h[j]))
        if hits.any():
            places = [place for place, j in enumerate(order, start=1) if hits[j]]
            precisions.append(np.mean([n / p for n, p in enumerate(places, start=1)]))
    keys = [incidence(*np.nonzero(labels), 6) for labels in (of, among)]
    keys = [_padded(one, len(labels)) for one, labels in zip(keys, (of, among), strict=True)]
    assert category_map([(queries, items)], *keys) == pytest.approx(np.mean(precisions))


def _padded(keys: Any, rows: int) -> Any:
    keys.resize((rows, 6))
    return keys


def test_ranx_finds_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of continuous scores, which have no ties. To compile itself would take it a minute."""
    monkeypatch.setenv("NUMBA_DISABLE_JIT", "1")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ranx = pytest.importorskip("ranx")
    pairs = _pairs(0, 12, 5, 9)
    image_ids, text_ids = pairs["image_ids"], pairs["text_ids"]
    found = _found([pairs["images"]], [pairs["texts"]], image_ids, text_ids)
    firsts = np.unique(image_ids, return_index=True)[1]
    scores = pairs["images"][firsts] @ pairs["texts"].T
    captions = [set(text_ids[image_ids == image_ids[i]]) for i in firsts]
    right = np.array([[id in of for id in text_ids] for of in captions])
    for name, table, hits in (("i2t", scores, right), ("t2i", scores.T, right.T)):
        judged: dict[str, dict[str, int]] = {f"q{q}": {} for q in range(len(hits))}
        for q, d in zip(*np.nonzero(hits), strict=True):
            judged[f"q{q}"][f"d{d}"] = 1
        run = {
            f"q{q}": {f"d{d}": float(s) for d, s in enumerate(row)} for q, row in enumerate(table)
        }
        names = [*(f"hit_rate@{k}" for k in KS), "map"]
        theirs = ranx.evaluate(ranx.Qrels(judged), ranx.Run(run), names)
        for k in KS:
            assert found[f"{name}_recall@{k}"] == pytest.approx(theirs[f"hit_rate@{k}"])
        numbers = np.arange(table.shape[1])
        keys = incidence(*np.nonzero(hits)), incidence(numbers, numbers)
        vectors = [(table.astype(np.float32), np.eye(len(numbers), dtype=np.float32))]
        assert category_map(vectors, *keys) == pytest.approx(theirs["map"])


def test_queries_without_a_right_item_do_not_count() -> None:
    ranking = Ranking(
        [(np.eye(3, dtype=np.float32), np.eye(3, dtype=np.float32))],
        incidence(np.array([0, 1, 2]), np.array([0, 1, 3]), 4),
        incidence(np.array([0, 1, 2]), np.array([0, 0, 2]), 4),
    )  # fmt: skip
    assert ranking.ranks().tolist() == [1, 0, 0]
    assert recalls("x", ranking.ranks())["x_recall@1"] == 1
    assert ranking.average_precisions().tolist() == pytest.approx([(1 + 2 / 3) / 2, 0, 0])
