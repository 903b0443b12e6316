"""Index builds on Ray, from features that no network has to make."""

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from indexed import (
    DIMS,
    FEATURES,
    IMAGES,
    SHARDS,
    config_of,
    files_of,
    manifest_of,
    split_of,
    times_of,
)
from numpy.typing import NDArray
from stopped import stopped_at
from synthetic import clustered, names, write_features

import imgray.engine.index as engine
import imgray.engine.rows as rows_module
from imgray.artifacts.folder import Folder
from imgray.artifacts.manifest import read_manifest
from imgray.cli import run_job
from imgray.engine.fan_out import search_shards
from imgray.engine.index import IndexResult, build_index
from imgray.engine.settings import IndexConfig
from imgray.engine.shards import open_shards
from imgray.errors import UserError
from imgray.features.columns import Vectors
from imgray.retrieval.deepindex import Hits


@pytest.fixture(scope="module")
def vectors() -> Vectors:
    return clustered(0, IMAGES, 14, DIMS)


@pytest.fixture(scope="module")
def features(vectors: Vectors, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("features")
    write_features(str(folder), vectors)
    return str(folder)


@pytest.fixture(scope="module")
def indexes(
    ray_cluster: None, features: str, tmp_path_factory: pytest.TempPathFactory
) -> dict[int, Path]:
    """The same images in 1, 4 and 7 shards."""
    found = {n: tmp_path_factory.mktemp("index") / f"{n} shards" for n in SHARDS}
    for shards, output in found.items():
        result = build_index(config_of(features, output, shards=shards))
        assert (result.images, result.shards, result.output) == (IMAGES, shards, str(output))
    return found


@pytest.mark.parametrize("shards", SHARDS)
def test_the_manifest_lists_every_file_with_its_digest(
    indexes: dict[int, Path], features: str, shards: int
) -> None:
    manifest, files = manifest_of(indexes[shards]), files_of(indexes[shards])
    assert {entry.name for entry in manifest.files} == files.keys() - {"manifest.json"}
    assert len(manifest.files) == len(files) - 1 == 2 * shards + 5
    for entry in manifest.files:
        assert entry.size == len(files[entry.name])
        assert entry.sha256 == hashlib.sha256(files[entry.name]).hexdigest()
    made_from = read_manifest(Folder(features), "features")
    assert manifest.made_from == {features: made_from.digest}
    assert manifest.counts == {"images": IMAGES, "shards": shards}
    assert list(manifest.about["features"]) == ["one.mid", "two.high"]
    assert manifest.about["features"]["one.mid"] == made_from.about["features"]["one.mid"]
    layers = {net: list(c["layers"]) for net, c in manifest.about["extractor"]["nets"].items()}
    assert layers == {"one": ["mid"], "two": ["high"]}
    assert files["extractors/two.safetensors"] == b"the weights of two"


@pytest.mark.parametrize("shards", SHARDS)
def test_shards_hold_all_images_in_order(indexes: dict[int, Path], shards: int) -> None:
    manifest = manifest_of(indexes[shards])
    ids, rows = [], []
    for entry in manifest.named("shard-", ".parquet"):
        table = pq.read_table(indexes[shards] / entry.name)
        ids += table["id"].to_pylist()
        rows.append(entry.rows)
        assert len(table) == entry.rows
    assert ids == names(IMAGES)
    assert [e.rows for e in manifest.named("shard-", ".faiss")] == rows
    assert max(rows) - min(rows) <= 2 * engine.BLOCK


def _search(output: Path, vectors: Vectors, top: int = 50) -> list[Hits]:
    return open_shards(Folder(str(output)), manifest_of(output)).search(vectors, top)


def _same(one: list[Hits], other: list[Hits]) -> None:
    for a, b in zip(one, other, strict=True):
        assert (a.ids, a.touched) == (b.ids, b.touched)
        np.testing.assert_array_equal(a.positions, b.positions)
        np.testing.assert_array_equal(a.scores, b.scores)


def test_rankings_do_not_depend_on_the_shards(indexes: dict[int, Path]) -> None:
    """Ids and scores bit for bit, in this process and in a Ray task per shard."""
    queries = clustered(9, 25, 14, DIMS)
    whole = _search(indexes[1], queries)
    assert all(len(hits.ids) == 50 for hits in whole)
    for output in indexes.values():
        _same(_search(output, queries), whole)
        _same(search_shards(Folder(str(output)), manifest_of(output), queries, 50), whole)


def test_the_number_of_shards_changes_no_codebook_and_no_report(indexes: dict[int, Path]) -> None:
    files = {n: files_of(output) for n, output in indexes.items()}
    for name in ("codebooks.safetensors", "frequency.safetensors"):
        assert files[1][name] == files[4][name] == files[7][name]
    reports = [json.loads(found["report.json"]) for found in files.values()]
    for key in ("queries", "recall", "postings_touched"):
        assert reports[0][key] == reports[1][key] == reports[2][key]


def _recall(vectors: Vectors, answers: list[Hits], held_out: NDArray[np.int64], k: int) -> float:
    """The share of the k exact neighbours found among the first k, by a loop over queries."""
    joined = np.concatenate([vectors[name][:, 0] for name in ("one.mid", "two.high")], axis=1)
    joined = joined.astype(np.float64)
    total = 0.0
    for row, hits in zip(held_out, answers, strict=True):
        cosines = joined @ joined[row]
        order = [n for n in np.argsort(-cosines, kind="stable").tolist() if n != row]
        found = [n for n in hits.positions.tolist() if n != row]
        total += len(set(order[:k]) & set(found[:k])) / len(order[:k])
    return total / len(held_out)


@pytest.mark.parametrize("shards", SHARDS)
def test_the_report_measures_recall_against_exact_search(
    indexes: dict[int, Path], vectors: Vectors, features: str, shards: int
) -> None:
    report = json.loads((indexes[shards] / "report.json").read_bytes())
    held_out, sample = split_of(config_of(features, "nowhere"))
    assert len(held_out) == report["queries"] == 20
    assert len(set(held_out.tolist()) | set(sample.tolist())) == 220
    answers = _search(indexes[shards], {n: v[held_out] for n, v in vectors.items()}, 101)
    assert set(report["recall"]) == {"recall@1", "recall@10", "recall@100"}
    for name, value in report["recall"].items():
        assert value == pytest.approx(_recall(vectors, answers, held_out, int(name[7:])), abs=1e-4)
    assert report["recall"]["recall@10"] > 0.5
    touched = np.mean([hits.touched for hits in answers]) / (IMAGES * 14)
    assert report["postings_touched"] == pytest.approx(touched)
    sizes = [len(d) for n, d in files_of(indexes[shards]).items() if n.startswith("shard-")]
    assert report["bytes_per_image"] == pytest.approx(sum(sizes) / IMAGES)
    assert report["milliseconds_per_query"] > 0
    assert set(report["seconds"]) == {"fit", "shards"}


def test_the_document_frequency_counts_images(indexes: dict[int, Path], vectors: Vectors) -> None:
    index = open_shards(Folder(str(indexes[4])), manifest_of(indexes[4]))
    lists = index.codebooks.lists_of(index.codebooks.encode(vectors))
    counted = [sum(n in set(row) for row in lists.tolist()) for n in range(35)]
    assert index.frequency.tolist() == counted


def test_the_same_seed_gives_the_same_files(
    indexes: dict[int, Path], features: str, tmp_path: Path
) -> None:
    build_index(config_of(features, tmp_path / "again", shards=4))
    build_index(config_of(features, tmp_path / "other", shards=4, seed=1))
    one, again, other = (files_of(p) for p in (indexes[4], tmp_path / "again", tmp_path / "other"))
    fixed = one.keys() - {"report.json", "manifest.json"}
    assert {n: one[n] for n in fixed} == {n: again[n] for n in fixed}
    assert one["codebooks.safetensors"] != other["codebooks.safetensors"]


def test_a_finished_index_is_not_built_again(
    indexes: dict[int, Path], features: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = times_of(indexes[4])
    first = build_index(config_of(features, indexes[4], shards=4))
    assert build_index(config_of(features, indexes[4], shards=4, cpus_per_task=2)) == first
    assert "already built, nothing to do" in capsys.readouterr().err
    assert times_of(indexes[4]) == before


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"codewords": [8]}, "codewords: [7, 5] there, [8] now"),
        ({"shards": 5}, "shards: 4 there, 5 now"),
        ({"seed": 3, "code": "SQ4"}, "code: 'SQ8' there, 'SQ4' now, seed: 0 there, 3 now"),
        ({"feature": ["two"]}, "feature: ['one.mid', 'two'] there, ['two'] now"),
    ],
)
def test_other_settings_are_refused(
    indexes: dict[int, Path], features: str, changes: dict[str, Any], named: str
) -> None:
    changes = {"shards": 4} | changes
    if changes.get("feature"):
        named = "codewords: [7, 5] there, [8] now, " + named
        changes["codewords"] = [8]
    before = times_of(indexes[4])
    with pytest.raises(UserError, match="choose another --output, or say --overwrite") as error:
        build_index(config_of(features, indexes[4], **changes))
    assert f"({named})" in str(error.value)
    assert times_of(indexes[4]) == before


@pytest.fixture
def interrupted(ray_cluster: None, features: str, tmp_path: Path) -> Path:
    """A build that ended after its shards, with some of its notes and files lost."""
    output = tmp_path / "index"
    with stopped_at(engine, "measure"):
        build_index(config_of(features, output, shards=4))
    for shard in (1, 3):
        (output / f"_work/shard-{shard:05d}.json").unlink()
    (output / "shard-00001.faiss").unlink()
    (output / "shard-00003.parquet").write_bytes(b"half")
    return output


def test_an_interrupted_build_goes_on(
    interrupted: Path, indexes: dict[int, Path], features: str
) -> None:
    with pytest.raises(UserError, match="its job has not finished; run it again"):
        read_manifest(Folder(str(interrupted)), "index")
    kept = ["codebooks.safetensors", "shard-00000.faiss", "shard-00002.parquet"]
    before = [(interrupted / name).stat().st_mtime_ns for name in kept]
    build_index(config_of(features, interrupted, shards=4))
    assert [(interrupted / name).stat().st_mtime_ns for name in kept] == before
    whole, found = files_of(indexes[4]), files_of(interrupted)
    assert found.keys() == whole.keys()
    for name in found.keys() - {"report.json", "manifest.json"}:
        assert found[name] == whole[name], name
    for entry in manifest_of(interrupted).files:
        assert entry.sha256 == hashlib.sha256(found[entry.name]).hexdigest()
    queries = clustered(9, 5, 14, DIMS)
    _same(_search(interrupted, queries), _search(indexes[4], queries))


def test_an_interrupted_build_of_other_settings_is_refused(
    interrupted: Path, features: str
) -> None:
    with pytest.raises(UserError, match="shards: 4 there, 2 now"):
        build_index(config_of(features, interrupted, shards=2))


@pytest.mark.parametrize("name", ["shard-00000.faiss", "_work/codebooks.safetensors"])
def test_a_file_lost_after_its_receipt_is_never_published(
    interrupted: Path, features: str, name: str
) -> None:
    (interrupted / name).write_bytes(b"half")
    with pytest.raises(UserError, match=name):
        build_index(config_of(features, interrupted, shards=4))
    assert not (interrupted / "manifest.json").exists()
    build_index(config_of(features, interrupted, shards=4, overwrite=True))
    assert manifest_of(interrupted).counts["images"] == IMAGES


def test_lost_codebooks_are_made_from_those_in_the_work(
    interrupted: Path, features: str, indexes: dict[int, Path]
) -> None:
    (interrupted / "codebooks.safetensors").write_bytes(b"half")
    build_index(config_of(features, interrupted, shards=4))
    queries = clustered(9, 5, 14, DIMS)
    _same(_search(interrupted, queries), _search(indexes[4], queries))


@pytest.mark.parametrize(
    ("rows", "regions", "features", "words"),
    [
        (1, 1, 1, 1),
        (330, 14, 2, 32),
        (100_000, 14, 1, 2048),
        (10_000_000, 14, 1, 4096),
        (100_000, 14, 2, 512),
        (2_400_000, 14, 2, 1024),
        (50_000_000, 14, 2, 1024),
        (100_000, 14, 3, 64),
        (2_400_000, 14, 3, 64),
        (2_400_000, 1, 2, 1024),
    ],
)
def test_default_codewords_grow_until_lists_would_fill_the_memory(
    rows: int, regions: int, features: int, words: int
) -> None:
    assert engine._default_codewords(rows, regions, features) == words
    assert words**features <= engine.DEFAULT_LISTS


def test_what_many_lists_take_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    engine._warn_of_many(engine.DEFAULT_LISTS)
    assert capsys.readouterr().err == ""
    engine._warn_of_many(4096**2)
    [line] = capsys.readouterr().err.splitlines()
    assert "--codewords make 16,777,216 lists: 2.7 GB in every build task, 0.4 GB in ev" in line


def test_the_job_prints_one_json_object(
    indexes: dict[int, Path], features: str, capfd: pytest.CaptureFixture[str]
) -> None:
    flags = ["--features", features, "--output", str(indexes[4]), "--feature", *FEATURES]
    flags += ["--codewords", "7", "5", "--probes", "20", "6", "2", "--queries", "20"]
    flags += ["--sample", "2800", "--shards", "4", "--json"]
    assert run_job(IndexConfig, build_index, flags) == 0
    out = capfd.readouterr().out
    result = IndexResult.model_validate_json(out)
    assert (result.images, result.shards) == (IMAGES, 4)
    assert "recall@10" in str(result)
    assert result.recall == json.loads((indexes[4] / "report.json").read_bytes())["recall"]


@pytest.mark.parametrize("images", [2, 33, 60])
def test_more_shards_than_blocks_are_cut_to_the_blocks(
    ray_cluster: None, tmp_path: Path, images: int
) -> None:
    source, output = str(tmp_path / "features"), tmp_path / "index"
    vectors = clustered(4, images, 14, DIMS)
    write_features(source, vectors)
    result = build_index(config_of(source, output, shards=50, codewords=[], probes=[]))
    assert result.shards == math.ceil(images / engine.BLOCK)
    rows = [entry.rows for entry in manifest_of(output).named("shard-", ".faiss")]
    assert sum(rows) == images
    assert all(row == engine.BLOCK for row in rows[:-1])
    for position, hits in enumerate(_search(output, vectors, 3)):
        assert hits.ids[0] == names(images)[position] or images == 2
    held_out, _ = split_of(config_of(source, output))
    answers = _search(output, {n: v[held_out] for n, v in vectors.items()}, 101)
    for name, value in result.recall.items():
        assert value == pytest.approx(_recall(vectors, answers, held_out, int(name[7:])), abs=1e-4)


@pytest.mark.parametrize("feature", [["two"], FEATURES])
def test_a_global_index_is_an_ordinary_one(
    ray_cluster: None, tmp_path: Path, feature: list[str]
) -> None:
    source = str(tmp_path / "features")
    vectors = clustered(5, 150, 1, DIMS)
    write_features(source, vectors)
    outputs = {n: tmp_path / str(n) for n in (1, 5)}
    settings = {"feature": feature, "codewords": [8], "probes": [6], "dim": 24}
    for shards, output in outputs.items():
        result = build_index(config_of(source, output, shards=shards, **settings))
        assert result.shards == shards
    queries = {n: v[:30] for n, v in vectors.items()}
    one, other = (_search(output, queries, 101) for output in outputs.values())
    _same(one, other)
    assert [hits.ids[0] for hits in one] == names(30)
    _same(search_shards(Folder(str(output)), manifest_of(output), queries, 101), one)
    reports = [json.loads((output / "report.json").read_bytes()) for output in outputs.values()]
    assert reports[0]["recall"] == reports[1]["recall"]
    held_out, _ = split_of(config_of(source, "nowhere"))
    touched = [h.touched for h in _search(output, {n: v[held_out] for n, v in vectors.items()})]
    for report in reports:
        assert report["postings_touched"] == pytest.approx(np.mean(touched) / 150)
    tables = pq.read_table(outputs[1] / "shard-00000.parquet")
    assert tables.schema.field("signature").type.list_size == 0


def test_defaults_make_a_good_index(ray_cluster: None, features: str, tmp_path: Path) -> None:
    config = IndexConfig(features=features, output=str(tmp_path / "index"), feature=FEATURES)
    result = build_index(config)
    assert result.shards == 1
    assert result.recall["recall@10"] > 0.6


def test_blocks_do_not_depend_on_parts_and_row_groups(features: str, vectors: Vectors) -> None:
    manifest = read_manifest(Folder(features), "features")
    source = engine.Source(Folder(features), manifest, FEATURES, [])
    for first, last in ((0, IMAGES), (48, 240), (90, 130), (320, 330), (7, 7)):
        ids, blocks = [], []
        for block, found in source.read(first, last):
            ids += block
            blocks.append(found["two.high"])
        assert ids == names(IMAGES)[first:last]
        assert all(len(block) == engine.BLOCK for block in blocks[:-1])
        if blocks:
            np.testing.assert_array_equal(np.concatenate(blocks), vectors["two.high"][first:last])
    rows = np.array([0, 39, 40, 99, 100, 101, 329])
    ids, found = source.pick(rows)
    assert ids == [names(IMAGES)[row] for row in rows]
    np.testing.assert_array_equal(found["one.mid"], vectors["one.mid"][rows])


def test_a_sample_is_drawn_from_some_parts_without_repeats(
    features: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rows_module, "SAMPLE_PARTS", 2)
    manifest = read_manifest(Folder(features), "features")
    source = engine.Source(Folder(features), manifest, FEATURES, [])
    for seed in range(5):
        drawn = source.sample(10_000, np.random.default_rng(seed))
        ends = [(part.first, part.first + part.file.rows) for part in source.parts]
        used = [(first, end) for first, end in ends if ((drawn >= first) & (drawn < end)).any()]
        assert len(used) == min(2, len(ends))
        assert sorted(drawn) == [row for first, end in used for row in range(first, end)]
        few = source.sample(7, np.random.default_rng(seed))
        assert len(set(few.tolist())) == 7
        assert set(few.tolist()) <= set(drawn.tolist())
