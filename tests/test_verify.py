"""Published artifacts, checked file by file: whole, damaged, and with strangers beside them."""

import io
import json
import tracemalloc
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import S3
from synthetic import clustered, write_features

from imgray.artifacts.folder import Folder
from imgray.artifacts.manifest import Kind, Manifest, entry_of, publish, sha256
from imgray.cli import run_job
from imgray.engine.settings import VerifyConfig
from imgray.engine.verify import Checked, VerifyResult, verify

PART = "part-00000.parquet"


def _check(uri: str) -> Checked:
    [found] = verify(VerifyConfig(artifacts=[uri])).artifacts
    return found


def _features(uri: str) -> Folder:
    write_features(uri, clustered(0, 20, 1, {"a.high": 8}))
    return Folder(uri)


def _predictions(uri: str, pictures: int = 3) -> Folder:
    """An artifact of two tables; the last row of each names no picture."""
    folder, files = Folder(uri), []
    for part in range(2):
        names = [f"pictures/{part}/{number}.png" for number in range(pictures)]
        for name in names:
            folder.write(name, name.encode())
        table = {
            "picture": [*names, None],
            "sha256": [*(sha256(name.encode()) for name in names), None],
        }
        buffer = io.BytesIO()
        pq.write_table(pa.table(table), buffer)
        folder.write(f"part-{part:05d}.parquet", buffer.getvalue())
        files.append(entry_of(f"part-{part:05d}.parquet", buffer.getvalue(), pictures + 1))
    publish(folder, Manifest(kind="predictions", config={}, files=files))
    return folder


def _flip(folder: Folder, name: str) -> None:
    data = bytearray(folder.read(name))
    data[len(data) // 2] ^= 1
    folder.write(name, bytes(data))


@pytest.mark.parametrize("kind", ["model", "features", "index"])
def test_an_artifact_of_any_kind_is_as_published(tmp_path: Path, kind: Kind) -> None:
    folder = Folder(str(tmp_path))
    folder.write("deep/a.bin", b"12345")
    manifest = Manifest(kind=kind, config={}, files=[entry_of("deep/a.bin", b"12345")])
    size = len(publish(folder, manifest).to_bytes())
    found = _check(folder.uri)
    assert found == Checked(uri=folder.uri, kind=kind, files=2, bytes=size + 5)
    assert str(found) == (
        f"{tmp_path}: {kind} artifact, 2 files, {size + 5:,} bytes: all as published"
    )


def test_every_bad_file_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = _features(str(tmp_path))
    _flip(folder, PART)
    folder.remove("extractors/a.safetensors")
    assert run_job(VerifyConfig, verify, [folder.uri]) == 2
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert lines[0].endswith(": 2 not as published")
    assert len(err.splitlines()) <= 1
    assert sorted(lines[1:]) == [
        f"error: {tmp_path}/extractors/a.safetensors: missing",
        f"error: {tmp_path}/{PART}: its content has changed",
    ]


def test_a_truncated_file_is_told_by_its_size(tmp_path: Path) -> None:
    folder = _features(str(tmp_path))
    data = folder.read(PART)
    folder.write(PART, data[:-1])
    [fault] = _check(folder.uri).faults
    assert fault.endswith(f"{len(data) - 1:,} bytes, published with {len(data):,}")


def test_a_damaged_manifest_and_no_artifact_are_bad(tmp_path: Path) -> None:
    folder = _features(str(tmp_path / "damaged"))
    _flip(folder, "manifest.json")
    (tmp_path / "empty").mkdir()
    for name, reason in (("damaged", "damaged"), ("empty", "no artifact here")):
        found = _check(str(tmp_path / name))
        assert reason in found.faults[0]
        assert str(found) == f"error: {found.faults[0]}"


def test_files_that_nothing_lists_are_no_error(tmp_path: Path) -> None:
    folder = _features(str(tmp_path))
    for number in range(5):
        folder.write(f"notes/{number}.txt", b"hello")
    result = verify(VerifyConfig(artifacts=[folder.uri]))
    assert result.exit_code == 0
    assert result.artifacts[0].beside == [f"notes/{number}.txt" for number in range(5)]
    assert str(result).endswith(
        "all as published; not listed: 5 more (notes/0.txt, notes/1.txt, notes/2.txt, ...)"
    )


def test_all_artifacts_are_checked_whatever_the_first_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = _features(str(tmp_path / "good"))
    flags = [str(tmp_path / "none"), good.uri, "--json"]
    assert run_job(VerifyConfig, verify, flags) == 2
    found = VerifyResult.model_validate(json.loads(capsys.readouterr().out)).artifacts
    assert [one.kind for one in found] == ["", "features"]
    assert [len(one.faults) for one in found] == [1, 0]


def test_pictures_are_checked_by_the_table_that_names_them(tmp_path: Path) -> None:
    folder = _predictions(str(tmp_path))
    found = _check(folder.uri)
    assert (found.files, found.faults, found.beside) == (1 + 2 + 6, [], [])
    _flip(folder, "pictures/0/1.png")
    folder.remove("pictures/1/2.png")
    assert _check(folder.uri).faults == [
        f"{tmp_path}/pictures/0/1.png: its content has changed",
        f"{tmp_path}/pictures/1/2.png: missing",
    ]


def test_a_damaged_table_vouches_for_no_picture(tmp_path: Path) -> None:
    folder = _predictions(str(tmp_path))
    _flip(folder, PART)
    found = _check(folder.uri)
    assert found.faults == [f"{tmp_path}/{PART}: its content has changed"]
    assert found.beside == [f"pictures/0/{number}.png" for number in range(3)]


@pytest.mark.parametrize("place", ["disk", "s3"])
def test_large_files_are_read_in_pieces(
    place: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    large = np.random.default_rng(0).bytes(48 * 2**20)
    uri = str(tmp_path) if place == "disk" else request.getfixturevalue("s3").uri("verify/large")
    folder = Folder(uri)
    folder.write("large.bin", large)
    publish(folder, Manifest(kind="model", config={}, files=[entry_of("large.bin", large)]))
    del large
    tracemalloc.start()
    try:
        assert _check(uri).faults == []
        assert tracemalloc.get_traced_memory()[1] < 30 * 2**20
    finally:
        tracemalloc.stop()


def test_an_artifact_in_s3(s3: S3) -> None:
    folder = _predictions(s3.uri("verify/predictions"))
    assert _check(folder.uri).faults == []
    _flip(folder, "pictures/0/1.png")
    assert _check(folder.uri).faults == [f"{folder.uri}/pictures/0/1.png: its content has changed"]


def test_content_that_is_not_ours_is_a_fault_and_the_others_are_checked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its digests hold: whoever published it was not imgray."""
    for name, data in (("strange", b"no Parquet"), ("sound", None)):
        folder = Folder(str(tmp_path / name))
        files = [] if data is None else [entry_of("part-0.parquet", data)]
        if data:
            folder.write("part-0.parquet", data)
        publish(folder, Manifest(kind="predictions", config={}, files=files))
    found = verify(VerifyConfig(artifacts=[str(tmp_path / "strange"), str(tmp_path / "sound")]))
    strange, sound = found.artifacts
    assert "not what imgray writes" in strange.faults[0]
    assert (sound.faults, found.exit_code) == ([], 2)
