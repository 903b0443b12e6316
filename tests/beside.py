"""Programs that run beside the tests, one after another, until a test asks for what they gave."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from running import Job

Ended = tuple[int, str, str]
"""Exit code, standard output and standard error."""


class Beside:
    """A queue of jobs, each begun when the one before has ended."""

    def __init__(self) -> None:
        self.pool = ThreadPoolExecutor(1)
        self.jobs: list[Job] = []

    def begin(self, start: Callable[[], Job]) -> "Future[Ended]":
        """Begin a job in its turn."""
        return self.pool.submit(self._run, start)

    def _run(self, start: Callable[[], Job]) -> Ended:
        self.jobs.append(start())
        return self.jobs[-1].finish()

    def end(self) -> None:
        """Kill what still runs."""
        self.pool.shutdown(wait=False, cancel_futures=True)
        for job in self.jobs:
            job.kill()
