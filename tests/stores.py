"""Where an artifact may lie: on disk, in an S3 without conditions, in one that keeps to them."""

from collections.abc import Iterator
from pathlib import Path

import fsspec.asyn
import pytest
import s3fs
from conftest import S3

from imgray.artifacts.folder import Folder


@pytest.fixture(scope="session")
def conditional() -> Iterator[str]:
    """The endpoint of an S3 that keeps to conditions, as AWS does; rclone's passes over them."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    yield "http://{}:{}".format(*server.get_host_and_port())
    server.stop()


@pytest.fixture(params=["disk", "S3", "conditional S3"])
def folder(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Folder]:
    """A place that does not exist yet."""
    if request.param == "disk":
        yield Folder(str(tmp_path / "out"))
        return
    if request.param == "conditional S3":
        monkeypatch.setenv("AWS_ENDPOINT_URL", request.getfixturevalue("conditional"))
        s3fs.S3FileSystem.clear_instance_cache()
        s3fs.S3FileSystem().makedirs("owners", exist_ok=True)
        yield Folder(f"s3://owners/{tmp_path.name}")
        s3fs.S3FileSystem.clear_instance_cache()
    else:
        s3: S3 = request.getfixturevalue("s3")
        yield Folder(s3.uri(f"owners/{tmp_path.name}"))


def reconnect() -> None:
    """In a process that is forked: forget the connections of the one before."""
    fsspec.asyn.iothread[0] = fsspec.asyn.loop[0] = None
    fsspec.asyn.reset_lock()
    s3fs.S3FileSystem.clear_instance_cache()
