"""Jobs that end in the middle, as a kill would end them."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import pytest


class Stopped(BaseException):
    """Stands for whatever ends a job."""


@contextmanager
def stopped_at(module: Any, function: str) -> Iterator[None]:
    """What runs within the block ends where it calls a function of a module, and must do so."""
    with patch.object(module, function, side_effect=Stopped), pytest.raises(Stopped):
        yield
