"""FAISS, loaded when it is first used: what needs no index works where it is not installed."""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

from imgray.errors import UserError


def check_installed() -> None:
    """Raises `UserError` where there is no FAISS."""
    if importlib.util.find_spec("faiss") is None:
        raise UserError(
            "an index needs FAISS, which is not installed: pip install 'imgray[cpu]', or "
            "'imgray[gpu]' where there is an NVIDIA GPU"
        )


class _Faiss:
    """The module `faiss`, for its attributes."""

    def __getattr__(self, name: str) -> Any:
        check_installed()
        return getattr(importlib.import_module("faiss"), name)


faiss: Any = _Faiss()
