"""FAISS, loaded when it is first used: what needs no index works where it is not installed.

And how many threads it takes, with the BLAS below it and below numpy.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import threading
from collections.abc import Iterator
from functools import cache
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

FEW = 16
"""Queries that are answered sooner by one thread than by all."""


@contextlib.contextmanager
def threads_for(queries: int) -> Iterator[None]:
    """Within the block FAISS takes one thread for few queries, and all for many.

    On the main thread numpy takes one; elsewhere what it takes is left, see `limit_numpy`.

    A query is work for a millisecond. Threads that share it wait for each other in loops, which
    takes ten times as long, and far longer where the machine has other work. What numpy multiplies
    is a single image's, however many are asked.

    FAISS's number of threads belongs to the thread that sets it. That of numpy's BLAS belongs to
    the process, and is put back after the block: so the main thread alone changes it, or several
    searches at once could put back what the others have set.
    """
    before = faiss.omp_get_max_threads()
    if queries <= FEW:
        faiss.omp_set_num_threads(1)
    try:
        main = threading.current_thread() is threading.main_thread()
        with _blas().limit(limits=1) if main else contextlib.nullcontext():
            yield
    finally:
        faiss.omp_set_num_threads(before)


def limit_numpy() -> None:
    """From now on numpy takes one thread, in this whole process: for one that only searches."""
    _blas().limit(limits=1)


@cache
def _blas() -> Any:
    """The BLAS of numpy, with threads of its own; FAISS's takes those that FAISS takes."""
    from threadpoolctl import ThreadpoolController  # looks through all libraries

    return ThreadpoolController().select(threading_layer="pthreads")
