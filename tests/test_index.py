"""Index builds on Ray, from features that no network has to make."""

import hashlib
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray
from stopped import stopped_at
from synthetic import clustered, names, write_features

import imgray.engine.index as engine
import imgray.engine.rows as rows_module
from imgray.artifacts.folder import Folder
from imgray.artifacts.manifest import Manifest, read_manifest
from imgray.cli import run_job
from imgray.engine.fan_out import search_shards
from imgray.engine.index import IndexResult, build_index
from imgray.engine.settings import IndexConfig
from imgray.engine.shards import open_shards
from imgray.errors import UserError
from imgray.features.columns import Vectors
from imgray.retrieval.deepindex import Hits

DIMS = {"one.mid": 32, "two.high": 48, "two.mid": 16}
IMAGES = 330
FEATURES = ["one.mid", "two"]
SHARDS = (1, 4, 7)


@pytest.fixture(scope="module")
def vectors() -> Vectors:
    return clustered(0, IMAGES, 14, DIMS)


@pytest.fixture(scope="module")
def features(vectors: Vectors, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("features")
    write_features(str(folder), vectors)
    return str(folder)


def _config(features: str, output: Path | str, **changes: Any) -> IndexConfig:
    values: dict[str, Any] = {
        "features": features, "output": str(output), "feature": FEATURES, "codewords": [7, 5],
        "probes": [20, 6, 2], "queries": 20, "sample": 2800,
    }  # fmt: skip
    return IndexConfig(**values | changes)


def _split(config: IndexConfig) -> tuple[np.ndarray, np.ndarray]:
    """Rows that a build holds out, and rows that it trains on."""
    folder = Folder(config.features)
    source = engine.Source(folder, read_manifest(folder, "features"), config.feature, [])
    return engine._split(source, config)


@pytest.fixture(scope="module")
def indexes(
    ray_cluster: None, features: str, tmp_path_factory: pytest.TempPathFactory
) -> dict[int, Path]:
    """The same images in 1, 4 and 7 shards."""
    found = {n: tmp_path_factory.mktemp("index") / f"{n} shards" for n in SHARDS}
    for shards, output in found.items():
        result = build_index(_config(features, output, shards=shards))
        assert (result.images, result.shards, result.output) == (IMAGES, shards, str(output))
    return found


def _manifest(output: Path) -> Manifest:
    return read_manifest(Folder(str(output)), "index")


def _files(folder: Path) -> dict[str, bytes]:
    return {
        p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()
    }


def _times(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


@pytest.mark.parametrize("shards", SHARDS)
def test_the_manifest_lists_every_file_with_its_digest(
    indexes: dict[int, Path], features: str, shards: int
) -> None:
    manifest, files = _manifest(indexes[shards]), _files(indexes[shards])
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
    manifest = _manifest(indexes[shards])
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
    return open_shards(Folder(str(output)), _manifest(output)).search(vectors, top)


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
        _same(search_shards(Folder(str(output)), _manifest(output), queries, 50), whole)


def test_the_number_of_shards_changes_no_codebook_and_no_report(indexes: dict[int, Path]) -> None:
    files = {n: _files(output) for n, output in indexes.items()}
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
    held_out, sample = _split(_config(features, "nowhere"))
    assert len(held_out) == report["queries"] == 20
    assert len(set(held_out.tolist()) | set(sample.tolist())) == 220
    answers = _search(indexes[shards], {n: v[held_out] for n, v in vectors.items()}, 101)
    assert set(report["recall"]) == {"recall@1", "recall@10", "recall@100"}
    for name, value in report["recall"].items():
        assert value == pytest.approx(_recall(vectors, answers, held_out, int(name[7:])), abs=1e-4)
    assert report["recall"]["recall@10"] > 0.5
    touched = np.mean([hits.touched for hits in answers]) / (IMAGES * 14)
    assert report["postings_touched"] == pytest.approx(touched)
    sizes = [len(d) for n, d in _files(indexes[shards]).items() if n.startswith("shard-")]
    assert report["bytes_per_image"] == pytest.approx(sum(sizes) / IMAGES)
    assert report["milliseconds_per_query"] > 0
    assert set(report["seconds"]) == {"fit", "shards"}


def test_the_document_frequency_counts_images(indexes: dict[int, Path], vectors: Vectors) -> None:
    index = open_shards(Folder(str(indexes[4])), _manifest(indexes[4]))
    lists = index.codebooks.lists_of(index.codebooks.encode(vectors))
    counted = [sum(n in set(row) for row in lists.tolist()) for n in range(35)]
    assert index.frequency.tolist() == counted


def test_the_same_seed_gives_the_same_files(
    indexes: dict[int, Path], features: str, tmp_path: Path
) -> None:
    build_index(_config(features, tmp_path / "again", shards=4))
    build_index(_config(features, tmp_path / "other", shards=4, seed=1))
    one, again, other = (_files(p) for p in (indexes[4], tmp_path / "again", tmp_path / "other"))
    fixed = one.keys() - {"report.json", "manifest.json"}
    assert {n: one[n] for n in fixed} == {n: again[n] for n in fixed}
    assert one["codebooks.safetensors"] != other["codebooks.safetensors"]


def test_a_finished_index_is_not_built_again(
    indexes: dict[int, Path], features: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = _times(indexes[4])
    first = build_index(_config(features, indexes[4], shards=4))
    assert build_index(_config(features, indexes[4], shards=4, cpus_per_task=2)) == first
    assert "already built, nothing to do" in capsys.readouterr().err
    assert _times(indexes[4]) == before


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
    before = _times(indexes[4])
    with pytest.raises(UserError, match="choose another --output, or say --overwrite") as error:
        build_index(_config(features, indexes[4], **changes))
    assert f"({named})" in str(error.value)
    assert _times(indexes[4]) == before


def test_other_features_at_the_same_place_are_refused(ray_cluster: None, tmp_path: Path) -> None:
    source, output = str(tmp_path / "features"), tmp_path / "index"
    write_features(source, clustered(1, 40, 1, DIMS))
    settings = {"codewords": [3], "probes": [2]}
    build_index(_config(source, output, **settings))
    write_features(source, clustered(2, 40, 1, DIMS))
    with pytest.raises(UserError, match="features_digest"):
        build_index(_config(source, output, **settings))
    result = build_index(_config(source, output, overwrite=True, **settings))
    digest = read_manifest(Folder(source), "features").digest
    assert _manifest(output).made_from == {source: digest}
    assert result.images == 40


@pytest.fixture
def interrupted(ray_cluster: None, features: str, tmp_path: Path) -> Path:
    """A build that ended after its shards, with some of its notes and files lost."""
    output = tmp_path / "index"
    with stopped_at(engine, "measure"):
        build_index(_config(features, output, shards=4))
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
    build_index(_config(features, interrupted, shards=4))
    assert [(interrupted / name).stat().st_mtime_ns for name in kept] == before
    whole, found = _files(indexes[4]), _files(interrupted)
    assert found.keys() == whole.keys()
    for name in found.keys() - {"report.json", "manifest.json"}:
        assert found[name] == whole[name], name
    for entry in _manifest(interrupted).files:
        assert entry.sha256 == hashlib.sha256(found[entry.name]).hexdigest()
    queries = clustered(9, 5, 14, DIMS)
    _same(_search(interrupted, queries), _search(indexes[4], queries))


def test_an_interrupted_build_of_other_settings_is_refused(
    interrupted: Path, features: str
) -> None:
    with pytest.raises(UserError, match="shards: 4 there, 2 now"):
        build_index(_config(features, interrupted, shards=2))


@pytest.mark.parametrize("name", ["shard-00000.faiss", "_work/codebooks.safetensors"])
def test_a_file_lost_after_its_receipt_is_never_published(
    interrupted: Path, features: str, name: str
) -> None:
    (interrupted / name).write_bytes(b"half")
    with pytest.raises(UserError, match=name):
        build_index(_config(features, interrupted, shards=4))
    assert not (interrupted / "manifest.json").exists()
    build_index(_config(features, interrupted, shards=4, overwrite=True))
    assert _manifest(interrupted).counts["images"] == IMAGES


def test_lost_codebooks_are_made_from_those_in_the_work(
    interrupted: Path, features: str, indexes: dict[int, Path]
) -> None:
    (interrupted / "codebooks.safetensors").write_bytes(b"half")
    build_index(_config(features, interrupted, shards=4))
    queries = clustered(9, 5, 14, DIMS)
    _same(_search(interrupted, queries), _search(indexes[4], queries))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"feature": ["three"]}, "--feature three: the shards have one.mid, two.high, two.mid"),
        ({"feature": ["two", "two.high"]}, "--feature two.high: named twice"),
        ({"signature_feature": ["x"]}, "--feature x: the shards have one.mid, two.high, two.mid"),
        ({"codewords": [1, 2, 3]}, "--codewords: give one number, or 2, one per feature"),
        ({"codewords": [0]}, "--codewords: 0 is not a positive number"),
        ({"probes": [4, 2]}, "--probes: give one number, or 3, one per level of the pyramid"),
        ({"probes": [4, -1, 1]}, "--probes: -1 is not a positive number"),
        ({"codewords": [3000, 2]}, "--codewords 3000: the sample has only 2800 regions; ask for"),
        ({"codewords": [5000, 5000]}, "--codewords make 25,000,000 lists; at most"),
    ],
)
def test_wrong_settings_are_refused(
    ray_cluster: None, features: str, tmp_path: Path, changes: dict[str, Any], reason: str,
    capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    flags = ["--features", features, "--output", str(tmp_path / "index"), "--sample", "2800"]
    for name, values in ({"feature": FEATURES} | changes).items():
        flags += ["--" + name.replace("_", "-"), *map(str, values)]
    assert run_job(IndexConfig, build_index, flags) == 2
    out, err = capfd.readouterr()
    [line] = err.splitlines()
    assert line.startswith("error: ")
    assert reason in line
    assert out == ""
    assert not _files(tmp_path / "index")  # the corrected command begins anew


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


def _other_kind(folder: Path) -> str:
    write_features(str(folder), clustered(0, 20, 1, DIMS), kind="model")
    return "a model artifact, but features is needed"


def _other_format(folder: Path) -> str:
    write_features(str(folder), clustered(0, 20, 1, DIMS), format=2)
    return "format 2, made by imgray"


def _no_manifest(folder: Path) -> str:
    (folder / "manifest.json").unlink()
    return "no features artifact here"


def _changed_manifest(folder: Path) -> str:
    path = folder / "manifest.json"
    path.write_bytes(path.read_bytes().replace(b'"done": 20', b'"done": 21'))
    return "manifest.json: damaged"


def _changed_part(folder: Path) -> str:
    path = folder / "part-00000.parquet"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)
    return "part-00000.parquet: its content differs from the manifest"


def _short_part(folder: Path) -> str:
    path = folder / "part-00000.parquet"
    path.write_bytes(path.read_bytes()[:-1])
    return "part-00000.parquet: its content differs from the manifest"


def _lost_part(folder: Path) -> str:
    (folder / "part-00000.parquet").unlink()
    return "part-00000.parquet"


def _changed_weights(folder: Path) -> str:
    (folder / "extractors/two.safetensors").write_bytes(b"the weights of twq")
    return "extractors/two.safetensors: its content differs from the manifest"


def _no_images(folder: Path) -> str:
    write_features(str(folder), {n: np.zeros((0, 1, d), np.float32) for n, d in DIMS.items()})
    return "no images"


@pytest.mark.parametrize(
    "harm",
    [
        _other_kind, _other_format, _no_manifest, _changed_manifest, _changed_part, _short_part,
        _lost_part, _changed_weights, _no_images,
    ],
)  # fmt: skip
def test_features_that_are_not_as_published_are_refused(
    ray_cluster: None,
    tmp_path: Path,
    harm: Callable[[Path], str],
    capfd: pytest.CaptureFixture[str],
) -> None:
    source, output = tmp_path / "features", tmp_path / "index"
    write_features(str(source), clustered(0, 20, 1, DIMS))
    reason = harm(source)
    flags = ["--features", str(source), "--output", str(output), "--feature", *FEATURES]
    assert run_job(IndexConfig, build_index, flags) == 2
    out, err = capfd.readouterr()
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert reason in errors[0]
    assert "Traceback" not in err
    assert out == ""
    assert not (output / "manifest.json").exists()
    assert harm is _changed_weights or not _files(output)


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
    result = build_index(_config(source, output, shards=50, codewords=[], probes=[]))
    assert result.shards == math.ceil(images / engine.BLOCK)
    rows = [entry.rows for entry in _manifest(output).named("shard-", ".faiss")]
    assert sum(rows) == images
    assert all(row == engine.BLOCK for row in rows[:-1])
    for position, hits in enumerate(_search(output, vectors, 3)):
        assert hits.ids[0] == names(images)[position] or images == 2
    held_out, _ = _split(_config(source, output))
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
        result = build_index(_config(source, output, shards=shards, **settings))
        assert result.shards == shards
    queries = {n: v[:30] for n, v in vectors.items()}
    one, other = (_search(output, queries, 101) for output in outputs.values())
    _same(one, other)
    assert [hits.ids[0] for hits in one] == names(30)
    _same(search_shards(Folder(str(output)), _manifest(output), queries, 101), one)
    reports = [json.loads((output / "report.json").read_bytes()) for output in outputs.values()]
    assert reports[0]["recall"] == reports[1]["recall"]
    held_out, _ = _split(_config(source, "nowhere"))
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
