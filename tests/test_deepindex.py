"""DeepIndex and multi-DeepIndex against loops over regions, postings and tuples of words."""

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray
from synthetic import clustered, names, settings
from threadpoolctl import threadpool_limits

from imgray.errors import UserError
from imgray.features.columns import Vectors
from imgray.retrieval import backend
from imgray.retrieval.codebook import Codebooks, fit
from imgray.retrieval.deepindex import DeepIndex, Hits, Images, Shard, ShardBuilder, merge

PYRAMID = (1, 4, 9)
BLOCK = 16
DIMS = {"a.mid": 20, "b.high": 28, "c.low": 16}
Visits = list[list[int]]


def _dims(count: int) -> dict[str, int]:
    return dict(itertools.islice(DIMS.items(), count))


@dataclass
class World:
    """A collection with its index, in 1 shard or more."""

    books: Codebooks
    vectors: Vectors
    folder: Path

    @property
    def images(self) -> int:
        return len(next(iter(self.vectors.values())))

    def index(self, shards: int = 1, in_memory: bool = False) -> DeepIndex:
        parts, frequency = self.parts(shards, in_memory)
        return DeepIndex(self.books, frequency, self.images, parts)

    def parts(self, shards: int, in_memory: bool = False) -> tuple[list[Shard], NDArray[np.int64]]:
        blocks = math.ceil(self.images / BLOCK)
        edges = [min(self.images, blocks * n // shards * BLOCK) for n in range(shards + 1)]
        frequency = np.zeros(self.books.settings.lists, np.int64)
        found = []
        for first, last in itertools.pairwise(edges):
            builder = ShardBuilder(self.books)
            for start in range(first, last, BLOCK):
                rows = slice(start, min(start + BLOCK, last))
                cut = {name: value[rows] for name, value in self.vectors.items()}
                builder.add(names(self.images)[rows], cut)
            stem = self.folder / f"{shards}-{first}"
            builder.write(stem.with_suffix(".faiss"))
            builder.write_images(stem.with_suffix(".parquet"))
            lists, counts = builder.document_frequency()
            frequency[lists] += counts
            images = Images(stem.with_suffix(".parquet"))
            found.append(Shard(stem.with_suffix(".faiss"), images, first))
            if in_memory:
                found[-1].index = faiss.read_index(str(stem.with_suffix(".faiss")))
        return found, frequency


def _world(
    folder: Path,
    count: int = 2,
    images: int = 70,
    levels: tuple[int, ...] = PYRAMID,
    **changes: Any,
) -> World:
    dims = _dims(count)
    regions = sum(levels)
    if regions == 1:
        changes = {"signature": ()} | changes
    vectors = clustered(1, images, regions, dims)
    return World(fit(vectors, settings(dims, levels, **changes)), vectors, folder)


def _queries(world: World, seed: int = 2, count: int = 3) -> Vectors:
    """Strangers, and the collection's image 5."""
    dims = {name: value.shape[2] for name, value in world.vectors.items()}
    other = clustered(seed, count, world.books.settings.regions, dims)
    return {n: np.concatenate([other[n], value[5:6]]) for n, value in world.vectors.items()}


def _reduced(books: Codebooks, vectors: Vectors) -> list[NDArray[np.float64]]:
    found = []
    for name in books.settings.features:
        p = books.projections[name]
        value = (vectors[name].astype(np.float64) - p.mean) @ p.matrix
        found.append(value / np.linalg.norm(value, axis=-1, keepdims=True))
    return found


def _signature(books: Codebooks, vectors: Vectors, image: int) -> NDArray[np.float64]:
    parts = []
    for name, p in books.signature.items():
        value = (vectors[name][image, 0].astype(np.float64) - p.mean) @ p.matrix
        parts.append(value / np.linalg.norm(value))
    joined = np.concatenate(parts)
    return np.rint(joined * (127 / np.abs(joined).max()))


class Reference:
    """The module's docstring, in loops over images, regions, visited lists and postings."""

    def __init__(self, world: World, weights: Mapping[str, float] | None = None) -> None:
        self.books, self.vectors = world.books, world.vectors
        self.settings = world.books.settings
        given = [(weights or {}).get(name, 1.0) for name in self.settings.features]
        self.weights = [w / sum(given) for w in given]
        self.every = list(itertools.product(*[range(n) for n in self.settings.codewords]))
        self.stored = _reduced(self.books, self.vectors)
        self.home = self.homes(self.stored)
        members = [set(lists) for lists in self.home]
        self.idf = [
            math.log(1 + world.images / max(1, sum(number in lists for lists in members)))
            for number in range(len(self.every))
        ]

    def homes(self, reduced: list[NDArray[np.float64]]) -> Visits:
        words = [
            (value @ self.books.words[name].T).argmax(axis=-1)
            for name, value in zip(self.settings.features, reduced, strict=True)
        ]
        images, regions = words[0].shape
        return [
            [self.every.index(tuple(int(w[i, r]) for w in words)) for r in range(regions)]
            for i in range(images)
        ]

    def visits(self, reduced: list[NDArray[np.float64]], image: int) -> Visits:
        """The lists that each region visits: all tuples of words, sorted by their weighted sum."""
        probes = [
            p for p, n in zip(self.settings.probes, self.settings.levels, strict=True)
            for _ in range(n)
        ]  # fmt: skip
        found = []
        for region, count in enumerate(probes):
            parts = zip(self.weights, self.settings.features, reduced, strict=True)
            cosines = [w * (self.books.words[name] @ r[image, region]) for w, name, r in parts]
            sums = [sum(c[u] for c, u in zip(cosines, words, strict=True)) for words in self.every]
            found.append(sorted(range(len(sums)), key=sums.__getitem__, reverse=True)[:count])
        return found

    def cosines(self, query: list[Any], stored: list[Any]) -> NDArray[np.float64]:
        return sum(  # type: ignore[return-value]
            w * x @ y.T for w, x, y in zip(self.weights, query, stored, strict=True)
        )

    def votes(self, cosines: NDArray[np.float64], visits: Visits, home: list[int]) -> list[float]:
        found = []
        for x, lists in enumerate(visits):
            for y, number in enumerate(home):
                if number in lists:
                    kernel = math.exp((cosines[x, y] - 1) / self.settings.bandwidth)
                    found.append(self.idf[number] ** 2 * kernel)
        return found

    def search(self, queries: Vectors, image: int) -> tuple[dict[int, float], int]:
        """The score of every image with a vote, and the number of postings that were scored."""
        reduced = _reduced(self.books, queries)
        visits = self.visits(reduced, image)
        query = [value[image] for value in reduced]
        own = sum(self.votes(self.cosines(query, query), visits, self.homes(reduced)[image]))
        scores, touched = {}, 0
        for number, home in enumerate(self.home):
            stored = [value[number] for value in self.stored]
            votes = self.votes(self.cosines(query, stored), visits, home)
            touched += len(votes)
            if votes:
                weight = 1.0
                if self.settings.signature:
                    a = _signature(self.books, queries, image)
                    b = _signature(self.books, self.vectors, number)
                    cosine = a @ b / math.sqrt((a @ a) * (b @ b))
                    weight = max(0.0, cosine) ** self.settings.signature_power
                scores[number] = weight * sum(votes) / own
        return scores, touched


def _agree(hits: Hits, expected: dict[int, float], tolerance: float) -> None:
    assert set(hits.positions.tolist()) == set(expected)
    wanted = [expected[position] for position in hits.positions.tolist()]
    np.testing.assert_allclose(hits.scores, wanted, atol=tolerance)
    assert all(a >= b - 2 * tolerance for a, b in itertools.pairwise(wanted))
    assert all(a >= b for a, b in itertools.pairwise(hits.scores))


SHAPES = [
    {"count": 1},
    {"count": 2},
    {"count": 3},
    {"count": 2, "signature": ()},
    {"count": 2, "signature": ("b.high",), "signature_power": 0.5, "bandwidth": 1.0},
    {"count": 2, "levels": (1, 4), "probes": (1, 1)},
    {"count": 1, "levels": (2, 3), "probes": (100, 2), "dim": 7},
]


@pytest.mark.parametrize(("code", "tolerance"), [("Flat", 1e-4), ("SQ8", 2e-2)])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_scores_are_the_formula(
    tmp_path: Path, shape: dict[str, Any], code: str, tolerance: float
) -> None:
    world = _world(tmp_path, code=code, **shape)
    queries = _queries(world)
    reference = Reference(world)
    for image, hits in enumerate(world.index().search(queries, top=1000)):
        scores, touched = reference.search(queries, image)
        _agree(hits, scores, tolerance)
        assert hits.touched == touched
        assert hits.ids == [names(world.images)[position] for position in hits.positions]


@pytest.mark.parametrize("weights", [{"a.mid": 3.0}, {"b.high": 0.2}, {"a.mid": 5.0, "b.high": 2}])
def test_weights_weigh_the_cosines(tmp_path: Path, weights: dict[str, float]) -> None:
    world = _world(tmp_path)
    queries = _queries(world)
    reference = Reference(world, weights)
    answers = world.index().search(queries, 1000, weights)
    for image, hits in enumerate(answers):
        _agree(hits, reference.search(queries, image)[0], 1e-4)
    plain = world.index().search(queries, 1000)
    assert any(a.ids != b.ids for a, b in zip(answers, plain, strict=True))


def test_a_weight_of_zero_leaves_a_feature_out(tmp_path: Path) -> None:
    """All lists visited, scores depend on the other feature alone: noise in this one is nothing."""
    world = _world(tmp_path, probes=(30, 30, 30), signature=())
    queries = _queries(world)
    reference = Reference(world, {"a.mid": 0.0})
    for image, hits in enumerate(world.index().search(queries, 1000, {"a.mid": 0.0})):
        _agree(hits, reference.search(queries, image)[0], 1e-4)


def test_only_the_ratio_of_weights_matters(tmp_path: Path) -> None:
    world = _world(tmp_path)
    queries = _queries(world)
    plain = world.index().search(queries, 20)
    doubled = world.index().search(queries, 20, {"a.mid": 2.0, "b.high": 2.0})
    _same(plain, doubled)
    _same(world.index().search(queries, 20, {}), plain)


@pytest.mark.parametrize("weights", [{}, {"a.mid": 0.0}, {"b.high": 0.0}, {"a.mid": 9.0}])
@pytest.mark.parametrize("probes", [(1, 1, 1), (3, 2, 1), (30, 30, 30)])
@pytest.mark.parametrize("levels", [(1,), PYRAMID])
def test_an_image_finds_itself_with_score_1(
    tmp_path: Path, levels: tuple[int, ...], probes: tuple[int, ...], weights: dict[str, float]
) -> None:
    world = _world(tmp_path, levels=levels, probes=probes[: len(levels)], code="SQ8")
    index = world.index(3)
    for position, hits in enumerate(index.search(world.vectors, 3, weights)):
        assert hits.positions[0] == position
        assert hits.scores[0] == pytest.approx(1, abs=0.05)
        assert hits.scores[-1] <= hits.scores[0]


@pytest.mark.parametrize(
    ("weights", "reason"),
    [
        ({"z": 1.0}, "weight of 'z': the index has a.mid, b.high"),
        ({"a.mid": -1.0}, "must be finite, not negative, and not all zero"),
        ({"a.mid": math.nan}, "must be finite, not negative, and not all zero"),
        ({"a.mid": math.inf}, "must be finite, not negative, and not all zero"),
        ({"a.mid": 0.0, "b.high": 0.0}, "must be finite, not negative, and not all zero"),
    ],
)
def test_bad_weights_are_refused(tmp_path: Path, weights: dict[str, float], reason: str) -> None:
    world = _world(tmp_path, images=20)
    with pytest.raises(UserError, match=reason):
        world.index().search(_queries(world), 5, weights)


def _same(one: list[Hits], other: list[Hits]) -> None:
    for a, b in zip(one, other, strict=True):
        assert (a.ids, a.touched) == (b.ids, b.touched)
        np.testing.assert_array_equal(a.positions, b.positions)
        np.testing.assert_array_equal(a.scores, b.scores)


@pytest.mark.parametrize("code", ["Flat", "SQ8", "SQ4", "SQfp16"])
@pytest.mark.parametrize("levels", [(1,), PYRAMID])
@pytest.mark.parametrize("top", [1, 10, 1000])
def test_shards_rank_as_one_index(
    tmp_path: Path, levels: tuple[int, ...], code: str, top: int
) -> None:
    """Bit for bit, whether one process searches the shards or each its own."""
    world = _world(tmp_path, images=118, levels=levels, code=code)
    queries = _queries(world, count=5)
    whole = world.index().search(queries, top)
    for shards in (4, 7):
        _same(world.index(shards).search(queries, top), whole)
        parts, frequency = world.parts(shards)
        alone = [
            DeepIndex(world.books, frequency, world.images, [part]).search(queries, top)
            for part in parts
        ]
        _same([merge(answers, top) for answers in zip(*alone, strict=True)], whole)


@pytest.mark.parametrize("levels", [(1,), PYRAMID])
def test_one_thread_finds_what_many_find(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, levels: tuple[int, ...]
) -> None:
    world = _world(tmp_path, levels=levels)
    index, queries = world.index(shards=3), _queries(world)
    one = index.search(queries, 20)
    monkeypatch.setattr(backend, "FEW", 0)
    with threadpool_limits(2):
        many = index.search(queries, 20)
    for hits, others in zip(one, many, strict=True):
        assert (hits.ids, hits.touched) == (others.ids, others.touched)
        np.testing.assert_array_equal(hits.scores, others.scores)


def test_a_short_ranking_is_the_start_of_a_long_one(tmp_path: Path) -> None:
    for levels in ((1,), PYRAMID):
        world = _world(tmp_path, levels=levels)
        long = world.index(2).search(_queries(world), 1000)
        for top in (1, 2, 7):
            for a, b in zip(world.index(2).search(_queries(world), top), long, strict=True):
                assert a.ids == b.ids[:top]
                np.testing.assert_array_equal(a.scores, b.scores[:top])


@pytest.mark.parametrize("levels", [(1,), PYRAMID])
@pytest.mark.parametrize("shards", [1, 4])
def test_a_prefix_only_leaves_out(tmp_path: Path, levels: tuple[int, ...], shards: int) -> None:
    world = _world(tmp_path, levels=levels)
    index, queries = world.index(shards), _queries(world)
    every = index.search(queries, 1000)
    for prefix in ("", index.ids_of(np.array([5]))[0][:-1], index.ids_of(np.array([69]))[0], "no"):
        for top in (1, 4, 1000):
            for a, b in zip(index.search(queries, top, prefix=prefix), every, strict=True):
                rows = [row for row, id in enumerate(b.ids) if id.startswith(prefix)][:top]
                assert a.ids == [b.ids[row] for row in rows]
                np.testing.assert_array_equal(a.scores, b.scores[rows])


@pytest.mark.parametrize("levels", [(1,), PYRAMID])
@pytest.mark.parametrize("shards", [1, 4, 7])
@pytest.mark.parametrize("top", [1, 3, 10, 40])
def test_ties_rank_by_position(
    tmp_path: Path, levels: tuple[int, ...], shards: int, top: int
) -> None:
    probes = (30, 30, 30)[: len(levels)]
    world = _world(tmp_path, images=40, levels=levels, code="SQ8", probes=probes, signature=())
    three = {name: np.tile(value, (3, 1, 1)) for name, value in world.vectors.items()}
    world = World(world.books, three, tmp_path)  # image n is image n + 40 and n + 80
    for hits in world.index(shards).search(_queries(world), top):
        pairs = list(zip(-hits.scores, hits.positions.tolist(), strict=True))
        assert pairs == sorted(pairs)
        copies = [position % 40 for position in hits.positions.tolist()]
        expected = list(itertools.chain(*[(c, c, c) for c in dict.fromkeys(copies)]))[:top]
        assert copies == expected
        first = [position // 40 for position in hits.positions.tolist()]
        assert first == list(itertools.islice(itertools.cycle((0, 1, 2)), len(first)))


@pytest.mark.parametrize("levels", [(1,), PYRAMID])
def test_memory_mapped_lists_answer_as_those_in_memory(
    tmp_path: Path, levels: tuple[int, ...]
) -> None:
    world = _world(tmp_path, levels=levels, code="SQ8")
    queries = _queries(world)
    _same(world.index(3, in_memory=True).search(queries, 20), world.index(3).search(queries, 20))


@pytest.mark.parametrize("code", ["Flat", "SQ8"])
@pytest.mark.parametrize("probes", [1, 2, 6])
def test_one_region_of_one_feature_is_an_ordinary_ivf_index(
    tmp_path: Path, probes: int, code: str
) -> None:
    world = _world(tmp_path, count=1, levels=(1,), probes=(probes,), code=code)
    encoded = world.books.encode(world.vectors)
    dim = encoded.reduced[0].shape[-1]
    quantizer = faiss.IndexFlatIP(dim)
    quantizer.add(world.books.words["a.mid"])
    plain = world.books.new_index()
    plain.own_fields, plain.quantizer, plain.nprobe = False, quantizer, probes
    plain.add(world.books.codes_of(encoded)[:, 0])
    queries = _queries(world)
    cosines, found = plain.search(world.books.encode(queries).reduced[0][:, 0], 30)
    answers = world.index().search(queries, 30)
    for hits, scores, positions in zip(answers, cosines, found, strict=True):
        assert hits.positions.tolist() == positions[positions >= 0].tolist()
        np.testing.assert_allclose(hits.scores, scores[positions >= 0], atol=1e-6)


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("probes", [1, 4, 1000])
@pytest.mark.parametrize("weights", [{}, {"a.mid": 4.0}])
def test_one_region_ranks_by_the_cosine_of_codes(
    tmp_path: Path, count: int, probes: int, weights: dict[str, float]
) -> None:
    world = _world(tmp_path, count=count, levels=(1,), probes=(probes,))
    queries, reference = _queries(world), Reference(world, weights)
    reduced = _reduced(world.books, queries)
    for image, hits in enumerate(world.index(3).search(queries, 1000, weights)):
        [visited] = reference.visits(reduced, image)
        query = [value[image] for value in reduced]
        expected = {
            n: float(reference.cosines(query, [value[n] for value in reference.stored])[0, 0])
            for n, [number] in enumerate(reference.home)
            if number in visited
        }
        _agree(hits, expected, 1e-5)
        assert hits.touched == len(expected)


def test_more_probes_find_no_less(tmp_path: Path) -> None:
    for levels in ((1,), PYRAMID):
        worlds = [
            _world(tmp_path, levels=levels, probes=(p, p, p)[: len(levels)]) for p in (1, 5, 30)
        ]
        found = [[h for h in w.index().search(_queries(w), 1000)] for w in worlds]
        for few, more, every in zip(*found, strict=True):
            assert set(few.ids) <= set(more.ids) <= set(every.ids) == set(names(70))
            assert few.touched < more.touched < every.touched
            regions = worlds[0].books.settings.regions
            assert every.touched == 70 * regions * regions


@pytest.mark.parametrize("levels", [(1,), PYRAMID])
@pytest.mark.parametrize("shards", [1, 2])
def test_an_image_without_votes_is_no_result(
    tmp_path: Path, levels: tuple[int, ...], shards: int
) -> None:
    """Queries from the empty side of feature space find nothing, and their neighbours something."""
    world = _world(tmp_path, count=1, images=32, levels=levels, probes=(1, 1, 1)[: len(levels)])
    projection = world.books.projections["a.mid"]
    words = projection.mean + world.books.words["a.mid"][:2] @ projection.matrix.T
    near, far = (np.tile(word, (1, sum(levels), 1)) for word in words.astype(np.float32))
    world.vectors["a.mid"] = np.tile(near, (32, 1, 1))
    queries = {"a.mid": np.concatenate([far, near])}
    nothing, everything = world.index(shards).search(queries, 5)
    assert (nothing.ids, nothing.touched) == ([], 0)
    assert len(nothing.scores) == len(nothing.positions) == 0
    assert everything.ids == names(32)[:5]
    assert everything.touched == 32 * sum(levels) ** 2
    [joined] = [merge([nothing, everything], 3)]
    assert joined.ids == everything.ids[:3]


def test_a_shard_is_a_table_of_ids_and_signatures(tmp_path: Path) -> None:
    world = _world(tmp_path, images=40)
    parts, frequency = world.parts(2)
    assert [(len(part), part.offset) for part in parts] == [(16, 0), (24, 16)]
    assert [id for part in parts for id in part.ids.to_pylist()] == names(40)
    expected = [_signature(world.books, world.vectors, image) for image in range(40)]
    found = np.concatenate([part.images.signatures for part in parts])
    assert np.abs(found - np.stack(expected)).max() <= 1
    table = pq.read_table(tmp_path / "2-0.parquet")
    assert table.schema.names == ["id", "signature"]
    reference = Reference(world)
    counted = [sum(n in set(lists) for lists in reference.home) for n in range(len(frequency))]
    assert frequency.tolist() == counted
