"""Files without a name, for what is too large for memory: gone when they are closed."""

from __future__ import annotations

import tempfile
from typing import IO, Any

from numpy.typing import NDArray

from imgray.errors import no_room


def unnamed_file() -> IO[bytes]:
    """A new one, below TMPDIR. Raises `NoRoom` where none can be made."""
    try:
        return tempfile.TemporaryFile(prefix="imgray-", buffering=0)
    except OSError as error:
        raise no_room(error) from None


def write(file: IO[bytes], data: bytes | memoryview) -> None:
    """Write all of it, where the file stands. Raises `NoRoom` where there is no room."""
    left = memoryview(data).cast("B")
    try:
        while left:
            left = left[file.write(left) :]
    except OSError as error:
        raise no_room(error) from None


def read(file: Any, into: NDArray[Any]) -> None:
    """Fill an array from where the file stands."""
    left = into.data.cast("B")
    while left:
        count = file.readinto(left)
        if not count:
            raise EOFError("a scratch file ends too early")
        left = left[count:]
