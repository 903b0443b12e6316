"""Headers of many tars are read once, by Ray tasks: what they give, and what is not read again."""

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from conftest import S3, upload

from imgray.artifacts.folder import Folder
from imgray.artifacts.manifest import WORK
from imgray.artifacts.walk import Entry, Skipped
from imgray.data.collections import Collection, open_collection
from imgray.data.fields import Picture
from imgray.engine import headers
from imgray.engine.frozen import freeze
from imgray.engine.headers import HEADERS, entries_of
from imgray.engine.listing import LISTING
from imgray.errors import UserError

TARS, EACH = 11, 3


@pytest.fixture
def tars(tmp_path: Path) -> Path:
    folder = tmp_path / "tars"
    folder.mkdir()
    for number in range(TARS):
        _pack(folder, number)
    return folder


def _pack(folder: Path, number: int, *more: str) -> None:
    with tarfile.open(folder / f"x-{number:02}.tar", "w") as tar:
        for name in [*(f"{n}.jpg" for n in range(EACH)), "about", *more]:
            info, data = tarfile.TarInfo(name), f"{number} {name}".encode()
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def _open(uri: Path | str) -> Collection:
    return open_collection(str(uri), {"image": Picture()}, stored="tar")


def _freeze(uri: Path | str, output: Folder) -> None:
    with freeze(_open(uri), output) as frozen:
        frozen.ended()


def _listed(output: Folder) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = pq.read_table(output.open(LISTING)).to_pylist()
    return found


def _tar(entry: Entry) -> str:
    name: str = json.loads(entry.where)[0]
    return name


def _receipts(output: Folder) -> set[str]:
    return {name for name in output.sizes(HEADERS) if name.endswith(".json")}


def _with_s3(tars: Path, s3: S3, tmp_path: Path) -> tuple[str, Folder]:
    uri = s3.uri(f"headers/{tmp_path.name}")
    upload(tars, Folder(f"{uri}/in"))
    return f"{uri}/in", Folder(f"{uri}/out")


@pytest.mark.parametrize("tasks", [100, 4])
@pytest.mark.parametrize("ahead", [100, 2])
def test_tasks_list_what_threads_do(
    ray_cluster: None, tars: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    tasks: int, ahead: int,
) -> None:  # fmt: skip
    monkeypatch.setattr(headers, "TASKS", tasks)
    monkeypatch.setattr(headers, "AHEAD", ahead)
    (tars / "x-03.tar").write_bytes(b"no tar at all" * 100)
    alone, together = Skipped(), Skipped()
    expected = list(_open(tars).entries(alone))
    output = Folder(str(tmp_path / "out"))
    assert list(entries_of(_open(tars), output, together)) == expected
    assert len(expected) == (TARS - 1) * EACH
    assert together == alone
    assert str(together) == str(alone)
    assert len(_receipts(output)) == (TARS if tasks > TARS else 4)


def test_what_was_read_is_not_read_again(
    ray_cluster: None, tars: Path, s3: S3, tmp_path: Path
) -> None:
    uri, output = _with_s3(tars, s3, tmp_path)
    ranged = f"{uri}/x-{{00..{TARS - 1}}}.tar"
    first = list(entries_of(_open(ranged), output, Skipped()))
    passed = Skipped()
    lost = min(_receipts(output))
    output.remove(lost)
    Folder(uri).remove_many([f"x-{n:02}.tar" for n in range(TARS)])
    with pytest.raises(UserError, match=r"x-\d\d\.tar"):
        list(entries_of(_open(ranged), output, passed))
    for number in range(TARS):
        Folder(uri).write(f"x-{number:02}.tar", b"another")
    found = list(entries_of(_open(ranged), output, passed))
    anew = {_tar(entry) for entry in first} - {_tar(entry) for entry in found}
    assert len(anew) == 1
    assert [entry for entry in first if _tar(entry) not in anew] == found


def test_a_tar_that_was_written_anew_is_read_anew(
    ray_cluster: None, tars: Path, tmp_path: Path
) -> None:
    output = Folder(str(tmp_path / "out"))
    list(entries_of(_open(tars), output, Skipped()))
    before = _receipts(output)
    _pack(tars, 7, "new.jpg")
    found = [e.id for e in entries_of(_open(tars), output, Skipped())]
    assert [id for id in found if "new" in id] == ["x-07/new"]
    assert len(found) == TARS * EACH + 1
    assert len(_receipts(output) - before) == 1


def test_what_cannot_be_listed_is_said_and_the_rest_is_kept(
    ray_cluster: None, tars: Path, tmp_path: Path
) -> None:
    output = Folder(str(tmp_path / "out"))
    _pack(tars, 10, "0.jpg")
    with pytest.raises(UserError, match=r"x-10\.tar: '0' is there again|x-10\.tar.*two members"):
        _freeze(tars, output)
    kept = _receipts(output)
    assert len(kept) >= TARS - 1
    _pack(tars, 10)
    _freeze(tars, output)
    assert kept <= _receipts(output) | kept
    assert [row["id"] for row in _listed(output)] == [
        f"x-{n:02}/{k}" for n in range(TARS) for k in range(EACH)
    ]


def test_where_nothing_is_found_nothing_is_left(
    ray_cluster: None, tars: Path, tmp_path: Path
) -> None:
    output = Folder(str(tmp_path / "out"))
    for number in range(TARS):
        with tarfile.open(tars / f"x-{number:02}.tar", "w"):
            pass
    with pytest.raises(UserError, match="no images here"):
        _freeze(tars, output)
    assert not output.exists(HEADERS)
    assert not output.sizes(WORK)


def test_few_tars_are_read_without_a_task(tars: Path, tmp_path: Path) -> None:
    output = Folder(str(tmp_path / "out"))
    _freeze(tars / "x-{00..07}.tar", output)
    assert len(_listed(output)) == 8 * EACH
    assert not output.exists(HEADERS)


def test_receipts_outlast_a_folder_that_is_away(
    ray_cluster: None, tars: Path, tmp_path: Path
) -> None:
    output = Folder(str(tmp_path / "out"))
    list(entries_of(_open(tars), output, Skipped()))
    kept = _receipts(output)
    tars.rename(tmp_path / "elsewhere")
    tars.mkdir()
    with pytest.raises(UserError, match="no images here"):
        _freeze(tars, output)
    assert _receipts(output) == kept


@pytest.mark.parametrize("kind", [".json", ".parquet"])
def test_a_damaged_receipt_is_named(
    ray_cluster: None, tars: Path, tmp_path: Path, kind: str
) -> None:
    output = Folder(str(tmp_path / "out"))
    list(entries_of(_open(tars), output, Skipped()))
    receipt = min(_receipts(output))
    output.write(receipt.replace(".json", kind), b"PAR1")
    with pytest.raises(UserError, match=r"\.json: damaged, or its twin; remove it and run again"):
        list(entries_of(_open(tars), output, Skipped()))
    output.remove(receipt)
    assert len(list(entries_of(_open(tars), output, Skipped()))) == TARS * EACH
