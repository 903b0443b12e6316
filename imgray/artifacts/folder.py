"""A folder on disk or in S3: list, read, write. Every failure names the place and the way out."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import itertools
import os
import shutil
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

import fsspec
from botocore.exceptions import BotoCoreError, ClientError
from fsspec.implementations.local import LocalFileSystem

from imgray.artifacts.walk import Entry, Skipped, in_s3, on_disk, with_suffix
from imgray.errors import Missing, UserError, brief

S3_OPTIONS: dict[str, Any] = {
    "use_listings_cache": False,
    "config_kwargs": {"connect_timeout": 5, "read_timeout": 30, "retries": {"max_attempts": 4}},
}
ROUNDS = 2
"""Of botocore's attempts at a request, and of those at a read whose bytes break off: s3fs has five
of each, so that a store which takes requests and never answers would be waited for for hours."""
TEMPORARY = ".partial-"
TRIES = 5
"""Of a write that the store wants to have repeated."""
TOGETHER = 1000
"""Objects in S3 that one request removes."""
BAD_REQUEST, CONFLICT, PRECONDITION_FAILED, NOT_IMPLEMENTED = 400, 409, 412, 501
NO_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK, errno.EXDEV}
NO_FILE = {errno.ENOENT, errno.EISDIR, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP}
LONGEST_NAME = 200
"""Characters of a file's name that a message shows."""
STREAMED = 4 * 2**20
"""Bytes fetched at once of a file that is read from end to end."""


@dataclass(frozen=True)
class Folder:
    """A folder at a URI: a path on this machine, or `s3://bucket/prefix`.

    S3 endpoint, keys and region come from the usual AWS environment variables.
    Names are relative to the folder, with `/` between their parts.

    Attributes:
        root: its path as the file system names it, without a trailing slash. A relative one is
            resolved here and now: in another process it stays the same place.
    """

    uri: str
    root: str = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if "://" in self.uri and not self.uri.startswith(("s3://", "file://")):
            raise UserError(
                f"{self.uri}: only folders on disk and s3://bucket/prefix are supported"
            )
        path = os.path.expanduser(self.uri.removeprefix("file://"))
        bucket = self.uri.removeprefix("s3://").strip("/")
        if not (bucket if self.is_s3 else path):
            raise UserError(f"{self.uri!r} names no place: say a folder or s3://bucket/prefix")
        object.__setattr__(self, "root", bucket if self.is_s3 else os.path.abspath(path))
        if self.root.encode(errors="ignore").decode() != self.root:
            raise UserError(
                f"{brief(self.root, 1000)}: the path is not UTF-8; rename it, or name a link to it"
            )

    @cached_property
    def file_system(self) -> Any:
        """The fsspec file system that the folder lies in."""
        if not self.is_s3:
            return LocalFileSystem()
        found = fsspec.filesystem("s3", **S3_OPTIONS)
        if found.session is None:
            found.session, found.retries = _session(), ROUNDS
        return found

    @property
    def is_s3(self) -> bool:
        """Whether the folder lies in S3."""
        return self.uri.startswith("s3://")

    @property
    def absolute(self) -> str:
        """The URI that names the folder from any working folder, such as a worker's."""
        return f"s3://{self.root}" if self.is_s3 else self.root

    def hold(self, name: str, sure: bool = False) -> None:
        """Called before a file is changed: a folder that somebody owns may refuse it."""

    def path(self, name: str) -> str:
        """The file system's path of a name."""
        return f"{self.root}/{name}"

    def read(self, name: str, most: int | None = None, start: int = 0) -> bytes:
        """The content of a file from `start`: all of it, or `most` bytes where it has so many.

        Raises:
            Missing: it is not there, though its folder is, and holds others.
            UserError: it cannot be read.
        """
        try:
            return self._read(name, most, start)
        except UserError as error:
            if not (_absent(error) and self.answers(name)):
                raise
        try:  # the store may have been away, and be back
            return self._read(name, most, start)
        except UserError as error:
            if _absent(error):
                raise Missing(str(error)) from error.__cause__
            raise

    def _read(self, name: str, most: int | None, start: int) -> bytes:
        at_once = {"max_concurrency": 1} if self.is_s3 else {}  # else its size is asked for first
        span = {"start": start or None, "end": None if most is None else start + most}
        with self._clear("read", name):
            try:
                return bytes(self.file_system.cat_file(self.path(name), **span, **at_once))
            except OSError as error:
                if most and self.is_s3 and error.errno == errno.EINVAL:  # it has no byte there
                    return b""
                raise

    def answers(self, name: str) -> bool:
        """Whether the folder is there where a file should be: one that is unmounted is empty.

        Of folders of which some are gone, that is the innermost that is left.
        """
        with contextlib.suppress(OSError, BotoCoreError, ClientError):
            if not self.is_s3:
                place = os.path.dirname(self.path(name))
                while not os.path.isdir(place) and len(place) > len(self.root):
                    place = os.path.dirname(place)
                with os.scandir(place) as found:
                    return any(True for _ in found)
            bucket, _, prefix = self.root.partition("/")
            wanted = {"Bucket": bucket, "Prefix": f"{prefix}/" if prefix else "", "MaxKeys": 1}
            answer = self.file_system.call_s3("list_objects_v2", **wanted)
            return bool(answer.get("Contents"))
        return False

    def look(self) -> None:
        """Raise `UserError` where nothing is there, which takes no more than a glance to tell."""
        if not self.answers("") and not any(self.walk(("*",), Skipped())):
            raise UserError(f"{self.uri}: nothing is here; check the URI")

    def version(self, name: str) -> str:
        """What changes when a file is written anew, and is known without reading it.

        Its size, and with it its time of modification in nanoseconds, or its ETag in S3.
        """
        with self._clear("read", name):
            if self.is_s3:
                info = self.file_system.info(self.path(name))
                if info["type"] != "file":
                    raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
                etag = info["ETag"].strip('"')
                return f"{info['size']} {etag}"
            found = os.stat(self.path(name))
            return f"{found.st_size} {found.st_mtime_ns}"

    def read_many(self, names: Sequence[str]) -> list[bytes]:
        """The content of several files, fetched together."""
        with self._clear("read", names[0] if names else ""):
            paths = [self.path(name) for name in names]
            every: list[None] = [None] * len(paths)
            # Not `cat`, which takes brackets and stars in a path for a pattern.
            return list(self.file_system.cat_ranges(paths, every, every, on_error="raise"))

    def open(self, name: str) -> Any:
        """Open a file for random access: only the ranges that are read are fetched."""
        with self._clear("read", name):
            return self.file_system.open(self.path(name), "rb", block_size=2**20)

    def sha256(self, name: str) -> str:
        """Hexadecimal SHA-256 of a file, read in pieces."""
        with self._clear("read", name):
            path = self.path(name)
            with self.file_system.open(path, "rb", block_size=STREAMED) as file:
                return hashlib.file_digest(file, "sha256").hexdigest()

    def write(self, name: str, data: bytes) -> None:
        """Write a file so that it is seen whole or not at all."""
        self.hold(name)
        with self._clear("write", name):
            if self.is_s3:
                self.file_system.pipe_file(self.path(name), data)
            else:
                _write_atomically(Path(self.path(name)), data)

    def create(self, name: str, data: bytes) -> bool:
        """Write a file, whole, unless there is one already: whether it was written.

        A store in S3 that knows no conditional put writes it all the same.
        """
        with self._clear("write", name):
            if not self.is_s3:
                return _create(Path(self.path(name)), data)
            return self._put_once(self.path(name), data)

    def _put_once(self, path: str, data: bytes) -> bool:
        bucket, _, key = path.partition("/")
        wanted: dict[str, Any] = {"Bucket": bucket, "Key": key, "Body": data, "IfNoneMatch": "*"}
        for attempt in itertools.count():
            try:
                self.file_system.call_s3("put_object", **wanted)
                return True
            except (OSError, ClientError) as error:
                status = _status(error)
                if status == PRECONDITION_FAILED:
                    # A reply may have been lost: what is there may be one's own.
                    return bytes(self.file_system.cat_file(path)) == data
                if status == CONFLICT and attempt < TRIES:
                    time.sleep(0.1 * 2**attempt)
                elif status in (BAD_REQUEST, NOT_IMPLEMENTED) and "IfNoneMatch" in wanted:
                    del wanted["IfNoneMatch"]
                else:
                    raise
        raise AssertionError

    def touch(self, name: str, data: bytes) -> None:
        """Have a file of this content be written now, though a reader may see it before its end."""
        with self._clear("write", name):
            if self.is_s3:
                self.file_system.pipe_file(self.path(name), data)
                return
            try:
                os.utime(self.path(name))
            except FileNotFoundError:
                with _made(Path(self.path(name))) as file:
                    file.write(data)

    def find(self, name: str) -> bytes | None:
        """The content of a file; None where there is none."""
        with self._clear("read", name):
            try:
                return bytes(self.file_system.cat_file(self.path(name)))
            except FileNotFoundError:
                return None

    def modified(self, name: str) -> float | None:
        """When a file was written last, in seconds by the store's clock; None where it is not."""
        with self._clear("read", name):
            try:
                info = self.file_system.info(self.path(name))
            except FileNotFoundError:
                return None
            return float(info["LastModified"].timestamp() if self.is_s3 else info["mtime"])

    def tops(self, folders: bool = True) -> list[str]:
        """The names of the files, and of the folders, that lie in the folder itself, sorted."""
        with self._clear("list", ""):
            try:
                found = self.file_system.ls(self.root, detail=True)
            except FileNotFoundError:
                return []
        names = (one["name"] for one in found if folders or one["type"] != "directory")
        return sorted(name.rstrip("/").rpartition("/")[2] for name in names)

    def below(self, name: str) -> Folder:
        """A folder in this one."""
        return Folder(f"{self.uri.rstrip('/')}/{name}")

    def upload(self, source: Path, name: str) -> None:
        """Move a finished local file into the folder so that it is seen whole or not at all."""
        self.hold(name)
        with self._clear("write", name):
            if self.is_s3:
                self.file_system.put_file(str(source), self.path(name))
                source.unlink()
                return
            target = Path(self.path(name))
            target.parent.mkdir(parents=True, exist_ok=True)
            partial = target.with_name(TEMPORARY + uuid.uuid4().hex)
            with _removed_on_failure(partial):
                shutil.move(source, partial)
                with open(partial, "rb") as file:
                    os.fsync(file.fileno())
                self.hold(name, sure=True)
                os.replace(partial, target)

    def download(self, name: str, target: Path) -> None:
        """Copy a file of the folder to a local path, seen whole or not at all."""
        with self._clear("read", name):
            target.parent.mkdir(parents=True, exist_ok=True)
            partial = target.with_name(TEMPORARY + uuid.uuid4().hex)
            with _removed_on_failure(partial):
                self.file_system.get_file(self.path(name), str(partial))
                os.replace(partial, target)

    def exists(self, name: str) -> bool:
        """Whether there is a file or sub-folder of this name."""
        with self._clear("read", name):
            return bool(self.file_system.exists(self.path(name)))

    def sizes(self, under: str = "") -> dict[str, int]:
        """Size in bytes of every file below a sub-folder, by name relative to this folder."""
        top = self.path(under).rstrip("/")
        with self._clear("list", under):
            try:
                found = self.file_system.find(top, detail=True)
            except FileNotFoundError:
                return {}
            return {path[len(self.root) + 1 :]: info["size"] for path, info in found.items()}

    def files(self) -> list[str]:
        """The names of the files that lie in the folder itself, sorted; none where it is not."""
        return sorted(self.sizes_here())

    def sizes_here(self) -> dict[str, int]:
        """Size in bytes of the files that lie in the folder itself, by name."""
        with self._clear("list", ""):
            try:
                found = self.file_system.ls(self.root, detail=True)
            except FileNotFoundError:
                return {}
        here = (one for one in found if one["type"] == "file")
        return {one["name"].rpartition("/")[2]: one["size"] for one in here}

    def remove(self, name: str) -> None:
        """Remove a file or sub-folder; one that does not exist is no error."""
        self.hold(name)
        with self._clear("remove", name), contextlib.suppress(FileNotFoundError):
            if self.is_s3:
                self._remove_objects(self.file_system.find(self.path(name).rstrip("/")))
            else:
                self.file_system.rm(self.path(name), recursive=True)

    def prune(self, name: str, deep: bool = False) -> None:
        """Remove an empty sub-folder, of which S3 has none; `deep`, also those within it."""
        if self.is_s3:
            return
        within = (top for top, *_ in os.walk(self.path(name), topdown=False)) if deep else ()
        for path in (*within, self.path(name)):
            with contextlib.suppress(OSError):
                os.rmdir(path)

    def remove_many(self, names: Sequence[str]) -> None:
        """Remove files, in as few requests as can be."""
        for start in range(0, len(names), TOGETHER):
            some = names[start : start + TOGETHER]
            if not self.is_s3:
                for name in some:
                    self.remove(name)
                continue
            self.hold(some[0])
            with self._clear("remove", some[0]):
                self._remove_objects([self.path(name) for name in some])

    def _remove_objects(self, paths: Sequence[str]) -> None:
        """Not `rm`, which takes brackets and stars in a path for a pattern."""
        bucket = self.root.partition("/")[0]
        keys = [{"Key": path[len(bucket) + 1 :]} for path in paths]
        for start in range(0, len(keys), TOGETHER):
            wanted = {"Objects": keys[start : start + TOGETHER], "Quiet": True}
            answer = self.file_system.call_s3("delete_objects", Bucket=bucket, Delete=wanted)
            for failed in answer.get("Errors", []):
                raise OSError(f"{failed.get('Key')}: {failed.get('Message')}")

    def walk(self, suffixes: Sequence[str], skipped: Skipped, after: str = "") -> Iterator[Entry]:
        """List the files below the folder after a name, in the order of their names' bytes.

        `suffixes` are lower case with a dot, or `*` for every file. Hidden files and folders are no
        part of a collection. What is passed over is counted in `skipped`.
        """
        with self._clear("list", ""):
            if not self.is_s3 and not os.path.isdir(self.root):
                raise FileNotFoundError(errno.ENOENT, "no such folder")
            found = (
                in_s3(self.file_system, self.root, skipped, after)
                if self.is_s3
                else on_disk(self.root, skipped, after)
            )
            yield from with_suffix(found, suffixes, skipped)

    def place(self, name: str) -> str:
        """Where a file lies, for messages."""
        return f"{self.uri.rstrip('/')}/{brief(name, LONGEST_NAME)}" if name else self.uri

    @contextlib.contextmanager
    def _clear(self, doing: str, name: str) -> Iterator[None]:
        place = self.place(name)
        try:
            yield
        except (OSError, BotoCoreError, ClientError) as error:
            named = getattr(error, "filename", None)
            if doing == "list" and isinstance(named, str) and not self.is_s3:
                place = brief(named, LONGEST_NAME)
            raise UserError(f"cannot {doing} {place}: {_reason(error, self.is_s3)}") from error


def located(uri: str) -> tuple[Folder, str]:
    """The folder in which a file lies, and the file's name there."""
    folder, slash, name = uri.rpartition("/")
    return Folder(folder + slash if slash else "."), name


def _session() -> Any:
    """One whose requests send their bodies at once.

    With `Expect: 100-continue` the store is to ask for the body first, and for that aiohttp waits
    without end: whatever is written to a store that has stopped to answer would never fail.
    """
    from aiobotocore.session import AioSession  # as slow to load as s3fs
    from botocore.handlers import add_expect_header

    found = AioSession()
    found.unregister("before-call.s3", add_expect_header)
    return found


def _absent(error: UserError) -> bool:
    """Whether there is no such file, or what there is, is none."""
    cause = error.__cause__
    return isinstance(cause, FileNotFoundError) or getattr(cause, "errno", None) in NO_FILE


def read_uri(uri: str) -> bytes:
    """The content of one file, on disk or in S3."""
    folder, name = located(uri)
    return folder.read(name)


def _write_atomically(target: Path, data: bytes) -> None:
    with _partial(target, data) as partial:
        os.replace(partial, target)


def _create(target: Path, data: bytes) -> bool:
    for attempt in itertools.count():
        with _partial(target, data) as partial:
            try:
                os.link(partial, target)
                return True
            except FileExistsError:  # by a link of one's own too, where a reply was lost
                return os.stat(partial).st_nlink > 1
            except FileNotFoundError:  # another process has tidied up meanwhile
                if attempt == TRIES:
                    raise
            except OSError as error:
                if error.errno not in NO_LINKS:
                    raise
                return _create_without_links(target, data)
            finally:
                partial.unlink(missing_ok=True)
    raise AssertionError


def _create_without_links(target: Path, data: bytes) -> bool:
    """Where a reader may see less than the whole for a moment."""
    try:
        with open(target, "xb") as file:
            file.write(data)
    except FileExistsError:
        return False
    return True


def _status(error: BaseException) -> int:
    """The status of S3's answer; 0 where there was none."""
    cause = error if isinstance(error, ClientError) else error.__cause__
    response = getattr(cause, "response", None) or {}
    return int(response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


@contextlib.contextmanager
def _partial(target: Path, data: bytes) -> Iterator[Path]:
    """A file beside the target, with its content."""
    partial = target.with_name(TEMPORARY + uuid.uuid4().hex)
    with _removed_on_failure(partial):
        with _made(partial) as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        yield partial


def _made(path: Path) -> BinaryIO:
    """A new empty file, though another process may remove its empty folder meanwhile."""
    for attempt in itertools.count():
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            return open(path, "wb")
        except FileNotFoundError:
            if attempt == TRIES:
                raise
    raise AssertionError


@contextlib.contextmanager
def _removed_on_failure(path: Path) -> Iterator[None]:
    try:
        yield
    except BaseException:
        path.unlink(missing_ok=True)
        raise


_REASONS = {
    errno.ENOENT: "it does not exist; check the URI",
    errno.EACCES: "permission denied; check the rights of this user",
    errno.EPERM: "permission denied; check the rights of this user",
    errno.EROFS: "the file system is read-only; choose another place",
    errno.ENOSPC: "no space left on the device; free some or choose another place",
    errno.EDQUOT: "the disk quota is used up; free some or choose another place",
    errno.ENOTDIR: "a part of the path is a file, not a folder",
    errno.EEXIST: "a part of the path is a file, not a folder",
    errno.ENAMETOOLONG: "the name is too long for a file",
    errno.ELOOP: "its links lead in a circle",
    errno.EISDIR: "it is a folder, not a file",
}


def _reason(error: BaseException, is_s3: bool) -> str:
    text = brief(" ".join(str(error).split()), 500)
    if is_s3:
        if isinstance(error, PermissionError) or "credentials" in text.lower():
            hint = "check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and the bucket's policy"
            return f"access denied ({text}); {hint}"
        if isinstance(error, FileNotFoundError):
            return f"it does not exist ({text}); check the bucket and the prefix"
        return f"{text}; check AWS_ENDPOINT_URL, AWS_DEFAULT_REGION and the network"
    code = getattr(error, "errno", None) or (
        errno.ENOENT if isinstance(error, FileNotFoundError) else None
    )
    return _REASONS.get(code, text)  # type: ignore[arg-type]
