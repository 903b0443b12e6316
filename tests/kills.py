"""What a SIGKILL at each change in a folder would leave of a job: copies, made as the job goes on.

A change is one of the file system, or a request that changes objects of an S3.
"""

import asyncio
import contextlib
import multiprocessing
import os
import pickle
import shutil
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from aiobotocore.client import AioBaseClient

from imgray.artifacts.folder import Folder

CHANGES = {"os.rename", "os.link", "os.remove", "os.rmdir", "os.mkdir", "open", "shutil.rmtree"}
READS = ("Get", "Head", "List")
fork = multiprocessing.get_context("fork")


class _Files:
    """Copies a folder before each change of its files; where several threads work, one waits."""

    context = fork

    def __init__(self, folder: Folder, into: Path) -> None:
        self.root, self.into, self.count = folder.root, into, 0
        self.lock, self.owner = threading.Lock(), 0
        sys.addaudithook(self)

    def __call__(self, event: str, args: tuple[Any, ...]) -> None:
        if event not in CHANGES or not args or self.root not in str(args[0]):
            return
        if event == "open" and not str(args[1] or "").startswith(("w", "x")):
            return
        if self.owner == threading.get_ident():  # the copying itself
            return
        with self.lock:
            self.owner = threading.get_ident()
            while os.path.exists(self.root):
                with contextlib.suppress(OSError):  # what another thread has begun before
                    shutil.copytree(self.root, self.into / f"{self.count:03}")
                    break
                shutil.rmtree(self.into / f"{self.count:03}")
            self.count, self.owner = self.count + 1, 0

    @staticmethod
    def lay(folder: Folder, copy: Path) -> None:
        """Have a folder be as it was copied."""
        shutil.rmtree(folder.root, ignore_errors=True)
        if copy.exists():
            shutil.move(copy, folder.root)


class _Objects:
    """Copies what lies below an URI of S3 before each request that changes something."""

    context = multiprocessing.get_context("spawn")

    def __init__(self, folder: Folder, into: Path) -> None:
        self.folder, self.into, self.count, self.lock = folder, into, 0, asyncio.Lock()
        call = AioBaseClient._make_api_call

        async def copied(client: Any, operation: str, given: dict[str, Any]) -> Any:
            if not operation.startswith(READS):
                async with self.lock:
                    await self._copy(client, call)
                    return await call(client, operation, given)
            return await call(client, operation, given)

        AioBaseClient._make_api_call = copied

    async def _copy(self, client: Any, call: Any) -> None:
        bucket, _, prefix = f"{self.folder.root}/".partition("/")
        found = await call(client, "ListObjectsV2", {"Bucket": bucket, "Prefix": prefix})
        assert not found["IsTruncated"]
        copy = {}
        for one in found.get("Contents", ()):
            answer = await call(client, "GetObject", {"Bucket": bucket, "Key": one["Key"]})
            copy[one["Key"].removeprefix(prefix)] = await answer["Body"].read()
        (self.into / f"{self.count:03}").write_bytes(pickle.dumps(copy))
        self.count += 1

    @staticmethod
    def lay(folder: Folder, copy: Path) -> None:
        """Have objects be as they were copied."""
        folder.remove_many(list(folder.sizes()))
        for name, data in pickle.loads(copy.read_bytes()).items():
            folder.write(name, data)


def left_by_kills(
    folder: Folder, work: Callable[[], Any], least: int, into: Path
) -> Iterator[None]:
    """Run a job, then lay its folder as it was before each of its changes, some at least.

    The job runs in a process of its own, so that its lease ends with it: a fork, or where there are
    connections, a new one, to which `work` can be sent. The copies lie in `into`.
    """
    into.mkdir()
    kind = _Objects if folder.is_s3 else _Files
    child = kind.context.Process(target=_run, args=(kind, folder, work, into))
    child.start()
    child.join()
    assert child.exitcode == 0
    count = int((into / "count").read_text())
    assert count >= least
    for at in range(count):
        kind.lay(folder, into / f"{at:03}")
        yield
    shutil.rmtree(into)


def _run(kind: Callable[..., Any], folder: Folder, work: Callable[[], Any], into: Path) -> None:
    copies = kind(folder, into)
    work()
    (into / "count").write_text(str(copies.count))
    os._exit(0)
