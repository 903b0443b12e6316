"""What a SIGKILL at each change of files would leave of a job: copies, made as the job goes on."""

import contextlib
import multiprocessing
import os
import shutil
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

CHANGES = {"os.rename", "os.link", "os.remove", "os.rmdir", "os.mkdir", "open", "shutil.rmtree"}
fork = multiprocessing.get_context("fork")


class _Copies:
    """Copies a folder before each change of its files; where several threads work, one waits."""

    def __init__(self, root: str, into: Path) -> None:
        self.root, self.into, self.count = root, into, 0
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


def left_by_kills(root: str, work: Callable[[], Any], least: int) -> Iterator[None]:
    """Run a job, then lay its folder as it was before each of its changes, some at least.

    The job runs in a process of its own, so that its lease ends with it.
    """
    into = Path(f"{root}-copies")
    into.mkdir()

    def run() -> None:
        copies = _Copies(root, into)
        work()
        (into / "count").write_text(str(copies.count))
        os._exit(0)

    child = fork.Process(target=run)
    child.start()
    child.join()
    count = int((into / "count").read_text())
    assert count >= least
    for at in range(count):
        shutil.rmtree(root, ignore_errors=True)
        if (copy := into / f"{at:03}").exists():
            shutil.move(copy, root)
        yield
    shutil.rmtree(into)
