"""Which index version answers: the registry and its replicas in one process, without Ray."""

import asyncio
import threading
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from imgray.artifacts.folder import Folder
from imgray.artifacts.manifest import Manifest, publish
from imgray.errors import UserError
from imgray.serving import versions
from imgray.serving.versions import Holder, Registry, Version, find


class Handle:
    """Calls the registry as a handle of Serve does."""

    def __init__(self, registry: Registry) -> None:
        self.registry = registry

    def __getattr__(self, name: str) -> "Handle":
        found = Handle(self.registry)
        found.__dict__["method"] = lambda *args: getattr(self.registry, name)(*args)
        return found

    async def remote(self, *args: Any) -> Any:
        return await self.__dict__["method"](*args)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(versions, "POLL_SECONDS", 0.1)
    monkeypatch.setattr(versions, "BUSY_SECONDS", 0.02)
    monkeypatch.setattr(versions, "GONE_SECONDS", 0.3)


@pytest.fixture
def uris(tmp_path: Path) -> list[str]:
    """Three published indexes, without files."""
    found = [str(tmp_path / name) for name in "abc"]
    for number, uri in enumerate(found):
        publish(Folder(uri), Manifest(kind="index", config={"n": number}, about={}, files=[]))
    return found


def run(
    uris: list[str],
    opens: list[Callable[[Version], Any]],
    work: Callable[[Registry, list[Holder[Any]]], Coroutine[Any, Any, None]],
) -> None:
    """`work` with a registry that names the first index, and a holder for each of `opens`."""

    async def main() -> None:
        registry = Registry()
        await registry.reconfigure({"index": uris[0]})
        holders = [Holder(Handle(registry), str(n), open) for n, open in enumerate(opens)]
        for holder in holders:
            await holder.start()
        try:
            await work(registry, holders)
        finally:
            for holder in holders:
                holder.following.cancel()

    asyncio.run(main())


async def _until(reached: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not reached():
            await asyncio.sleep(0.01)


def test_a_version_is_current_when_every_replica_holds_it(uris: list[str]) -> None:
    """However long one of them takes: longer than a silent one would be waited for."""
    gate = threading.Event()

    def slow(version: Version) -> str:
        if version.uri != uris[0]:
            gate.wait(10)
        return version.uri

    async def work(registry: Registry, holders: list[Holder[Any]]) -> None:
        moving = asyncio.create_task(registry.move(uris[1], None))
        await asyncio.sleep(3 * versions.GONE_SECONDS)
        assert not moving.done()
        assert all(holder.current == find(uris[0]) for holder in holders)
        gate.set()
        assert await moving == find(uris[1])
        await _until(lambda: all(holder.current == find(uris[1]) for holder in holders))
        assert await holders[0].get(holders[0].current) == uris[1]

    run(uris, [slow, lambda version: version.uri], work)


def test_a_version_that_one_replica_cannot_open_is_refused(uris: list[str]) -> None:
    tries = []

    def broken(version: Version) -> str:
        tries.append(version.uri)
        if version.uri == uris[1] and tries.count(uris[1]) == 1:
            raise UserError("shard-00001.faiss: digest differs")
        return version.uri

    async def work(registry: Registry, holders: list[Holder[Any]]) -> None:
        with pytest.raises(UserError, match="digest differs"):
            await registry.move(uris[1], None)
        assert await registry.move(uris[0], None) == find(uris[0])
        assert all(holder.current == find(uris[0]) for holder in holders)
        await registry.move(uris[1], None)  # mended meanwhile
        await _until(lambda: all(holder.current == find(uris[1]) for holder in holders))

    run(uris, [broken, lambda version: version.uri], work)


def test_a_swap_that_takes_too_long_is_given_up(uris: list[str]) -> None:
    async def work(registry: Registry, holders: list[Holder[Any]]) -> None:
        with pytest.raises(UserError, match="not held by every replica within"):
            await registry.move(uris[1], 0.2)
        assert registry.state is not None
        assert (registry.state.current, registry.state.incoming) == (find(uris[0]), None)

    def slow(version: Version) -> None:
        time.sleep(0 if version.uri == uris[0] else 0.6)

    run(uris, [slow], work)


def test_a_registry_that_died_learns_what_was_current(uris: list[str]) -> None:
    async def work(registry: Registry, holders: list[Holder[Any]]) -> None:
        await registry.move(uris[1], None)
        await _until(lambda: holders[0].current == find(uris[1]))
        reborn = Registry()
        await reborn.reconfigure({"index": uris[0]})
        holders[0].registry = Handle(reborn)
        await _until(lambda: reborn.state is not None and reborn.state.turn > 0)
        assert reborn.state is not None
        assert reborn.state.current == find(uris[1])
        assert holders[0].current == find(uris[1])
        await reborn.move(uris[2], None)
        await _until(lambda: holders[0].current == find(uris[2]))

    run(uris, [lambda version: version.uri], work)


def test_a_lost_replica_holds_nothing_up(uris: list[str]) -> None:
    async def work(registry: Registry, holders: list[Holder[Any]]) -> None:
        await _until(lambda: len(registry.members) == 2)
        holders[0].following.cancel()
        async with asyncio.timeout(5):
            await registry.move(uris[1], None)

    run(uris, [lambda version: version.uri] * 2, work)


def test_a_replica_opens_once_and_keeps_two(uris: list[str]) -> None:
    opened = []

    def open(version: Version) -> str:
        opened.append(version.uri)
        time.sleep(0.05)
        return version.uri

    async def work(registry: Registry, holders: list[Holder[Any]]) -> None:
        (holder,) = holders
        asked = [holder.get(find(uris[1])) for _ in range(5)]
        assert await asyncio.gather(*asked) == [uris[1]] * 5
        assert opened == uris[:2]
        await registry.move(uris[2], None)
        await _until(lambda: holder.current == find(uris[2]))
        assert {version.uri for version in holder.opening} <= set(uris)
        assert len(holder.opening) <= 3
        await registry.move(uris[1], None)
        await _until(lambda: holder.current == find(uris[1]))
        assert opened == uris

    run(uris, [open], work)


def test_another_artifact_at_the_place_is_no_version(uris: list[str]) -> None:
    version = find(uris[0])
    Folder(uris[0]).remove("manifest.json")
    publish(Folder(uris[0]), Manifest(kind="index", config={"n": 9}, about={}, files=[]))
    with pytest.raises(UserError, match="holds version"):
        version.open()


def test_a_configured_index_that_cannot_be_served_is_refused(uris: list[str]) -> None:
    async def work(registry: Registry, holders: list[Holder[Any]]) -> None:
        await registry.reconfigure({"index": uris[0] + "-no"})
        assert registry.state is not None
        assert registry.state.current == find(uris[0])
        with pytest.raises(UserError, match="-no"):
            await Registry().reconfigure({"index": uris[0] + "-no"})

    run(uris, [lambda version: version.uri], work)
