"""Check published artifacts: every file that a manifest, or a table of predictions, digests."""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow.parquet as pq
from pydantic import BaseModel

from imgray.artifacts.folder import Folder
from imgray.artifacts.manifest import NAME, Manifest, opening, read_manifest
from imgray.engine.progress import Progress
from imgray.engine.settings import VerifyConfig
from imgray.errors import UserError

NAMED = 3
"""Files beside an artifact that are named; the others are counted."""


class Checked(BaseModel):
    """What was found at one URI."""

    uri: str
    kind: str = ""
    files: int = 0
    bytes: int = 0
    faults: list[str] = []
    """One line per file that is not as published, or why there is no artifact."""
    beside: list[str] = []
    """Files that nothing lists: no part of the artifact."""

    def __str__(self) -> str:
        if not self.kind:
            return f"error: {self.faults[0]}"
        state = f"{len(self.faults)} not as published" if self.faults else "all as published"
        names = ", ".join(self.beside[:NAMED]) + (", ..." if len(self.beside) > NAMED else "")
        beside = f"; not listed: {len(self.beside)} more ({names})" if self.beside else ""
        what = f"{self.kind} artifact, {self.files:,} files, {self.bytes:,} bytes"
        line = f"{self.uri}: {what}: {state}{beside}"
        return "\n".join([line, *(f"error: {fault}" for fault in self.faults)])


class VerifyResult(BaseModel):
    """What was found at every URI."""

    artifacts: list[Checked]

    @property
    def exit_code(self) -> int:
        """2 when anything is not as published."""
        return 2 if any(one.faults for one in self.artifacts) else 0

    def __str__(self) -> str:
        return "\n".join(map(str, self.artifacts))


def verify(config: VerifyConfig) -> VerifyResult:
    """Check every artifact, also those after a damaged one."""
    return VerifyResult(artifacts=[_check(Folder(uri)) for uri in config.artifacts])


def _check(folder: Folder) -> Checked:
    found = Checked(uri=folder.uri)
    try:
        manifest = read_manifest(folder)
        sizes = folder.sizes()
    except UserError as error:
        return found.model_copy(update={"faults": [str(error)]})
    found.kind, found.files, found.bytes = manifest.kind, 1, sizes.pop(NAME)
    progress = Progress("verify", len(sizes), unit="files")
    try:
        for name, digest, size in _listed(folder, manifest, found):
            have = sizes.pop(name, None)
            if fault := _fault(folder, name, digest, size, have):
                found.faults.append(fault)
            found.files += 1
            found.bytes += have or 0
            progress.add(have is not None)
    except UserError as error:
        found.faults.append(str(error))
    if sizes:
        progress.add(len(sizes))
    found.beside = sorted(sizes)
    return found


def _listed(
    folder: Folder, manifest: Manifest, found: Checked
) -> Iterator[tuple[str, str, int | None]]:
    """Name, SHA-256 and, where it is known, size of every file that is part of an artifact.

    A table of predictions names its pictures; one that is not as published is not read.
    """
    for entry in manifest.files:
        before = len(found.faults)
        yield entry.name, entry.sha256, entry.size
        tabled = manifest.kind == "predictions" and entry.name.startswith("part-")
        if tabled and len(found.faults) == before:
            yield from _pictures(folder, entry.name)


def _pictures(folder: Folder, part: str) -> Iterator[tuple[str, str, None]]:
    """Name and SHA-256 of the pictures that a table of predictions names."""
    with opening(folder), folder.open(part) as file:
        for batch in pq.ParquetFile(file).iter_batches(columns=["picture", "sha256"]):
            for row in batch.to_pylist():
                if row["picture"] is not None:
                    yield row["picture"], row["sha256"], None


def _fault(folder: Folder, name: str, digest: str, size: int | None, have: int | None) -> str:
    """What is wrong with a file, and where; nothing for one that is as published."""
    place = f"{folder.uri.rstrip('/')}/{name}"
    if have is None:
        return f"{place}: missing"
    if size is not None and have != size:
        return f"{place}: {have:,} bytes, published with {size:,}"
    try:
        return "" if folder.sha256(name) == digest else f"{place}: its content has changed"
    except UserError as error:
        return str(error)
