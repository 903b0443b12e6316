"""Who works on an output: one driver at a time, with its workers.

A driver claims the next number below `_work/owners/`, which one alone can make; the highest owns
the output, and nobody else changes it. Beside it lies the driver's lease, a file of its own that it
has written anew while it lives. A lease is over when it is given up, when its process on this
machine has gone, or when it was not renewed for `DEAD` seconds, by the clock of the store itself.
"""

from __future__ import annotations

import contextlib
import os
import platform
import re
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from pydantic import BaseModel, ValidationError

from imgray.artifacts.folder import Folder
from imgray.artifacts.manifest import CLAIMS, LEASES, RUN, WORK
from imgray.errors import UserError

RENEWED, DEAD = 5.0, 60.0
"""Seconds from one renewal of a lease to the next, and after which one that was not is over."""
LOOKED = 1.0
"""Seconds for which a writer of data files, whose notes follow, believes that it is the owner."""
BOOT = Path("/proc/sys/kernel/random/boot_id")
_CLAIM = re.compile(rf"{CLAIMS}/(\d{{6,9}})")


class Lost(UserError):
    """Another run owns the output by now."""


class Claim(BaseModel):
    """A driver that works, or worked, on an output."""

    run: str = ""
    who: str = "another run"
    since: str = "some time"


class _Process(BaseModel):
    """Where a driver runs: the content of its lease."""

    machine: str = ""
    number: int = 0
    began: str = ""

    @classmethod
    def own(cls) -> _Process:
        """This process."""
        return cls(machine=_machine(), number=os.getpid(), began=_began(os.getpid()))

    @property
    def gone(self) -> bool:
        """Whether it is known to run no more; of another machine's nothing is known."""
        if not self.machine or self.machine != _machine():
            return False
        began = _began(self.number)
        return not _runs(self.number) or bool(began and self.began and began != self.began)


@dataclass(frozen=True)
class Owned(Folder):
    """The output of a run, or a folder in it, which nobody changes who does not own it.

    Attributes:
        home: the output's own absolute URI.
        claim: by which it is owned.
        begun: the run that began the output, with the settings that this one goes on with.
        exclusive: whether the store lets one alone make a file.
    """

    home: str = ""
    claim: Claim = field(default_factory=Claim)
    begun: str = ""
    exclusive: bool = True

    def below(self, name: str) -> Owned:
        where = f"{self.absolute.rstrip('/')}/{name}"
        return Owned(where, self.home, self.claim, self.begun, self.exclusive)

    def hold(self, name: str, sure: bool = False) -> None:
        """Raises `Lost` where another run owns the output."""
        noted = f"{self.absolute}/{name}".startswith(f"{self.home}/{WORK}/")
        last = _LOOKED.get((self.home, self.claim.run))
        if sure or noted or last is None or time.monotonic() - last > LOOKED:
            self.check()

    def check(self) -> None:
        """Raises `Lost` where another run owns the output, or nobody."""
        newest = newest_claim(Folder(self.home))
        if newest is None or newest[1].run != self.claim.run:
            by = newest[1] if newest else Claim()
            raise Lost(f"{self.home}: taken over by {by.who} since {by.since}; this run ends")
        _LOOKED[self.home, self.claim.run] = time.monotonic()


_LOOKED: dict[tuple[str, str], float] = {}
"""When an output and run were last looked at."""


def newest_claim(folder: Folder) -> tuple[int, Claim] | None:
    """The number and claim of who owns an output, or owned it last; None where nobody has."""
    while claims := _claims(folder):
        number = max(claims)
        data = folder.find(claims[number])
        if data is not None:
            with contextlib.suppress(ValidationError):
                return number, Claim.model_validate_json(data)
            return number, Claim()
    return None


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
    renew = partial(folder.touch, lease, _Process.own().model_dump_json().encode())
    renew()
    try:
        exclusive = not folder.is_s3 or _creates_once(folder, run)
        claim = _claimed(folder, run, renew, patience)
    except BaseException:
        with contextlib.suppress(UserError):
            folder.remove(lease)
        raise
    owned = Owned(folder.uri, folder.absolute, claim, exclusive=exclusive)
    ended = threading.Event()
    renewal = threading.Thread(target=_renew, args=(owned, renew, ended), daemon=True)
    renewal.start()
    try:
        yield owned
    finally:
        ended.set()
        renewal.join(RENEWED)
        with contextlib.suppress(UserError):
            renew()
            _leave(folder, owned, lease)


def _leave(folder: Folder, owned: Owned, lease: str) -> None:
    """Give up the lease; where no work is left to go on with, also who has owned it.

    The own claim goes last of them, so that until then nobody makes one.
    """
    newest = newest_claim(folder)
    if newest and newest[1].run == owned.claim.run and not folder.exists(RUN):
        claims = _claims(folder)
        names = [name for name in folder.sizes(CLAIMS) if name not in claims.values()]
        for name in (*names, *(claims[number] for number in sorted(claims))):
            folder.remove(name)
        for name in folder.sizes(LEASES):
            if name != lease and _ended(folder, name, folder.modified(lease)):
                folder.remove(name)
    folder.remove(lease)
    for place in (CLAIMS, LEASES, WORK, ""):
        folder.prune(place)


def _claims(folder: Folder) -> dict[int, str]:
    """The names of claims by number."""
    found = map(_CLAIM.fullmatch, folder.sizes(CLAIMS))
    return {int(one[1]): one[0] for one in found if one}


def _claimed(folder: Folder, run: str, renew: Callable[[], None], patience: float) -> Claim:
    end = time.monotonic() + patience
    claim = Claim(
        run=run,
        who=f"process {os.getpid()} on {platform.node()}",
        since=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    while True:
        renew()
        newest, now = newest_claim(folder), folder.modified(f"{LEASES}/{run}")
        lease = f"{LEASES}/{newest[1].run}" if newest and newest[1].run else None
        if lease is None or _ended(folder, lease, now):
            name = f"{CLAIMS}/{newest[0] + 1 if newest else 1:06d}"
            if folder.create(name, claim.model_dump_json().encode()):
                return claim
            newest = newest_claim(folder)
        if time.monotonic() >= end:
            other = newest[1] if newest else Claim()
            raise UserError(
                f"{folder.uri}: {other.who} works there since {other.since}; wait for it with "
                "--wait SECONDS, or stop it"
            )
        time.sleep(min(1.0, max(0.05, end - time.monotonic())))


def _ended(folder: Folder, lease: str, now: float | None) -> bool:
    """Whether a lease is over, at a time that the store has told; None where that is not known."""
    data, then = folder.find(lease), folder.modified(lease)
    if data is None or then is None:
        return True
    with contextlib.suppress(ValidationError):
        if _Process.model_validate_json(data).gone:
            return True
    return now is not None and abs(now - then) > DEAD


def _creates_once(folder: Folder, run: str) -> bool:
    """Whether the store refuses to make a file a second time."""
    probe = f"{CLAIMS}/probe-{run}"
    try:
        return folder.create(probe, b"1") and not folder.create(probe, b"2")
    finally:
        with contextlib.suppress(UserError):
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


def _machine() -> str:
    """What tells this machine, and on it this container, from others; empty where nothing does."""
    try:
        return f"{platform.node()} {BOOT.read_text().strip()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _runs(number: int) -> bool:
    """Whether there is a process of this number, so far as can be known."""
    try:
        os.kill(number, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    return _state(number)[:1] not in (["Z"], ["X"])


def _began(number: int) -> str:
    """When a process of this machine began; empty where that cannot be known."""
    return "".join(_state(number)[19:20])


def _state(number: int) -> list[str]:
    try:
        return Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []
