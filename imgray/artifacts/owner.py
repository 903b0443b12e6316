"""Who works on an output: one driver at a time, with its workers.

A driver claims the next number below `_work/owners/`, which one alone can make; the highest owns
the output, and nobody else writes there. Beside it lies the driver's lease, a file of its own that
it writes anew while it lives. A lease is over when it is given up, when its process on this machine
has gone, or when it was not renewed for `DEAD` seconds, by the clock of the store itself.
"""

from __future__ import annotations

import contextlib
import os
import platform
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from pydantic import BaseModel, ValidationError

from imgray.artifacts import manifest
from imgray.artifacts.folder import Folder
from imgray.artifacts.manifest import OWNERS, WORK
from imgray.errors import UserError

CLAIMS, LEASES = f"{WORK}/{OWNERS}", f"{WORK}/{manifest.LEASES}"
RENEWED, DEAD = 5.0, 60.0
"""Seconds from one renewal of a lease to the next, and after which one that was not is over."""
LOOKED = 1.0
"""Seconds for which a writer believes that it still owns the output."""


class Lost(UserError):
    """Another run owns the output by now."""


class Claim(BaseModel):
    """A driver that works, or worked, on an output."""

    number: int = 0
    run: str = ""
    who: str = "an unknown run"
    since: str = "?"


class _Process(BaseModel):
    """Where a driver runs: the content of its lease."""

    machine: str = ""
    number: int = 0
    began: str = ""

    @classmethod
    def of(cls, number: int) -> _Process:
        """A process of this machine."""
        return cls(machine=_machine(), number=number, began=_began(number))

    @property
    def gone(self) -> bool:
        """Whether it is known to run no more."""
        return self.machine == _machine() and self != self.of(self.number)


@dataclass(frozen=True)
class Owned(Folder):
    """The output of a run, which nobody writes who does not own it. Raises `Lost`.

    Attributes:
        home: URI of the output, in which this folder lies.
        claim: by which it is owned.
        begun: the run that began the output, with the settings that this one goes on with.
        exclusive: whether the store lets one alone make a file.
    """

    home: str = ""
    claim: Claim = field(default_factory=Claim)
    begun: str = ""
    exclusive: bool = True

    def below(self, name: str) -> Owned:
        where = f"{self.uri.rstrip('/')}/{name}"
        return Owned(where, self.home, self.claim, self.begun, self.exclusive)

    def write(self, name: str, data: bytes) -> None:
        self._hold()
        super().write(name, data)

    def upload(self, source: Path, name: str) -> None:
        self._hold()
        super().upload(source, name)

    def remove(self, name: str) -> None:
        self._hold()
        super().remove(name)

    def check(self) -> None:
        """Raises `Lost` where another run owns the output, or nobody."""
        newest = newest_claim(Folder(self.home))
        if newest is None or newest.run != self.claim.run:
            by = f"{newest.who} since {newest.since}" if newest else "another run"
            raise Lost(f"{self.home}: taken over by {by}; this run ends")
        _LOOKED[self.home, self.claim.run] = time.monotonic()

    def _hold(self) -> None:
        last = _LOOKED.get((self.home, self.claim.run))
        if last is None or time.monotonic() - last > LOOKED:
            self.check()


_LOOKED: dict[tuple[str, str], float] = {}
"""When an output and run were last looked at."""


def newest_claim(folder: Folder) -> Claim | None:
    """Who owns an output, or owned it last; None where nobody has."""
    names = [name for name in _claims(folder) if name[-6:].isdecimal()]
    if not names:
        return None
    try:
        return Claim.model_validate_json(folder.read(names[-1]))
    except ValidationError:
        return Claim(number=int(names[-1][-6:]))


def _claims(folder: Folder) -> list[str]:
    return sorted(folder.sizes(CLAIMS))


@contextlib.contextmanager
def owning(folder: Folder, patience: float = 0.0) -> Iterator[Owned]:
    """Own an output within the block, and renew the lease.

    Args:
        folder: the output.
        patience: seconds to wait for another run to end.

    Raises:
        UserError: another run works there.
    """
    run = uuid.uuid4().hex[:8]
    lease = f"{LEASES}/{run}"
    process = _Process.of(os.getpid()).model_dump_json().encode()
    renew = partial(folder.touch, lease, process)
    renew()
    try:
        claim, exclusive = _claimed(folder, run, renew, patience)
    except BaseException:
        folder.remove(lease)
        raise
    owned = Owned(folder.uri, folder.uri, claim, exclusive=exclusive)
    ended = threading.Event()
    renewal = threading.Thread(target=_renew, args=(owned, renew, ended), daemon=True)
    renewal.start()
    try:
        yield owned
    finally:
        ended.set()
        renewal.join()
        folder.remove(lease)


def forget(folder: Folder) -> None:
    """Remove who has owned an output; the newest goes last, and one that comes meanwhile stays."""
    for name in (*filter(partial(_ended, folder), folder.sizes(LEASES)), *_claims(folder)):
        folder.remove(name)
    for place in (CLAIMS, LEASES):
        folder.prune(place)


def is_over(folder: Folder, claim: Claim) -> bool:
    """Whether nobody works on an output any more by a claim, as far as can be told at once.

    The age of its lease needs a younger one, by which to tell the time of the store.
    """
    lease = f"{LEASES}/{claim.run}"
    return not claim.run or not folder.exists(lease) or _ended(folder, lease)


def _ended(folder: Folder, lease: str) -> bool:
    with contextlib.suppress(ValidationError):
        if _Process.model_validate_json(folder.read(lease)).gone:
            return True
    now = max(folder.modified(name) for name in folder.sizes(LEASES))
    return now - folder.modified(lease) > DEAD


def _claimed(
    folder: Folder, run: str, renew: Callable[[], None], patience: float
) -> tuple[Claim, bool]:
    end = time.monotonic() + patience
    exclusive = _creates_once(folder, run)
    while True:
        renew()
        newest = newest_claim(folder)
        if newest is None or is_over(folder, newest):
            claim = _claim(newest.number + 1 if newest else 1, run)
            if folder.create(f"{CLAIMS}/{claim.number:06d}", claim.model_dump_json().encode()):
                return claim, exclusive
        elif time.monotonic() >= end:
            raise UserError(
                f"{folder.uri}: {newest.who} works there since {newest.since}; wait for it with "
                "--wait SECONDS, or stop it"
            )
        else:
            time.sleep(min(1.0, max(0.0, end - time.monotonic())))


def _creates_once(folder: Folder, run: str) -> bool:
    """Whether the store refuses to make a file a second time."""
    if not folder.is_s3:
        return True
    probe = f"{LEASES}/{run}-probe"
    try:
        return folder.create(probe, b"") and not folder.create(probe, b"")
    finally:
        folder.remove(probe)


def _renew(owned: Owned, renew: Callable[[], None], ended: threading.Event) -> None:
    while not ended.wait(RENEWED):
        try:
            owned.check()
            renew()
        except Lost:
            return
        except UserError:  # the store is away: the run itself will say so
            continue


def _claim(number: int, run: str) -> Claim:
    return Claim(
        number=number,
        run=run,
        who=f"process {os.getpid()} on {platform.node()}",
        since=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def _machine() -> str:
    """What tells this machine, and on it this container, from others."""
    parts = [platform.node()]
    for path in ("/proc/sys/kernel/random/boot_id", "/proc/self/ns/pid"):
        with contextlib.suppress(OSError):
            parts.append(os.readlink(path) if "ns" in path else Path(path).read_text().strip())
    return " ".join(parts)


def _began(number: int) -> str:
    """When a process of this machine began, where that can be known; `gone` where there is none."""
    try:
        if not os.path.exists("/proc/self/stat"):
            os.kill(number, 0)
            return ""
        state, *fields = Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()
        return "gone" if state in "ZX" else fields[18]
    except PermissionError:
        return ""
    except OSError:
        return "gone"
