"""Questions in several modalities, over any shards, against whole rankings."""

import itertools
import math
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from synthetic import clustered, names, settings

from imgray.errors import UserError
from imgray.retrieval import modalities
from imgray.retrieval.codebook import Codebooks, fit, fit_unprojected, unit
from imgray.retrieval.deepindex import DeepIndex, Hits, Images, Shard, ShardBuilder, merge
from imgray.retrieval.modalities import Blend, ask

IMAGES, BLOCK, DIM = 150, 16, 10
Parts = dict[str, DeepIndex]


def _shards(books: Codebooks, vectors: dict[str, Any], count: int, folder: Path) -> list[Shard]:
    blocks = math.ceil(IMAGES / BLOCK)
    edges = [min(IMAGES, blocks * n // count * BLOCK) for n in range(count + 1)]
    found = []
    for first, last in itertools.pairwise(edges):
        builder = ShardBuilder(books)
        for start in range(first, last, BLOCK):
            rows = slice(start, min(start + BLOCK, last))
            builder.add(names(IMAGES)[rows], {name: value[rows] for name, value in vectors.items()})
        stem = folder / f"{books.settings.features[0]} {count} {first}"
        builder.write(stem)
        builder.write_images(stem.with_suffix(".parquet"))
        found.append(Shard(stem, Images(stem.with_suffix(".parquet")), first))
    return found


class World:
    """Images with features and a joint embedding, and the parts of their index."""

    def __init__(self, folder: Path, levels: tuple[int, ...]) -> None:
        self.folder, regions = folder, sum(levels)
        own = {"signature": ()} if regions == 1 else {}
        dims = {"a.high": 12, "b.mid": 9}
        self.deep = clustered(0, IMAGES, regions, dims)
        self.joint = {"joint": clustered(1, IMAGES, 1, {"joint": DIM})["joint"]}
        deep = settings(dims, levels, code="SQ8", **own)
        joint = settings(
            {"joint": DIM}, (1,), codewords=(8,), probes=(5,), signature=(), code="SQ8"
        )
        self.books = {
            "image": fit(self.deep, deep),
            "text": fit_unprojected(np.ascontiguousarray(self.joint["joint"][:, 0]), joint),
        }
        self.asked = {"image": clustered(2, 1, regions, dims)}
        self.asked["text"] = {"joint": unit(self.joint["joint"][7:8] + 0.4)}
        self.asked["image"] = {
            n: unit(v + self.deep[n][60:61]) for n, v in self.asked["image"].items()
        }

    @cache  # noqa: B019
    def groups(self, count: int, shards: int) -> list[Parts]:
        """Groups of shards, each as a process would open them."""
        found: list[Parts] = [{} for _ in range(count)]
        for name, vectors in (("image", self.deep), ("text", self.joint)):
            books = self.books[name]
            whole = _shards(books, vectors, shards, self.folder)
            lists = books.lists_of(books.encode(vectors))
            frequency = np.zeros(books.settings.lists, np.int64)
            for row in lists:
                frequency[np.unique(row)] += 1
            for group, parts in enumerate(found):
                own = whole[group * shards // count : (group + 1) * shards // count]
                parts[name] = DeepIndex(books, frequency, IMAGES, own)
        return found


@pytest.fixture(scope="module", params=[(1,), (1, 4, 9)], ids=["global", "pyramid"])
def world(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("world"), request.param)


@pytest.fixture(scope="module")
def whole(world: World) -> Parts:
    [parts] = world.groups(1, 1)
    return parts


def _scaled(scores: dict[int, float]) -> dict[int, float]:
    low, high = min(scores.values()), max(scores.values())
    span = high - low or 1.0
    return {position: (score - low) / span for position, score in scores.items()}


def _joined(
    world: World, whole: Parts, deep: int, prefix: str, top: int
) -> list[tuple[float, int]]:
    """By average fusion of whole rankings, of which the first are candidates: a loop."""
    ranked = {
        name: whole[name].search(world.asked[name], IMAGES, prefix=prefix)[0] for name in whole
    }
    candidates = {p for hits in ranked.values() for p in hits.positions[:deep].tolist()}
    scaled = []
    for hits in ranked.values():
        pairs = zip(hits.positions.tolist(), hits.scores.tolist(), strict=True)
        scaled.append(_scaled({p: score for p, score in pairs if p in candidates}))
    fused = {c: sum(one.get(c, 0.0) for one in scaled) / 2 for c in candidates}
    return sorted((-score, c) for c, score in fused.items())[:top]


@pytest.mark.parametrize("deep", [1, 7, 40, 500])
@pytest.mark.parametrize("prefix", ["", "1/"])
@pytest.mark.parametrize("top", [1, 5, 60])
def test_candidates_have_their_score_in_every_ranking(
    world: World, whole: Parts, deep: int, prefix: str, top: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(modalities, "depth", lambda *_: deep)
    expected = _joined(world, whole, deep, prefix, top)
    for groups, shards in ((1, 1), (1, 4), (3, 5), (2, 2)):
        answers = [ask(g, world.asked, deep, None, prefix) for g in world.groups(groups, shards)]
        hits = Blend().join({n: merge([a[n] for a in answers]) for n in world.asked}, top)
        assert hits.positions.tolist() == [position for _, position in expected]
        np.testing.assert_allclose(hits.scores, [-score for score, _ in expected], atol=1e-12)
        assert hits.ids == [names(IMAGES)[position] for _, position in expected]


@pytest.mark.parametrize("fusion", ["average", "adaptive"])
def test_shards_change_no_bit(world: World, fusion: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(modalities, "depth", lambda *_: 9)
    found = []
    for groups, shards in ((1, 1), (1, 4), (3, 5)):
        answers = [ask(g, world.asked, 9) for g in world.groups(groups, shards)]
        merged = {n: merge([a[n] for a in answers]) for n in world.asked}
        found.append(Blend({"text": 0.7}, fusion).join(merged, 30))
    for other in found[1:]:
        np.testing.assert_array_equal(found[0].positions, other.positions)
        np.testing.assert_array_equal(found[0].scores, other.scores)
        assert (found[0].ids, found[0].touched) == (other.ids, other.touched)


@pytest.mark.parametrize("name", ["image", "text"])
@pytest.mark.parametrize("top", [1, 6, 1000])
def test_one_modality_is_its_own_ranking(world: World, whole: Parts, name: str, top: int) -> None:
    [expected] = whole[name].search(world.asked[name], top)
    answers = [ask(g, {name: world.asked[name]}, top) for g in world.groups(2, 3)]
    hits = Blend().join({name: merge([a[name] for a in answers])}, top)
    np.testing.assert_array_equal(hits.positions, expected.positions)
    np.testing.assert_array_equal(hits.scores, expected.scores)
    assert (hits.ids, hits.touched) == (expected.ids, expected.touched)


@pytest.mark.parametrize("name", ["image", "text"])
@pytest.mark.parametrize("prefix", ["", "2/"])
def test_among_only_leaves_out(world: World, whole: Parts, name: str, prefix: str) -> None:
    [every] = whole[name].search(world.asked[name], IMAGES)
    for chosen in ([], [149], list(range(0, 150, 7)), every.positions[:20].tolist()):
        among: NDArray[np.int64] = np.array(chosen, np.int64)
        for parts, top in itertools.product(
            (whole, world.groups(1, 4)[0]), (1, 3, max(1, len(chosen)), 200)
        ):
            [hits] = parts[name].search(world.asked[name], top, prefix=prefix, among=among)
            pairs = zip(every.positions.tolist(), every.scores.tolist(), every.ids, strict=True)
            kept = [(p, s) for p, s, id in pairs if p in chosen and id.startswith(prefix)][:top]
            assert hits.positions.tolist() == [p for p, _ in kept]
            assert hits.scores.tolist() == [s for _, s in kept]


def test_weights_are_of_the_features_of_images(world: World, whole: Parts) -> None:
    weights = {"a.high": 3.0, "b.mid": 0.5}
    answers = ask(whole, world.asked, IMAGES, weights)
    [image] = whole["image"].search(world.asked["image"], IMAGES, weights)
    known = dict(zip(image.positions.tolist(), image.scores.tolist(), strict=True))
    found = answers["image"]
    assert dict(zip(found.positions.tolist(), found.scores.tolist(), strict=True)) == known
    with pytest.raises(UserError, match="weight of 'c'"):
        ask(whole, world.asked, 5, {"c": 1.0})


def test_nothing_is_found_where_nothing_is_chosen(world: World, whole: Parts) -> None:
    for fusion in ("average", "adaptive"):
        hits = Blend({}, fusion).join(ask(whole, world.asked, 5, None, "nowhere"), 5)  # type: ignore[arg-type]
        assert (hits.ids, len(hits.scores)) == ([], 0)
    empty = Hits(np.array([], np.int64), np.array([]), [], 0)
    one = Hits(np.array([3, 4]), np.array([2.0, 1.0]), ["c", "d"], 2)
    hits = Blend().join({"image": empty, "text": one}, 5)
    assert (hits.ids, hits.scores.tolist()) == (["c", "d"], [0.5, 0.0])
