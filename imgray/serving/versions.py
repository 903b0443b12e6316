"""Which version of the index answers: one registry, and replicas that hold what it names.

A version is a published index. A swap has two steps: the registry announces the incoming version,
every replica opens and verifies it beside the current one; when all have, the registry names it
the current one. A request carries its version from end to end, so no answer mixes two.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

from imgray.artifacts.folder import Folder
from imgray.artifacts.manifest import Manifest, read_manifest
from imgray.errors import UserError

KEPT = 2
POLL_SECONDS, BUSY_SECONDS = 5.0, 0.2
GONE_SECONDS = 3 * POLL_SECONDS
log = logging.getLogger("ray.serve")

Opened = TypeVar("Opened")


@dataclass(frozen=True)
class Version:
    """A published index: where it lies, and the digest of its manifest."""

    uri: str
    digest: str

    def open(self) -> tuple[Folder, Manifest]:
        """Raises `UserError` when another artifact lies there now."""
        folder = Folder(self.uri)
        manifest = read_manifest(folder, "index")
        if manifest.digest != self.digest:
            raise UserError(f"{self.uri}: holds version {manifest.digest[:12]} now")
        return folder, manifest


def find(uri: str) -> Version:
    """The version that lies at a URI. Raises `UserError` where there is no index."""
    folder = Folder(uri)
    return Version(folder.absolute, read_manifest(folder, "index").digest)


@dataclass(frozen=True)
class State:
    """What the registry says: a higher turn is newer."""

    turn: int
    current: Version
    incoming: Version | None = None


class Registry:
    """The deployment, of one replica, that says which version is current.

    `user_config: {index: URI}` names it; a changed one swaps, as `move` does. A registry that died
    starts from that again, and learns from any replica's report what was current since.
    """

    def __init__(self) -> None:
        self.state: State | None = None
        self.changed = asyncio.Condition()
        self.moving = asyncio.Lock()
        self.members: dict[str, tuple[float, frozenset[Version]]] = {}
        self.failures: dict[str, str] = {}

    async def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Called by Serve; a URI that cannot be served is refused, and the old index stays."""
        try:
            await self.move(user_config["index"], None)
        except UserError as error:
            if self.state is None:
                raise
            log.error("index not changed: %s", error)

    async def move(self, uri: str, seconds: float | None) -> Version:
        """Make the index at a URI the current one, once every replica holds it.

        Raises:
            UserError: it cannot be opened, by the registry or by a replica, or not in time.
        """
        version = await asyncio.to_thread(find, uri)
        async with self.moving:
            if self.state is None:
                await self._say(State(0, version))
            elif version != self.state.current:
                await self._swap(version, seconds)
        return version

    async def _swap(self, version: Version, seconds: float | None) -> None:
        assert self.state is not None
        before = self.state
        self.failures = {}
        await self._say(State(before.turn + 1, before.current, version))
        try:
            async with asyncio.timeout(seconds):
                await self._held(version)
            await self._say(State(self.state.turn + 1, version))
        except BaseException as error:
            await self._say(State(self.state.turn + 1, before.current))
            if isinstance(error, TimeoutError):
                text = f"{version.uri}: not held by every replica within {seconds:g} s"
                raise UserError(text) from None
            raise

    async def _held(self, version: Version) -> None:
        """Wait until every replica that still reports holds a version."""
        async with self.changed:
            while True:
                if self.failures:
                    raise UserError(next(iter(self.failures.values())))
                oldest = time.monotonic() - GONE_SECONDS
                alive = [holds for seen, holds in self.members.values() if seen > oldest]
                if all(version in holds for holds in alive):
                    return
                await self._wait(1.0)

    async def _say(self, state: State) -> None:
        async with self.changed:
            self.state = state
            self.changed.notify_all()

    async def current(self) -> State:
        """What is said now, for a replica that starts."""
        assert self.state is not None
        return self.state

    async def report(
        self, member: str, knows: State, holds: frozenset[Version], failure: str | None, wait: float
    ) -> State:
        """A replica's report; answered when there is something newer, or after `wait` seconds."""
        async with self.changed:
            assert self.state is not None
            if knows.turn > self.state.turn:
                self.state = replace(knows, incoming=None)
            self.members[member] = (time.monotonic(), holds)
            if failure:
                self.failures[member] = failure
            self.changed.notify_all()
            end = time.monotonic() + wait
            while self.state.turn <= knows.turn and time.monotonic() < end:
                await self._wait(end - time.monotonic())
            self.members[member] = (time.monotonic(), holds)
            return self.state

    async def _wait(self, seconds: float) -> None:
        """Wait for news, but not longer. Not by `wait_for`: a task of its own lacks the lock."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self.changed.wait()

    def leave(self, member: str) -> None:
        """A replica that ends."""
        self.members.pop(member, None)


class Holder(Generic[Opened]):
    """The versions that a replica holds: the current one, and the one before or to come.

    Args:
        registry: handle of the registry.
        member: the replica's name.
        open: opens a version, in a thread.
    """

    def __init__(self, registry: Any, member: str, open: Callable[[Version], Opened]) -> None:
        self.registry, self.member, self.open = registry, member, open
        self.opening: dict[Version, asyncio.Task[Opened]] = {}
        self.state: State
        self.following: asyncio.Task[None]

    async def start(self) -> None:
        """Open the current version, and follow the registry from now on."""
        self.state = await self.registry.current.remote()
        await self.get(self.state.current)
        self.following = asyncio.create_task(self._follow())

    @property
    def current(self) -> Version:
        """The version that new requests are answered from."""
        return self.state.current

    async def get(self, version: Version) -> Opened:
        """An opened version; opened now if it is not held. Raises `UserError`."""
        return await asyncio.shield(self._begin(version))

    def _begin(self, version: Version) -> asyncio.Task[Opened]:
        """Open a version beside the newest and the current one; older ones are forgotten."""
        if version not in self.opening:
            self.opening[version] = asyncio.create_task(asyncio.to_thread(self.open, version))
            for old in list(self.opening)[:-KEPT]:
                if old != self.state.current:
                    del self.opening[old]
        return self.opening[version]

    async def _follow(self) -> None:
        while True:
            try:
                said = await self._report()
            except Exception as error:
                log.warning("the registry does not answer: %s", error)
                await asyncio.sleep(1.0)
                continue
            if said.turn >= self.state.turn:
                self.state = said
                self._begin(said.incoming or said.current)

    async def _report(self) -> State:
        """Tell what is held and what could not be opened: often while something is opening."""
        done = {version: task for version, task in self.opening.items() if task.done()}
        failed = {version: task for version, task in done.items() if task.exception()}
        failures = [" ".join(str(task.exception()).split()) for task in failed.values()]
        for version in failed:
            del self.opening[version]
        held = frozenset(done.keys() - failed.keys())
        wait = POLL_SECONDS if len(done) == len(self.opening) + len(failed) else BUSY_SECONDS
        failure = failures[0] if failures else None
        said: State = await self.registry.report.remote(
            self.member, self.state, held, failure, wait
        )
        return said
