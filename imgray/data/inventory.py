"""An S3 Inventory: the daily report of AWS on what a bucket holds, taken for a listing.

https://docs.aws.amazon.com/AmazonS3/latest/userguide/storage-inventory-location.html
"""

from __future__ import annotations

import errno
import gzip
import hashlib
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote_to_bytes

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.orc
import pyarrow.parquet as pq
from pydantic import BaseModel, Field, ValidationError

from imgray.artifacts.folder import Folder, read_uri
from imgray.artifacts.manifest import scratch
from imgray.artifacts.walk import NOT_UTF8, Entry, Object, Skipped, bucket_and_prefix, objects
from imgray.data.merge_sort import MergeSort, Row
from imgray.errors import UserError, brief, no_room

TWICE = "listed twice"
"""Of a key that was written while the report was made; one row of it counts."""
TYPES = {
    "key": pa.binary(),
    "size": pa.int64(),
    "etag": pa.binary(),
    "islatest": pa.bool_(),
    "isdeletemarker": pa.bool_(),
}
"""Columns that are read, the last two of reports on all versions; named as `_plain` names them."""
NEEDED = {"key": "Key", "size": "Size", "etag": "ETag"}
"""What AWS calls those that no report may lack."""
ROWS = pa.schema([(name, TYPES[name]) for name in NEEDED])
BATCH = 2**16
"""Rows of a data file that are read together."""
OTHERWISE = "take a later report, or leave --inventory off, so that S3 itself is asked"


class DataFile(BaseModel):
    """One of the files that hold a report."""

    key: str = Field(min_length=1)
    md5: str = Field(alias="MD5checksum", pattern="^[0-9a-fA-F]{32}$")


class Report(BaseModel):
    """What the manifest of an inventory tells of it; buckets are named, or by their ARN."""

    source: str = Field(alias="sourceBucket", min_length=1)
    destination: str = Field(alias="destinationBucket", min_length=1)
    format: str = Field(alias="fileFormat")
    columns: str = Field(alias="fileSchema")
    files: list[DataFile]


@dataclass(frozen=True)
class Inventory:
    """The listing of a folder in S3 as an inventory has it; nothing is read before it is asked for.

    Attributes:
        uri: of its `manifest.json`.
    """

    uri: str

    def entries(self, folder: Folder, skipped: Skipped) -> Iterator[Entry]:
        """The files below a folder, as `Folder.walk` gives them when the report is up to date.

        Of versions the latest counts, unless it is a delete marker. The report may be in any order:
        it is sorted on the disk, in the same memory whatever its size.

        Raises:
            UserError: it cannot be read, or is of another bucket.
            NoRoom: there is no room to sort it.
        """
        bucket, prefix = bucket_and_prefix(folder.root)
        report = self._report(bucket)
        with scratch() as place:
            sort = MergeSort(place, ROWS)
            for file in report.files:
                for batch in self._batches(report, file, prefix.encode(), place):
                    sort.add(batch)
            none = True
            for entry in objects(_once(sort.rows(), skipped), prefix, skipped):
                none = False
                yield entry
            if none and not skipped.counts:
                raise UserError(
                    f"{self.uri}: lists nothing below {folder.uri}; check the prefix of --images, "
                    "and the one that the inventory is configured with"
                )

    def _report(self, bucket: str) -> Report:
        try:
            report = Report.model_validate_json(read_uri(self.uri))
        except ValidationError as error:
            fault = error.errors()[0]
            place = ".".join(map(str, fault["loc"]))
            raise UserError(
                f"--inventory {self.uri}: not the manifest of an S3 Inventory "
                f"({brief(f'{place}: ' * bool(place) + fault['msg'])}); name a manifest.json that "
                "AWS wrote, DESTINATION/BUCKET/ID/DATE/manifest.json"
            ) from None
        source = _name(report.source)
        if source != bucket:
            raise UserError(
                f"--inventory {self.uri}: of the bucket {brief(source)}, but --images lie in "
                f"{bucket}; name the inventory of that"
            )
        if report.format not in READERS:
            raise UserError(
                f"--inventory {self.uri}: in the format {brief(report.format)!r}; configure the "
                f"inventory for one of {', '.join(READERS)}"
            )
        names = {_plain(name) for name in re.findall(r"\w+", report.columns)}
        if lacking := [name for plain, name in NEEDED.items() if plain not in names]:
            raise UserError(
                f"--inventory {self.uri}: lacks {' and '.join(lacking)}; add the fields Size and "
                "ETag to the inventory's configuration, or leave --inventory off"
            )
        return report

    def _batches(
        self, report: Report, file: DataFile, prefix: bytes, scratch: Path
    ) -> Iterator[pa.RecordBatch]:
        """The `ROWS` of a data file that are to be listed; it is verified before it is read."""
        folder, path = Folder(f"s3://{_name(report.destination)}"), scratch / "data"
        place = folder.place(file.key)
        _download(folder, file.key, path)
        with open(path, "rb") as data:
            found = hashlib.file_digest(data, lambda: hashlib.md5(usedforsecurity=False))
        if found.hexdigest() != file.md5.lower():
            raise UserError(
                f"{place}: its content differs from the MD5checksum in {self.uri} (damaged, "
                f"truncated or replaced); {OTHERWISE}"
            )
        try:
            for batch in READERS[report.format](path, report.columns):
                yield _listed(batch, prefix)
        except (pa.ArrowException, OSError, ValueError, KeyError) as error:
            reason = brief(" ".join(str(error).split()), 200)
            raise UserError(
                f"{place}: cannot be read as {report.format} ({reason}); {OTHERWISE}"
            ) from error


def _name(bucket: str) -> str:
    """The name of a bucket that is given by that or by its ARN."""
    return bucket.rpartition(":")[2]


def _download(folder: Folder, key: str, path: Path) -> None:
    try:
        folder.download(key, path)
    except UserError as error:
        cause = error.__cause__
        if isinstance(cause, PermissionError):
            raise UserError(
                f"{error}; where SSE-KMS encrypts the inventory, kms:Decrypt of its key is needed"
            ) from cause
        if isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT):
            raise no_room(cause) from cause
        raise


def _csv(path: Path, columns: str) -> Iterator[pa.RecordBatch]:
    """Without a header, compressed with gzip; keys are URL-encoded, a space as a plus."""
    names = [_plain(name) for name in columns.split(",")]
    with gzip.open(path) as stream:
        if not stream.read(1):
            return
    with pa.input_stream(str(path), compression="gzip") as stream:
        for batch in pyarrow.csv.open_csv(
            stream,
            read_options=pyarrow.csv.ReadOptions(column_names=names),
            convert_options=pyarrow.csv.ConvertOptions(
                column_types=TYPES,
                include_columns=_wanted(names),
                null_values=[""],
                strings_can_be_null=True,
            ),
        ):
            keys = [
                key and unquote_to_bytes(key.replace(b"+", b" "))
                for key in batch["key"].to_pylist()
            ]
            place = batch.schema.get_field_index("key")
            yield batch.set_column(place, "key", pa.array(keys, pa.binary()))


def _parquet(path: Path, columns: str) -> Iterator[pa.RecordBatch]:
    with pq.ParquetFile(path, pre_buffer=False, buffer_size=2**20) as file:
        yield from file.iter_batches(BATCH, columns=_wanted(file.schema_arrow.names))


def _orc(path: Path, columns: str) -> Iterator[pa.RecordBatch]:
    file = pyarrow.orc.ORCFile(path)
    for stripe in range(file.nstripes):
        yield file.read_stripe(stripe, columns=_wanted(file.schema.names))


READERS: dict[str, Callable[[Path, str], Iterator[pa.RecordBatch]]] = {
    "CSV": _csv,
    "ORC": _orc,
    "Parquet": _parquet,
}
"""By format, what reads a data file, given the `fileSchema` of the manifest."""


def _plain(column: str) -> str:
    """`ETag` of a CSV and `e_tag` of the others are the same."""
    return column.strip().replace("_", "").lower()


def _wanted(columns: Sequence[str]) -> list[str]:
    """Those of a file's columns that are read."""
    return [name for name in columns if _plain(name) in TYPES]


def _listed(batch: pa.RecordBatch, prefix: bytes) -> pa.RecordBatch:
    """The rows of objects that a LIST would give below a prefix."""
    names = [_plain(name) for name in batch.schema.names]
    types = pa.schema([(name, TYPES[name]) for name in names])
    batch = batch.rename_columns(names).cast(types)
    keep = pc.starts_with(batch["key"], prefix)
    if "islatest" in names:
        keep = pc.and_(keep, pc.fill_null(batch["islatest"], True))
    if "isdeletemarker" in names:
        keep = pc.and_not(keep, pc.fill_null(batch["isdeletemarker"], False))
    batch = batch.filter(pc.fill_null(keep, True)).select(ROWS.names)
    if any(column.null_count for column in batch.columns):
        raise ValueError("it has a row without Key, Size or ETag")
    return batch


def _once(rows: Iterator[Row], skipped: Skipped) -> Iterator[Object]:
    """What of sorted rows can be listed."""
    before = None
    for key, size, etag in rows:
        if key == before:
            skipped.add(TWICE)
            continue
        before = key
        try:
            yield key.decode(), size, etag.decode()
        except UnicodeDecodeError:
            skipped.add(NOT_UTF8)
