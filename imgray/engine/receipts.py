"""The parts of a shard and its receipt: what was done, and by whom."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path

import pyarrow as pa
from pydantic import BaseModel, ValidationError

from imgray.artifacts.folder import Folder
from imgray.artifacts.manifest import (
    NAME,
    PART,
    REJECTED,
    RUN,
    WORK,
    FileEntry,
    Manifest,
    entry_of_file,
    read_manifest,
)
from imgray.artifacts.owner import Lost, Owned
from imgray.engine.listing import writing_parquet

RECEIPTS = f"{WORK}/receipts"
AGAIN = "-again.json"
BUNDLE = 1000
"""Receipts in a file, and files that are read at once."""
ROW_GROUP_BYTES, VARIABLE = 16 * 2**20, 256
"""Bytes of a row group, and what a value of no fixed length is taken for."""


class Receipt(BaseModel):
    """A finished shard."""

    shard: int
    listed: int
    part: FileEntry
    rejected: FileEntry | None = None

    @property
    def files(self) -> list[FileEntry]:
        """The data files of the shard."""
        return [self.part] + ([self.rejected] if self.rejected else [])


def name_of(output: Folder, shard: int, again: bool = False) -> str:
    """The name of a shard's receipt: those of another beginning are of other settings, perhaps.

    One that was done again has another, as the first may be together with others already.
    """
    return f"{of_chain(output, RECEIPTS)}/{shard:05d}{AGAIN if again else '.json'}"


def found_receipts(output: Folder) -> dict[int, Receipt]:
    """By shard the receipts of earlier runs whose files are still there at full size.

    Those of one shard that are not are removed. A later one counts instead of an earlier one.
    """
    names = sorted(output.sizes(of_chain(output, RECEIPTS)))
    if not names:
        return {}
    sizes = output.sizes_here() | output.sizes(REJECTED)
    found: dict[int, Receipt] = {}
    _read(output, [name for name in names if name.endswith(".jsonl")], sizes, found)
    known = {name_of(output, shard) for shard in found}
    alone = [name for name in names if name.endswith(".json") and name not in known]
    _read(output, sorted(alone, key=lambda name: name.endswith(AGAIN)), sizes, found)
    return found


def _read(
    output: Folder, names: Sequence[str], sizes: Mapping[str, int], found: dict[int, Receipt]
) -> None:
    for start in range(0, len(names), BUNDLE):
        some = names[start : start + BUNDLE]
        for name, data in zip(some, output.read_many(some), strict=True):
            whole = [r for r in map(parse, data.splitlines()) if r and _there(r, sizes)]
            found |= {receipt.shard: receipt for receipt in whole}
            if not whole and name.endswith(".json"):
                output.remove(name)


def _there(receipt: Receipt, sizes: Mapping[str, int]) -> bool:
    return all(sizes.get(file.name) == file.size for file in receipt.files)


class Ledger:
    """Puts receipts together, many in a file, so that a later run need not open each.

    They stay where their workers have left them: one that is asked for a shard again, looks there.

    Args:
        output: of the run.
        most: receipts of a file.
    """

    def __init__(self, output: Folder, most: int = BUNDLE) -> None:
        self.output, self.most = output, most
        self.waiting: list[Receipt] = []

    def add(self, receipt: Receipt) -> None:
        """One that its worker has kept. Raises `UserError`."""
        self.waiting.append(receipt)
        if len(self.waiting) == self.most:
            self._write()

    def _write(self) -> None:
        name = f"{of_chain(self.output, RECEIPTS)}/{next(self._numbers):05d}.jsonl"
        lines = [receipt.model_dump_json() for receipt in self.waiting]
        self.output.write(name, "\n".join(lines).encode())
        self.waiting = []

    @cached_property
    def _numbers(self) -> Iterator[int]:
        """Those after the files of earlier runs; nobody else writes any."""
        names = self.output.sizes(of_chain(self.output, RECEIPTS))
        earlier = (int(Path(name).stem) for name in names if name.endswith(".jsonl"))
        return itertools.count(max(earlier, default=0) + 1)


def receipts_of(manifest: Manifest) -> list[Receipt]:
    """The receipts of a finished artifact."""
    parts: dict[int, list[FileEntry]] = {}
    for file in manifest.files:
        if found := PART.fullmatch(file.name):
            parts.setdefault(int(found[2]), []).append(file)
    return [
        Receipt(
            shard=shard,
            listed=sum(file.rows for file in files),
            part=next(file for file in files if not file.name.startswith(REJECTED)),
            rejected=next((file for file in files if file.name.startswith(REJECTED)), None),
        )
        for shard, files in sorted(parts.items())
    ]


def parse(data: bytes) -> Receipt | None:
    """A receipt; None where that is damaged."""
    try:
        return Receipt.model_validate_json(data)
    except ValidationError:
        return None


def write_part(
    folder: Path, name: str, tables: Iterable[pa.Table], schema: pa.Schema
) -> tuple[FileEntry, Path]:
    """Write tables to a local file, as they come: its entry, whose name tells its content.

    How the rows are divided among the tables changes no byte.
    """
    path, most = folder / f"{name.replace('/', '-')}.parquet", rows_of_group(schema)
    total = 0
    with writing_parquet(path, schema, use_dictionary=False) as add:
        for group in _groups(tables, schema, most):
            add(group.combine_chunks(), most)
            total += len(group)
    entry = entry_of_file(path, total)
    return entry.model_copy(update={"name": f"{name}-{entry.sha256[:12]}.parquet"}), path


def _groups(tables: Iterable[pa.Table], schema: pa.Schema, rows: int) -> Iterator[pa.Table]:
    """Their rows in tables of so many, of which the last may have fewer; one at least."""
    waiting, count, whole = [schema.empty_table()], 0, 0
    for table in tables:
        waiting.append(table)
        count += len(table)
        if count >= rows:
            joined, whole = pa.concat_tables(waiting), count - count % rows
            yield from (joined.slice(start, rows) for start in range(0, whole, rows))
            waiting, count = [joined.slice(whole)], count - whole
    if count or not whole:
        yield pa.concat_tables(waiting)


def rows_of_group(schema: pa.Schema) -> int:
    """So many rows that a reader can hold a row group."""
    return max(1, ROW_GROUP_BYTES // sum(_bytes(field.type) for field in schema))


def _bytes(type: pa.DataType) -> int:
    """About so many bytes a value takes."""
    if pa.types.is_fixed_size_list(type):
        return int(type.list_size) * _bytes(type.value_type)
    return -(-type.bit_width // 8) if pa.types.is_primitive(type) else VARIABLE


def keep(
    output: Folder, files: Sequence[tuple[FileEntry, Path]], receipt: Receipt, again: bool = False
) -> None:
    """Write a shard. Raises `Lost` where another run owns the output, and takes it back."""
    try:
        for entry, path in files:
            output.upload(path, entry.name)
        output.write(name_of(output, receipt.shard, again), receipt.model_dump_json().encode())
        if isinstance(output, Owned):
            output.check()
    except Lost:
        _take_back(Folder(output.absolute), receipt)
        raise


def _take_back(output: Folder, receipt: Receipt) -> None:
    """Remove what was written too late.

    While a run works, its receipts may say that the very same file is theirs: it sweeps what none
    of them lists when it publishes.
    """
    if not output.exists(RUN) and output.exists(NAME):
        listed = {file.name for file in read_manifest(output).files}
        for file in receipt.files:
            if file.name not in listed:
                output.remove(file.name)


def of_chain(output: Folder, notes: str) -> str:
    """The folder of notes that the run which began an output shares with those after it."""
    run = output.begun if isinstance(output, Owned) else ""
    return f"{notes}/{run}" if run else notes
