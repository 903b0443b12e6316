"""What the workers of a training tell the person who waits: progress, lost workers, errors."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from imgray.drawing.plots import PLACES
from imgray.engine.progress import Progress, say
from imgray.errors import UserError

if TYPE_CHECKING:  # the watch is a process, which needs no torch
    from imgray.training.loop import Line

POLL_SECONDS = 0.5


@dataclass(frozen=True)
class Seen:
    """Steps done and to do, what is new to tell, and an error: whether ours, and its text."""

    done: int | None
    steps: int
    news: list[str]
    error: tuple[bool, str] | None


class Watch:
    """An actor that worker 0 tells of its progress, and any worker of an error that no retry mends.

    Ray Train restarts all workers after any exception. A restarted worker finds the error here and
    ends at once, so that a plain bug does not come back `retries` times.
    """

    def __init__(self) -> None:
        self.done: int | None = None
        self.steps = 0
        self.news: list[str] = []
        self.error: tuple[bool, str] | None = None

    def begin(self, workers: int) -> None:
        """A group of workers, the first or one that replaces another, is there."""
        count = f"{workers} worker{'s' if workers > 1 else ''}"
        self.news.append(f"train: goes on with {count}" if self.news else f"train: {count}")

    def lose(self) -> None:
        """A worker has gone, or failed; the others end, and a new group begins when it can."""
        if self.done is not None and not self.error:
            self.done = None
            self.news.append("train: lost a worker")

    def tell(self, done: int, steps: int, line: Line | None) -> None:
        self.done, self.steps = done, steps
        if line and line["part"] == "validate":
            self.news.append(_told(line))

    def fail(self, ours: bool, text: str) -> None:
        self.error = self.error or (ours, text)

    def look(self, known: int) -> Seen:
        """What there is to see, news from number `known` on."""
        return Seen(self.done, self.steps, self.news[known:], self.error)


def start_watch() -> Any:
    """A `Watch` on the driver's node, which no other node takes with it when it goes."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return ray.remote(Watch).options(num_cpus=0, scheduling_strategy=here).remote()


def follow(thread: threading.Thread, watch: Any, patience: float) -> None:
    """Show progress until training ends. Raises the error that a worker has met."""
    progress, active, told = None, time.monotonic(), 0
    while True:
        ended = not thread.is_alive()
        seen: Seen = ray.get(watch.look.remote(told))
        if seen.error:
            thread.join()
            raise UserError(seen.error[1]) if seen.error[0] else RuntimeError(seen.error[1])
        active = active if seen.done is None else time.monotonic()
        if time.monotonic() - active > patience:
            raise UserError(
                f"no worker started within {patience:g} s: the cluster cannot give so many, or "
                "not yet; ask for fewer --workers, or wait longer with --patience"
            )
        for news in seen.news:
            say(news)
        told += len(seen.news)
        if seen.done is not None:
            progress = progress or Progress("train", seen.steps, seen.done, "steps")
            if seen.done != progress.done:
                progress.add(seen.done - progress.done)
        if ended:
            return
        thread.join(POLL_SECONDS)


def _told(line: Line) -> str:
    named = (item for item in line.items() if item[0] not in PLACES and "/" not in item[0])
    values = [f"{name} {value:.4g}" for name, value in named]
    return f"train: epoch {line['epoch']:g}, validation: {', '.join(values)}"
