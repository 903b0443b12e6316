"""Projections, codebooks, multiple assignment and codes, against their definitions."""

import itertools
import math

import numpy as np
import pytest
from numpy.typing import NDArray
from synthetic import clustered, settings

from imgray.errors import UserError
from imgray.features.columns import Vectors
from imgray.retrieval.codebook import Codebooks, CodebookSettings, Projection, fit, kmeans, unit

LEVELS = (1, 4, 9)
DIMS = {"a.mid": 20, "b.high": 28, "c.low": 16}


def _dims(count: int) -> dict[str, int]:
    return dict(itertools.islice(DIMS.items(), count))


@pytest.fixture(scope="module", params=[1, 2, 3], ids="{} features".format)
def books(request: pytest.FixtureRequest) -> Codebooks:
    dims = _dims(request.param)
    return fit(clustered(0, 60, 14, dims), settings(dims, LEVELS))


def _queries(books: Codebooks, seed: int = 1, images: int = 7) -> Vectors:
    return clustered(seed, images, 14, {name: DIMS[name] for name in books.settings.features})


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("count", "width", "dim"), [(200, 12, 5), (40, 30, 30), (9, 16, 16)])
def test_a_projection_is_pca(seed: int, count: int, width: int, dim: int) -> None:
    random = np.random.default_rng(seed)
    spread = random.normal(size=(count, width)) * np.linspace(3, 0.3, width)
    sample = (spread + random.normal(size=width)).astype(np.float32)
    projection = Projection.fit(sample, dim)
    kept = min(dim, count - 1, width)
    mean = sample.astype(np.float64).mean(axis=0)
    axes = np.linalg.svd(sample - mean, full_matrices=False)[2][:kept].T
    assert projection.matrix.shape == (width, kept)
    assert projection.matrix.dtype == projection.mean.dtype == np.float32
    np.testing.assert_allclose(projection.mean, mean, atol=1e-5)
    aligned = np.abs((projection.matrix * axes).sum(axis=0))
    np.testing.assert_allclose(aligned, 1, atol=1e-3)  # the same axes, up to their signs
    reduced = (sample - mean) @ axes
    expected = reduced / np.linalg.norm(reduced, axis=1, keepdims=True)
    found = projection(sample)
    np.testing.assert_allclose(found @ found.T, expected @ expected.T, atol=1e-3)
    assert found.dtype == np.float32


def test_unit_keeps_directions_and_zeros() -> None:
    vectors = np.float32([[3, 4], [0, 0], [1e-3, 0]])
    np.testing.assert_allclose(unit(vectors), [[0.6, 0.8], [0, 0], [1, 0]], rtol=1e-6)


def test_a_constant_sample_projects_to_finite_vectors() -> None:
    same = np.ones((5, 8), np.float32)
    assert np.isfinite(Projection.fit(same, 4)(same)).all()


@pytest.mark.parametrize("seed", [0, 1, 7])
def test_centroids_are_unit_and_depend_on_the_seed_alone(seed: int) -> None:
    vectors = clustered(3, 50, 14, {"a": 16})["a"].reshape(-1, 16)
    words = kmeans(vectors, 20, seed)
    assert words.shape == (20, 16)
    np.testing.assert_allclose(np.linalg.norm(words, axis=1), 1, atol=1e-6)
    np.testing.assert_array_equal(words, kmeans(vectors.copy(), 20, seed))
    assert not np.array_equal(words, kmeans(vectors, 20, seed + 1))


def test_centroids_are_the_means_of_their_vectors() -> None:
    """Lloyd's algorithm has come to rest: a spherical centroid is the direction of its mean."""
    centres = unit(np.random.default_rng(5).normal(size=(4, 16)))
    spread = np.array([0.05, 0.1, 0.3, 0.5])[:, None, None]
    noise = np.random.default_rng(6).normal(size=(4, 50, 16)) * spread
    vectors = unit(centres[:, None] + noise).reshape(-1, 16)
    words = kmeans(vectors, 4, 0)
    home = (vectors @ words.T).argmax(axis=1)
    means = unit(np.stack([vectors[home == word].sum(axis=0) for word in range(4)]))
    np.testing.assert_allclose(words, means, atol=1e-4)
    assert (centres @ words.T).max(axis=1).min() > 0.9


def _cosines(books: Codebooks, vectors: Vectors) -> list[NDArray[np.float64]]:
    found = []
    for name in books.settings.features:
        projection = books.projections[name]
        reduced = (vectors[name].astype(np.float64) - projection.mean) @ projection.matrix
        reduced /= np.linalg.norm(reduced, axis=-1, keepdims=True)
        found.append(reduced @ books.words[name].T)
    return found


def test_a_region_lies_in_the_list_of_its_nearest_words(books: Codebooks) -> None:
    vectors = _queries(books)
    cosines = _cosines(books, vectors)
    lists = books.lists_of(books.encode(vectors))
    every = list(itertools.product(*[range(n) for n in books.settings.codewords]))
    assert lists.shape == (7, 14)
    for image, region in np.ndindex(lists.shape):
        nearest = tuple(int(c[image, region].argmax()) for c in cosines)
        assert every[lists[image, region]] == nearest
    assert books.settings.lists == len(every)


WEIGHTS = [(1.0, 1.0, 1.0), (5.0, 1.0, 2.0), (0.1, 3.0, 0.7), (0.0, 0.0, 1.0), (1.0, 1.0, 0.0)]


def _shares(books: Codebooks, given: tuple[float, ...]) -> NDArray[np.float64]:
    """The last of these weights, one for each feature, their sum 1."""
    weights = np.array(given[-len(books.settings.features) :])
    return weights / (weights.sum() or 1)


@pytest.mark.parametrize("probes", [(1, 1, 1), (2, 3, 5), (29, 11, 4), (1000, 1000, 1000)])
@pytest.mark.parametrize("given", WEIGHTS)
def test_probes_are_the_tuples_with_the_largest_sums(
    books: Codebooks, probes: tuple[int, ...], given: tuple[float, ...]
) -> None:
    weights = _shares(books, given)
    changed = books.settings.model_copy(update={"probes": probes})
    books = Codebooks(changed, books.projections, books.words, books.signature, books.empty)
    vectors = _queries(books, seed=2, images=3)
    cosines = _cosines(books, vectors)
    visits = books.probes_of(books.encode(vectors), weights.tolist())
    weights = np.maximum(weights, 1e-3)  # one of 0 orders what ties
    every = list(itertools.product(*[range(n) for n in books.settings.codewords]))
    assert [(part.start, part.stop) for part, _ in visits] == [(0, 1), (1, 5), (5, 14)]
    for (part, lists), count in zip(visits, probes, strict=True):
        assert lists.shape == (3, part.stop - part.start, min(count, len(every)))
        for image, row in np.ndindex(lists.shape[:2]):
            region = part.start + row
            here = [w * c[image, region] for w, c in zip(weights, cosines, strict=True)]
            sums = [sum(c[u] for c, u in zip(here, words, strict=True)) for words in every]
            found = lists[image, row].tolist()
            assert len(set(found)) == len(found)
            best = sorted(sums, reverse=True)[: len(found)]
            np.testing.assert_allclose([sums[number] for number in found], best, atol=1e-5)


@pytest.mark.parametrize("given", WEIGHTS)
def test_the_first_probe_is_the_list_of_the_region(
    books: Codebooks, given: tuple[float, ...]
) -> None:
    encoded = books.encode(_queries(books, seed=4))
    visits = books.probes_of(encoded, _shares(books, given).tolist())
    first = np.concatenate([lists[..., 0] for _, lists in visits], axis=1)
    np.testing.assert_array_equal(first, books.lists_of(encoded))


@pytest.mark.parametrize("given", WEIGHTS)
def test_the_inner_product_of_codes_is_the_weighted_mean_of_cosines(
    books: Codebooks, given: tuple[float, ...]
) -> None:
    weights = _shares(books, given)
    queries, stored = (books.encode(_queries(books, seed)) for seed in (1, 2))
    one = books.codes_of(queries, weights.tolist())
    other = books.codes_of(stored)
    for a, b in itertools.product(np.ndindex(2, 14), np.ndindex(2, 14)):
        expected = 0.0
        for weight, x, y in zip(weights, queries.reduced, stored.reduced, strict=True):
            p, q = x[a].astype(float), y[b].astype(float)
            expected += weight * (p @ q) / math.sqrt((p @ p) * (q @ q))
        assert one[a].astype(float) @ other[b] == pytest.approx(expected, abs=1e-5)


def test_the_signature_keeps_the_cosine_of_the_whole_images(books: Codebooks) -> None:
    vectors = _queries(books, seed=6, images=30)
    signatures = books.encode(vectors).signatures
    assert signatures.dtype == np.int8
    parts = [
        (vectors[name][:, 0] - p.mean) @ p.matrix for name, p in books.signature.items()
    ]  # the first region is the whole image
    exact = np.concatenate([unit(part) for part in parts], axis=1).astype(float)
    exact /= np.linalg.norm(exact, axis=1, keepdims=True)
    bytes_ = signatures.astype(float)
    bytes_ /= np.linalg.norm(bytes_, axis=1, keepdims=True)
    np.testing.assert_allclose(bytes_ @ bytes_.T, exact @ exact.T, atol=0.02)
    assert np.abs(signatures).max(axis=1).min() == 127  # the whole range of a byte is used


def test_without_a_signature_its_width_is_zero() -> None:
    dims = _dims(2)
    books = fit(clustered(0, 60, 14, dims), settings(dims, LEVELS, signature=()))
    assert books.encode(_queries(books)).signatures.shape == (7, 0)


@pytest.mark.parametrize("code", ["Flat", "SQ8", "SQ4", "SQfp16"])
def test_codebooks_survive_their_bytes(books: Codebooks, code: str) -> None:
    dims = {name: DIMS[name] for name in books.settings.features}
    made = fit(clustered(0, 60, 14, dims), settings(dims, LEVELS, code=code))
    again = Codebooks.from_bytes(made.to_bytes())
    assert again.settings == made.settings
    assert again.to_bytes() == made.to_bytes()
    vectors = _queries(made)
    one, other = made.encode(vectors), again.encode(vectors)
    for x, y in zip(one.reduced, other.reduced, strict=True):
        np.testing.assert_array_equal(x, y)
    np.testing.assert_array_equal(one.signatures, other.signatures)
    np.testing.assert_array_equal(made.lists_of(one), again.lists_of(other))
    np.testing.assert_array_equal(made.empty, again.empty)
    index = again.new_index()
    assert (index.is_trained, index.ntotal, index.nlist) == (True, 0, made.settings.lists)


def test_the_same_sample_and_seed_give_the_same_bytes() -> None:
    dims = _dims(2)
    sample = clustered(0, 60, 14, dims)
    made = [fit(sample, settings(dims, LEVELS, code="SQ8", seed=s)).to_bytes() for s in (3, 3, 4)]
    assert made[0] == made[1] != made[2]


def test_a_sample_smaller_than_the_dimensions_cuts_them() -> None:
    sample = clustered(0, 3, 14, {"a": 64})
    books = fit(sample, settings({"a": 64}, LEVELS, dim=64, signature_dim=64))
    assert books.projections["a"].matrix.shape == (64, 41)
    assert books.signature["a"].matrix.shape == (64, 2)
    assert books.encode(sample).reduced[0].shape == (3, 14, 41)


def _wrong(**changes: object) -> CodebookSettings:
    return settings(_dims(2), LEVELS, **changes)


def test_too_few_regions_or_too_many_lists_are_refused() -> None:
    sample = clustered(0, 5, 14, _dims(2))
    with pytest.raises(UserError, match="--codewords 71: the sample has only 70 regions; ask for"):
        fit(sample, _wrong(codewords=(6, 71)))
    fit(sample, _wrong(codewords=(6, 70)))
    with pytest.raises(UserError, match="make 16,781,312 lists; at most 16,777,216: ask for fewer"):
        fit(sample, _wrong(codewords=(4096, 4097)))
