"""The parts of a shard and its receipt: what was done, and by whom."""

from __future__ import annotations

import io
from collections.abc import Sequence

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ValidationError

from imgray.artifacts.folder import Folder
from imgray.artifacts.manifest import (
    NAME,
    PART,
    REJECTED,
    WORK,
    FileEntry,
    Manifest,
    entry_of,
    read_manifest,
    sha256,
)
from imgray.artifacts.owner import Lost, Owned

RECEIPTS = f"{WORK}/receipts"
ROW_GROUP_BYTES = 16 * 2**20


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


def name_of(output: Folder, shard: int) -> str:
    """The name of a shard's receipt: those of another beginning are of other settings, perhaps."""
    return f"{_below(output)}/{shard:05d}.json"


def found_receipts(output: Folder) -> list[Receipt]:
    """Receipts of earlier runs whose files are still there at full size; others are removed."""
    names = sorted(name for name in output.sizes(_below(output)) if name.endswith(".json"))
    sizes = output.sizes() if names else {}
    found = []
    for name, data in zip(names, output.read_many(names), strict=True):
        receipt = parse(data)
        if receipt and all(sizes.get(file.name) == file.size for file in receipt.files):
            found.append(receipt)
        else:
            output.remove(name)
    return found


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


def file_of(name: str, table: pa.Table) -> tuple[FileEntry, bytes]:
    """A table's file, whose name tells its content."""
    data = _parquet(table)
    return entry_of(f"{name}-{sha256(data)[:12]}.parquet", data, len(table)), data


def keep(output: Folder, files: Sequence[tuple[FileEntry, bytes]], receipt: Receipt) -> None:
    """Write a shard. Raises `Lost` where another run owns the output, and takes it back."""
    try:
        for entry, data in files:
            output.write(entry.name, data)
        output.write(name_of(output, receipt.shard), receipt.model_dump_json().encode())
        if isinstance(output, Owned):
            output.check()
    except Lost:
        _take_back(Folder(output.absolute), receipt)
        raise


def _take_back(output: Folder, receipt: Receipt) -> None:
    """Remove what was written too late; a run that is not done does so before it publishes."""
    if output.exists(NAME):
        listed = {file.name for file in read_manifest(output).files}
        for file in receipt.files:
            if file.name not in listed:
                output.remove(file.name)


def _below(output: Folder) -> str:
    run = output.begun if isinstance(output, Owned) else ""
    return f"{RECEIPTS}/{run}" if run else RECEIPTS


def _parquet(table: pa.Table) -> bytes:
    """Encode deterministically, in row groups that a reader can hold one at a time."""
    rows = max(1, ROW_GROUP_BYTES * max(1, len(table)) // max(1, table.nbytes))
    buffer = io.BytesIO()
    pq.write_table(table, buffer, row_group_size=rows, compression="zstd", use_dictionary=False)
    return buffer.getvalue()
