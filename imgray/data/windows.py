"""Parts of large files that lie next to each other, read together."""

from __future__ import annotations

import threading
from collections import OrderedDict
from concurrent.futures import Future

from imgray.artifacts.folder import Folder

WINDOW = 2**20
"""Bytes that one request fetches; what is longer is fetched by itself."""
HELD = 64
"""Windows that are held."""


class Windows:
    """Reads parts of the files of a folder, by windows that several threads share.

    May be sent to another process, where it holds nothing.
    """

    def __init__(self, folder: Folder) -> None:
        self.folder = folder
        self._held: OrderedDict[tuple[str, int], Future[bytes]] = OrderedDict()
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[type[Windows], tuple[Folder]]:
        return type(self), (self.folder,)

    def read(self, name: str, start: int, end: int) -> bytes:
        """Bytes of a file; fewer where it ends before. Raises `Missing`, `UserError`."""
        if end - start > WINDOW:
            return self.folder.read(name, end - start, start)
        first, last = start // WINDOW, (end - 1) // WINDOW
        whole = b"".join(self._window(name, number) for number in range(first, last + 1))
        return whole[start - first * WINDOW : end - first * WINDOW]

    def _window(self, name: str, number: int) -> bytes:
        own, key = Future[bytes](), (name, number)
        with self._lock:
            found = self._held.setdefault(key, own)
            self._held.move_to_end(key)
            if len(self._held) > HELD:
                self._held.popitem(last=False)
        if found is own:
            try:
                own.set_result(self.folder.read(name, WINDOW, number * WINDOW))
            except BaseException as error:
                with self._lock:
                    self._held.pop(key, None)
                own.set_exception(error)
        return found.result()
