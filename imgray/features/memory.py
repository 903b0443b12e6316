"""How a worker that runs networks on a CPU gets memory for their maps."""

from __future__ import annotations

import ctypes
import platform

TRIM_THRESHOLD, MMAP_MAX, ARENA_MAX = -1, -4, -8
"""Parameters of mallopt(3)."""
KEPT = 2**31 - 1
"""Bytes of freed memory at most that lie at the heap's end before the kernel is given them back."""


def keep_freed() -> None:
    """Have this process keep what it frees, for the next forward pass in any of its threads.

    The C library asks the kernel for every large map anew and gives it back at once, so that a pass
    takes a page fault, and zeroes, for each page that it writes: up to two thirds of its time. What
    is kept is about the most that was ever used at once. For processes of our own alone: a worker
    or a replica, not the user's. Other libraries than glibc have other ways, and stay as they are.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    library = ctypes.CDLL(None)
    for parameter, value in ((MMAP_MAX, 0), (TRIM_THRESHOLD, KEPT), (ARENA_MAX, 1)):
        library.mallopt(parameter, value)
