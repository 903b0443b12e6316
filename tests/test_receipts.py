"""Receipts are put together, and a later run trusts those whose files are still there."""

import json
from pathlib import Path

import pytest
from conftest import S3

from imgray.artifacts.folder import Folder
from imgray.artifacts.manifest import REJECTED, entry_of
from imgray.engine.receipts import RECEIPTS, Ledger, Receipt, found_receipts, name_of


@pytest.fixture(params=["disk", "s3"])
def output(request: pytest.FixtureRequest, tmp_path: Path) -> Folder:
    if request.param == "disk":
        return Folder(str(tmp_path / "out"))
    s3: S3 = request.getfixturevalue("s3")
    return Folder(s3.uri(f"receipts/{tmp_path.name}"))


def _done(
    output: Folder,
    shard: int,
    content: bytes = b"rows",
    rejected: bool = False,
    again: bool = False,
) -> Receipt:
    files = [entry_of(f"part-{shard:05d}-{content.hex()}.parquet", content, 1)]
    if rejected:
        files.append(entry_of(f"{REJECTED}/part-{shard:05d}.parquet", b"bad", 1))
    for file, data in zip(files, (content, b"bad"), strict=False):
        output.write(file.name, data)
    receipt = Receipt(shard=shard, listed=2, part=files[0], rejected=[*files, None][1])
    output.write(name_of(output, shard, again), receipt.model_dump_json().encode())
    return receipt


def _names(output: Folder) -> set[str]:
    return {name.removeprefix(f"{RECEIPTS}/") for name in output.sizes(RECEIPTS)}


def test_they_are_put_together_and_found(output: Folder) -> None:
    ledger, every = Ledger(output, 4), {}
    for shard in range(10):
        every[shard] = _done(output, shard, rejected=shard % 3 == 0)
        ledger.add(every[shard])
    assert _names(output) == {"00001.jsonl", "00002.jsonl", *(f"{n:05d}.json" for n in range(10))}
    assert found_receipts(output) == every


def test_a_shard_that_lost_a_file_is_not_found(output: Folder) -> None:
    ledger, every = Ledger(output, 3), {}
    for shard in range(5):
        every[shard] = _done(output, shard, rejected=True)
        ledger.add(every[shard])
    output.remove(every[1].part.name)
    output.write(f"{REJECTED}/part-00003.parquet", b"ba")
    assert found_receipts(output) == {n: r for n, r in every.items() if n not in (1, 3)}


def test_the_later_of_two_counts(output: Folder) -> None:
    ledger = Ledger(output, 2)
    for shard in range(2):
        ledger.add(_done(output, shard, b"early"))
    later = {shard: _done(output, shard, b"later", again=True) for shard in range(2)}
    assert found_receipts(output) == later
    for receipt in later.values():
        ledger.add(receipt)
    assert found_receipts(output) == later


def test_what_is_damaged_is_passed_over(output: Folder) -> None:
    kept = _done(output, 0)
    output.write(name_of(output, 1), b"{")
    lines = [kept.model_dump_json(), "{", json.dumps({"shard": 3})]
    output.write(f"{RECEIPTS}/00001.jsonl", "\n".join(lines).encode())
    assert found_receipts(output) == {0: kept}
