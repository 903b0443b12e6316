"""Prometheus metrics of the service, which Ray exports on every node as `ray_imgray_*`."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

from ray import serve
from ray.serve.metrics import Counter, Gauge, Histogram

SECONDS = [0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30]
SIZES = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0]


class Metrics:
    """All of them. Made in a replica, so that Serve adds its name and its deployment's."""

    def __init__(self) -> None:
        self.requests = Counter(
            "imgray_requests",
            "Requests answered, by route and status.",
            ("endpoint", "status"),  # type: ignore[arg-type]  # Ray takes any number of tags
        )
        self.rejected = Counter(
            "imgray_rejected", "Requests refused unheard, by reason.", ("reason",)
        )
        self.pending = Gauge("imgray_pending", "Requests in work in this HTTP replica.")
        self.batch_size = Histogram(
            "imgray_batch_size", "Pictures or texts per forward pass.", SIZES
        )
        self.stage_seconds = Histogram(
            "imgray_stage_seconds",
            "Time in each stage of a request, waiting for a batch or a replica included.",
            SECONDS,
            ("stage",),
        )


@cache
def metrics() -> Metrics:
    """The metrics of this process."""
    return Metrics()


@contextmanager
def timed(stage: str) -> Iterator[None]:
    """Observe the time that a block takes."""
    began = time.perf_counter()
    try:
        yield
    finally:
        metrics().stage_seconds.observe(time.perf_counter() - began, {"stage": stage})


def replica_name() -> str:
    """The name of this replica."""
    return str(serve.get_replica_context().replica_id.unique_id)
