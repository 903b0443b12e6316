"""Long work that ends where nobody waits for it any more."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from imgray.errors import UserError

_WANTED: ContextVar[Callable[[], bool] | None] = ContextVar("wanted", default=None)


@contextmanager
def while_wanted(wanted: Callable[[], bool]) -> Iterator[None]:
    """Within the block, what takes long asks `wanted` now and then, and ends where it says no."""
    token = _WANTED.set(wanted)
    try:
        yield
    finally:
        _WANTED.reset(token)


def check_wanted() -> None:
    """Raise `UserError` where the work that this is part of is no longer wanted."""
    wanted = _WANTED.get()
    if wanted and not wanted():
        raise UserError("given up: nobody waits for it any more")
