"""Join the Ray cluster that a job runs in, or start a private one on this machine."""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from types import FrameType

import ray

from imgray.errors import UserError

LOCAL_STORE_BYTES = 300 * 2**20
TASK_RETRIES = 5
REACH_SECONDS = 10
STARTS = 3
"""Of a local Ray, before it is given up."""
QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DATA_LOG_LEVEL": "ERROR",
    "RAY_BACKEND_LOG_LEVEL": "fatal",
}
"""Ray's own logs stay in its session folder; a job shows its progress and its errors."""


def named_cluster() -> str | None:
    """The cluster that jobs join, if the environment names one."""
    return os.environ.get("RAY_ADDRESS") or None


@contextmanager
def cluster() -> Iterator[None]:
    """Be connected to Ray within the block.

    `RAY_ADDRESS`, which `ray job submit` sets, names the cluster to join; without it a local one
    is started, and stopped at the end. A connection that the caller holds already is used and kept.
    """
    if ray.is_initialized():
        yield
        return
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    # Ray Data reads its variable at import, which may have been before.
    logging.getLogger("ray.data").setLevel(os.environ["RAY_DATA_LOG_LEVEL"])
    address = named_cluster()
    try:
        with quiet():
            if address:
                _reach(address)
                ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
            else:
                start_local(cores() + 2)  # coordination must never wait for the workers' slots
    except Exception as error:  # a bare one when a busy machine is slow to start
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"cannot join Ray at {address or 'this machine'}: {reason}") from None
    try:
        with _silent_once_interrupted():
            try:
                yield
            except BaseException as error:
                # Ray Data's iterators in these frames end their work, for which Ray must be there.
                traceback.clear_frames(error.__traceback__)
                raise
    finally:
        with _deaf(), quiet():
            ray.shutdown()


def _reach(address: str) -> None:
    """Knock at HOST:PORT, for which Ray itself would wait in silence, for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdecimal():
        socket.create_connection((host.strip("[]"), int(port)), REACH_SECONDS).close()


@contextmanager
def _silent_once_interrupted() -> Iterator[None]:
    """From Ctrl-C on, what Ray prints of each task that ends with it goes nowhere."""
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(before):
        yield
        return
    with open(os.devnull, "w") as nowhere, redirect_stdout(sys.stdout):

        def interrupt(number: int, frame: FrameType | None) -> None:
            sys.stdout = nowhere
            before(number, frame)

        signal.signal(signal.SIGINT, interrupt)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)


@contextmanager
def _deaf() -> Iterator[None]:
    """Ctrl-C pressed again is ignored: Ray stopped half-way would leave processes behind."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def quiet() -> Iterator[None]:
    """Keep what Ray's C++ parts print at start and end off the terminal."""
    sys.stderr.flush()
    kept = os.dup(2)
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def start_local(cpus: int, store: int = LOCAL_STORE_BYTES) -> None:
    """Start a Ray of this machine alone, of so many logical CPUs and bytes of object store.

    Nobody reclaims this machine, so no training needs a process that watches for that. Ray waits
    30 s for its node, which on a busy machine may not suffice: then another is started.
    """
    os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
    for left in reversed(range(STARTS)):
        try:
            ray.init(
                address="local",
                num_cpus=cpus,
                include_dashboard=False,
                object_store_memory=store,
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
            return
        except Exception as error:
            if not left or "timed out during startup" not in str(error):
                raise
            ray.shutdown()


def cores() -> int:
    """The CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def given_device() -> str:
    """Where networks run in a job's worker: on the GPU that Ray has given it, else on the CPU.

    Ray hides no GPU from a worker that has none of its own; taken all the same, it would be shared
    by all of them.
    """
    from imgray.features.backbones import visible_device  # torch is slow to load

    own = not ray.is_initialized() or ray.get_gpu_ids()
    return visible_device() if own else "cpu"


@dataclass(frozen=True)
class Pool:
    """How many workers a job runs, and what each holds."""

    workers: int
    cpus: int
    gpus: float


def plan_pool(workers: int | None, cpus: int, gpus: float | None) -> Pool:
    """Settle the number of workers: as asked for, else one per GPU, else one per core.

    On a cluster that scales from zero, say `--workers` (and `--gpus-per-worker`): the machines
    that are still to come cannot be counted.
    """
    have = ray.cluster_resources()
    if gpus is None:
        gpus = 1.0 if have.get("GPU", 0) >= 1 else 0.0
    if workers is None:
        slots = have.get("CPU", 1.0)
        if not named_cluster():
            slots = min(slots, cores())
        workers = int(have.get("GPU", 0) / gpus) if gpus else int(slots / cpus)
    return Pool(max(1, workers), cpus, gpus)
