import io
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from conftest import S3, TinyNet, upload
from running import free_port

from imgray.artifacts.folder import Folder
from imgray.artifacts.manifest import read_file, read_manifest
from imgray.cli import run_job
from imgray.engine.evaluate_index import evaluate
from imgray.engine.extract import extract
from imgray.engine.index import build_index
from imgray.engine.search import search
from imgray.engine.settings import EvaluateConfig, ExtractConfig, IndexConfig, SearchConfig
from imgray.features.columns import columns_of, from_table
from imgray.features.extractor import load_extractor

LIMIT_S = 90
"""A bound on how long a user waits for the line that says what is wrong."""


def _flags(images: str, output: str, net: TinyNet, *more: str) -> list[str]:
    shards = ["--shard-size", "8", "--workers", "2"]
    return ["--images", images, "--output", output, *net.flags, *shards, *more]


@pytest.mark.slow
def test_an_extraction_from_s3_to_s3(
    ray_cluster: None, s3: S3, photos: Path, tiny_net: TinyNet, capsys: Any
) -> None:
    images = Folder(s3.uri("images/photos [a]/2026"))
    names = upload(photos, images, 20)
    images.write("broken.jpg", b"no image")
    output = Folder(s3.uri("results/features [1]"))
    flags = _flags(images.uri, output.uri, tiny_net, "--max-rejected", "0.1")
    assert run_job(ExtractConfig, extract, flags) == 0
    manifest = read_manifest(output, "features")
    assert manifest.counts == {"listed": 21, "done": 20, "rejected": 1}
    assert set(output.sizes()) == {f.name for f in manifest.files} | {"manifest.json"}
    assert images.uri in manifest.made_from
    extractor, columns, ids = load_extractor(output, manifest), columns_of(manifest), []
    for entry in manifest.named("part-"):
        table = pq.read_table(io.BytesIO(read_file(output, entry)))
        own = table["id"].to_pylist()
        ids += own
        vectors = extractor.run([extractor.prepare((photos / id).read_bytes()) for id in own])
        for name, info in columns.items():
            np.testing.assert_allclose(from_table(table, name, info), vectors[name], atol=6e-4)
    assert ids == sorted(names)

    capsys.readouterr()
    assert run_job(ExtractConfig, extract, flags) == 0
    assert "already extracted" in capsys.readouterr().err
    assert run_job(ExtractConfig, extract, [*flags, "--precision", "bfloat16"]) == 2
    assert "(precision: 'float32' there, 'bfloat16' now)" in capsys.readouterr().err


def _refusal(flags: list[str], capsys: Any) -> str:
    start = time.monotonic()
    assert run_job(ExtractConfig, extract, flags) == 2
    assert time.monotonic() - start < LIMIT_S
    out, err = capsys.readouterr()
    lines = err.splitlines()
    assert out == ""
    assert len(lines) == 1, err
    assert lines[0].startswith("error: ")
    return lines[0]


@pytest.mark.slow
def test_index_search_and_evaluation_on_s3(
    ray_cluster: None,
    s3: S3,
    photos: Path,
    tiny_net: TinyNet,
    capsys: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("IMGRAY_CACHE", str(tmp_path / "cache"))
    images = Folder(s3.uri("collection/images"))
    names = upload(photos, images, 34)
    images.write("truth.csv", "\n".join(["id,group", *(f"{n},{n[:3]}" for n in names)]).encode())
    features, index = s3.uri("artifacts/features"), s3.uri("artifacts/index")
    assert run_job(ExtractConfig, extract, _flags(images.uri, features, tiny_net)) == 0
    flags = ["--features", features, "--output", index, "--feature", tiny_net.name]
    assert run_job(IndexConfig, build_index, [*flags, "--codewords", "4", "--shards", "3"]) == 0
    assert read_manifest(Folder(index), "index").counts == {"images": 34, "shards": 3}

    capsys.readouterr()
    query = f"{images.uri}/{names[7]}"
    flags = ["--index", index, "--query", query, "--top", "3", "--json"]
    assert run_job(SearchConfig, search, flags) == 0
    answer = json.loads(capsys.readouterr().out)["answers"][0]
    assert answer["query"] == query
    assert answer["results"][0]["id"] == names[7]
    cached = {path.stem for path in (tmp_path / "cache").rglob("*.faiss")}
    assert cached == {f.sha256 for f in read_manifest(Folder(index), "index").named("", ".faiss")}

    flags = ["--index", index, "--queries", images.uri, "--json"]
    assert run_job(EvaluateConfig, evaluate, [*flags, "--truth", f"{images.uri}/truth.csv"]) == 0
    assert json.loads(capsys.readouterr().out)["queries"] == 34


@pytest.mark.parametrize("variable", ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"])
def test_a_wrong_key_is_named(
    s3: S3, aws: Callable[..., None], tiny_net: TinyNet, capsys: Any, variable: str
) -> None:
    output = s3.uri("results/wrong-key")
    aws(**{variable: "not-the-right-one"})
    line = _refusal(_flags("s3://images/x", output, tiny_net), capsys)
    assert output in line
    assert "access denied" in line
    assert "check AWS_ACCESS_KEY_ID" in line


def test_missing_keys_are_named(
    s3: S3, aws: Callable[..., None], tiny_net: TinyNet, capsys: Any, monkeypatch: Any
) -> None:
    output = s3.uri("results/no-key")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    nowhere = {"AWS_SHARED_CREDENTIALS_FILE": os.devnull, "AWS_CONFIG_FILE": os.devnull}
    aws(AWS_EC2_METADATA_DISABLED="true", **nowhere)
    line = _refusal(_flags("s3://images/x", output, tiny_net), capsys)
    assert "access denied" in line
    assert "check AWS_ACCESS_KEY_ID" in line


def test_a_missing_bucket_is_named(
    s3: S3, ray_cluster: None, tiny_net: TinyNet, capsys: Any, tmp_path: Path
) -> None:
    (tmp_path / "a.jpg").write_bytes(b"")
    for images, output in (
        ("s3://no-such-bucket/x", str(tmp_path / "out")),
        (str(tmp_path), "s3://no-such-bucket/out"),
    ):
        line = _refusal(_flags(images, output, tiny_net), capsys)
        assert "s3://no-such-bucket" in line
        assert "it does not exist" in line
        assert "check the bucket" in line


def test_a_missing_prefix_has_no_images(
    s3: S3, ray_cluster: None, tiny_net: TinyNet, capsys: Any, tmp_path: Path
) -> None:
    Folder(s3.uri("images/other")).write("a.jpg", b"x")
    flags = _flags("s3://images/nothing-here", str(tmp_path / "out"), tiny_net)
    assert "s3://images/nothing-here" in _refusal(flags, capsys)


def test_an_unreachable_endpoint_is_named(
    aws: Callable[..., None], tiny_net: TinyNet, capsys: Any
) -> None:
    aws(AWS_ENDPOINT_URL=f"http://127.0.0.1:{free_port()}")
    line = _refusal(_flags("s3://images/x", "s3://results/out", tiny_net), capsys)
    assert "s3://results/out" in line
    assert "check AWS_ENDPOINT_URL, AWS_DEFAULT_REGION and the network" in line
