"""What an artifact is: a folder whose `manifest.json`, written last, lists and digests its files.

What no manifest lists does not exist. While a job works, its notes lie in `_work/` beside the
data files; `publish` writes the manifest and removes them.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeInt,
    ValidationError,
    field_validator,
)

from imgray import __version__
from imgray.artifacts.folder import TEMPORARY, Folder
from imgray.errors import UserError, no_room

FORMAT = 1
NAME = "manifest.json"
WORK = "_work"
RUN = f"{WORK}/run.json"
CLAIMS, LEASES = f"{WORK}/owners", f"{WORK}/leases"
"""Who works: see `owner`."""
CLEARING = f"{WORK}/clearing"
"""Is there while an artifact is removed."""
REJECTED = "rejected"
PART = re.compile(rf"({REJECTED}/)?part-(\d{{5,}})(-[0-9a-f]{{12}})?\.parquet")
"""Of features and predictions: a shard's rows, or what was set aside of it."""
LAST = (RUN, CLEARING)
"""Of the notes: they say that the others are ours."""

Kind = Literal["model", "features", "index", "predictions"]


class FileEntry(BaseModel):
    """One data file: its name in the artifact, size in bytes, SHA-256 and number of rows."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    size: NonNegativeInt
    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    rows: NonNegativeInt = 0

    @field_validator("name")
    @classmethod
    def _inside(cls, name: str) -> str:
        if name.startswith("/") or not {"", ".", ".."}.isdisjoint(name.split("/")):
            raise ValueError(f"{name!r} names no file of the artifact")
        return name


class Manifest(BaseModel):
    """The table of contents of an artifact. Its own `digest` covers all other fields."""

    model_config = ConfigDict(extra="forbid")

    kind: Kind
    format: int = FORMAT
    imgray: str = __version__
    config: dict[str, Any]
    made_from: dict[str, str] = Field(default_factory=dict)
    """URI or name of every source, with its digest."""
    counts: dict[str, NonNegativeInt] = Field(default_factory=dict)
    about: dict[str, Any] = Field(default_factory=dict)
    """What a reader needs to know before it opens a data file, such as the features' shapes."""
    files: list[FileEntry]
    digest: str = ""

    def sealed(self) -> Manifest:
        """A copy that carries the digest of its content."""
        return self.model_copy(update={"digest": sha256(self._content())})

    def to_bytes(self) -> bytes:
        """The exact content of `manifest.json`."""
        return json.dumps(self.model_dump(mode="json"), indent=1).encode()

    def _content(self) -> bytes:
        return json.dumps(self.model_dump(mode="json", exclude={"digest"})).encode()

    def file(self, name: str) -> FileEntry:
        """The entry of a name. Raises `UserError` when it is not listed."""
        for entry in self.files:
            if entry.name == name:
                return entry
        raise UserError(f"the manifest lists no {name}")

    def named(self, prefix: str, suffix: str = "") -> list[FileEntry]:
        """The files whose name starts and ends so, in order of their names."""
        found = [f for f in self.files if f.name.startswith(prefix) and f.name.endswith(suffix)]
        return sorted(found, key=lambda entry: entry.name)


def sha256(data: bytes) -> str:
    """Hexadecimal SHA-256."""
    return hashlib.sha256(data).hexdigest()


def entry_of(name: str, data: bytes, rows: int = 0) -> FileEntry:
    """The entry of a file with this content."""
    return FileEntry(name=name, size=len(data), sha256=sha256(data), rows=rows)


def entry_of_file(path: Path, rows: int = 0) -> FileEntry:
    """The entry of a local file under its own name, read in small pieces."""
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return FileEntry(name=path.name, size=path.stat().st_size, sha256=digest, rows=rows)


def read_manifest(folder: Folder, kind: Kind | None = None) -> Manifest:
    """Read and verify the manifest of a finished artifact, of any kind if none is named.

    Raises `UserError` when there is none, when a byte of it changed, when the artifact is of
    another kind, or when its format is not the one that this version of imgray reads.
    """
    if not folder.exists(NAME):
        hint = "its job has not finished; run it again" if folder.exists(RUN) else "check the URI"
        wanted = f"{kind} artifact" if kind else "artifact"
        raise UserError(f"{folder.uri}: no {wanted} here (no {NAME}): {hint}")
    data = folder.read(NAME)
    try:
        raw = json.loads(data)
        version = raw.get("format")
        if isinstance(version, int) and version != FORMAT and _digest_holds(raw):
            raise UserError(
                f"{folder.uri}: format {version}, made by imgray {raw.get('imgray')}; this imgray "
                f"{__version__} reads format {FORMAT}: make the artifact again or install that one"
            )
        manifest = Manifest.model_validate(raw)
        intact = manifest.sealed().to_bytes() == data
    except (ValueError, AttributeError, RecursionError, ValidationError):
        intact = False
    if not intact:
        raise UserError(
            f"{folder.uri}/{NAME}: damaged (its digest differs); make the artifact again"
        )
    if kind and manifest.kind != kind:
        raise UserError(f"{folder.uri}: a {manifest.kind} artifact, but {kind} is needed")
    return manifest


def _digest_holds(raw: dict[str, Any]) -> bool:
    content = {key: value for key, value in raw.items() if key != "digest"}
    return sha256(json.dumps(content).encode()) == raw.get("digest")


def read_file(folder: Folder, entry: FileEntry) -> bytes:
    """The content of a data file, verified against the manifest."""
    data = folder.read(entry.name)
    if len(data) != entry.size or sha256(data) != entry.sha256:
        raise _differs(folder, entry)
    return data


def local_file(folder: Folder, entry: FileEntry) -> Path:
    """A verified local path of a data file, to be memory-mapped.

    A file in S3 is fetched once into a cache (`IMGRAY_CACHE`, else `~/.cache/imgray`), under its
    digest, so that two versions of an index never meet.
    """
    path = Path(folder.path(entry.name))
    if folder.is_s3:
        path = cache() / entry.sha256[:2] / f"{entry.sha256}{Path(entry.name).suffix}"
        if not path.exists() or path.stat().st_size != entry.size:
            folder.download(entry.name, path)
    try:
        with open(path, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; make the artifact again") from None
    if digest != entry.sha256:
        if folder.is_s3:
            path.unlink(missing_ok=True)
        raise _differs(folder, entry)
    return path


def cache() -> Path:
    """Where files fetched from S3 are kept on this machine."""
    return Path(os.environ.get("IMGRAY_CACHE") or Path.home() / ".cache" / "imgray")


@contextlib.contextmanager
def opening(folder: Folder) -> Iterator[None]:
    """Within the block, what an artifact's verified but strange content raises is a `UserError`.

    Digests say that files are as they were published, not that imgray has published them.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise UserError(
            f"{folder.uri}: its content is not what imgray writes ({reason}); make it again"
        ) from error


def _differs(folder: Folder, entry: FileEntry) -> UserError:
    return UserError(
        f"{folder.uri.rstrip('/')}/{entry.name}: its content differs from the manifest "
        "(damaged or truncated); make the artifact again with --overwrite"
    )


def publish(folder: Folder, manifest: Manifest) -> Manifest:
    """Make an artifact visible: write its manifest, then remove the notes of the work."""
    sealed = manifest.sealed()
    before = read_manifest(folder).files if folder.exists(NAME) else []
    folder.write(NAME, sealed.to_bytes())
    with contextlib.suppress(UserError):  # it is published, and a later run tidies up
        listed = {file.name for file in sealed.files}
        folder.remove_many([file.name for file in before if file.name not in listed])
        forget_work(folder)
    return sealed


def forget_work(folder: Folder) -> None:
    """Remove the notes of a work, but for those of who does it, and files that were not ended.

    Of an artifact that is published also the parts that its manifest does not list: who reads
    `part-*.parquet` sees what it lists.
    """
    if folder.exists(NAME):
        listed = {file.name for file in read_manifest(folder).files}
        found = map(PART.fullmatch, (*folder.files(), *folder.sizes(REJECTED)))
        own = [part[0] for part in found if part and part[3]]  # others may be a user's
        folder.remove_many([name for name in own if name not in listed])
    for place in () if folder.is_s3 else ("", f"{REJECTED}/"):
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            for name in os.listdir(folder.path(place)):
                if name.startswith(TEMPORARY):
                    folder.remove(f"{place}{name}")
    notes = [n for n in folder.sizes(WORK) if not n.startswith((f"{CLAIMS}/", f"{LEASES}/"))]
    folder.remove_many(sorted(notes, key=lambda name: name in LAST))
    folder.prune(WORK, deep=True)


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    """A temporary local folder for files under construction, removed at the end.

    Raises `NoRoom` where none can be made.
    """
    try:
        folder = tempfile.TemporaryDirectory(prefix="imgray-")
    except OSError as error:
        raise no_room(error) from error
    with folder as path:
        yield Path(path)
