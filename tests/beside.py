"""Programs that run beside the tests, one after another, until a test asks for what they gave."""

import json
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from pathlib import Path
from threading import Lock
from typing import Any

import pages
import pytest
import service
from running import NOTEBOOKS, Job, command, program
from two_processes import fixtures_of

TESTS = Path(__file__).parent

Ended = tuple[int, str, str]
"""Exit code, standard output and standard error."""
Programs = tuple[Path, dict[str, "Future[Any]"]]


class Beside:
    """A queue of programs, each begun when the one before has ended."""

    def __init__(self) -> None:
        self.pool = ThreadPoolExecutor(1)
        self.jobs: list[Job] = []
        self.lock, self.closed = Lock(), False

    def begin(self, start: Callable[[], Job]) -> "Future[Ended]":
        """Begin a job in its turn."""
        return self.pool.submit(lambda: self._kept(start).finish())

    def _kept(self, start: Callable[[], Job]) -> Job:
        """Begin a job that `end` knows of; after it none."""
        with self.lock:
            if self.closed:
                raise CancelledError
            job = start()
            self.jobs.append(job)
            return job

    def end(self) -> None:
        """Kill what still runs."""
        with self.lock:
            self.closed = True
        self.pool.shutdown(wait=False, cancel_futures=True)
        for job in self.jobs:
            job.kill()


@pytest.fixture(scope="session")
def _beside(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Programs]:
    """A folder, and what runs beside the tests that are to come, each on a Ray of its own.

    By the fixture that tells what it gave: the demo, and the pages' commands.
    """
    folder, beside = tmp_path_factory.mktemp("demo"), Beside()
    used = {name for item in request.session.items for name in fixtures_of(item)}
    jobs = {
        "demo": lambda: command("demo", "--models", "--json", folder=folder),
        "printed": lambda: program(TESTS / "pages.py", folder=folder),
    }
    programs = {name: beside.begin(start) for name, start in jobs.items() if name in used}
    yield folder, programs
    beside.end()


@pytest.fixture(scope="session")
def demo(_beside: Programs) -> tuple[Path, str, str]:
    """The folder in which the demo has run, and what it printed."""
    folder, programs = _beside
    return folder, *_good(programs["demo"])


@pytest.fixture(scope="session")
def printed(_beside: Programs, demo: tuple[Path, str, str]) -> dict[str, str]:
    """What each command of the pages prints, one after the other in the demo's folder."""
    found: dict[str, str] = json.loads(_good(_beside[1]["printed"])[0])
    return found


@pytest.fixture(scope="session")
def _late() -> Iterator["Future[Ended]"]:
    """The notebooks, which run beside the last tests."""
    beside = Beside()
    yield beside.begin(lambda: program(TESTS / "executed.py", *NOTEBOOKS))
    beside.end()


@pytest.fixture(scope="session")
def notebooks(_late: "Future[Ended]") -> dict[str, Any]:
    """The notebooks by path, executed, as JSON has them."""
    found: dict[str, Any] = json.loads(_good(_late)[0])
    return found


@pytest.fixture(scope="session")
def page_service(_beside: Programs, printed: dict[str, str]) -> Iterator[service.Service]:
    """The service that the pages start, of what the demo and the pages' commands have made."""
    found = service.start(*pages.served(_beside[0]))
    yield found
    found.process.kill()


def _good(ended: "Future[Ended]") -> tuple[str, str]:
    """What a program printed, and what stands on standard error."""
    code, output, error = ended.result()
    assert code == 0, error
    return output, error
