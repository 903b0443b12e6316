"""Jobs submitted to a cluster's job server, as a user of a shared cluster runs them."""

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from conftest import TinyNet

from imgray.manifest import read_file, read_manifest
from imgray.storage import Folder

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent
TOKEN = "0123456789abcdef" * 4


@dataclass(frozen=True)
class Cluster:
    """A head node of our own whose job server asks for a token."""

    address: str
    env: dict[str, str]

    def submit(self, *command: str, **env: str) -> subprocess.Popen[str]:
        """Start `ray job submit` of `python COMMAND` with the repository as its working folder."""
        submit = [BIN / "ray", "job", "submit", "--address", self.address]
        return subprocess.Popen(
            [*submit, "--working-dir", ".", "--", "python", *command],
            cwd=ROOT,
            env=self.env | env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, *command: str, **env: str) -> tuple[int, str]:
        """Exit code of a submission, and all that it printed."""
        process = self.submit(*command, **env)
        text, _ = process.communicate(timeout=300)
        return process.returncode, text


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [int(one.getsockname()[1]) for one in sockets]
    for one in sockets:
        one.close()
    return ports


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    flags = ("port", "dashboard-port", "dashboard-agent-listen-port", "ray-client-server-port")
    ports = dict(zip(flags, _free_ports(len(flags)), strict=True))
    folder = tempfile.mkdtemp(prefix="ray-")
    path = f"{BIN}{os.pathsep}{os.environ['PATH']}"
    env = os.environ | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN, "PATH": path}
    head = subprocess.Popen(
        [BIN / "ray", "start", "--head", "--block", "--num-cpus", "4", "--temp-dir", folder]
        + ["--object-store-memory", str(200 * 2**20), "--include-dashboard", "true"]
        + ["--dashboard-host", "127.0.0.1", "--node-ip-address", "127.0.0.1"]
        + [f"--{flag}={port}" for flag, port in ports.items()],
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        found = Cluster(f"http://127.0.0.1:{ports['dashboard-port']}", env)
        _await_server(found, head)
        yield found
    finally:
        tree = psutil.Process(head.pid).children(recursive=True) if head.poll() is None else []
        head.terminate()
        head.communicate(timeout=60)
        for process in psutil.wait_procs(tree, timeout=10)[1]:
            process.kill()
        shutil.rmtree(folder, ignore_errors=True)


def _await_server(cluster: Cluster, head: subprocess.Popen[str], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if head.poll() is not None:
            pytest.fail(f"the head ended: {head.communicate()[0]}")
        if _ask(cluster, TOKEN) == 200:
            return
        time.sleep(0.5)
    pytest.fail(f"the job server does not answer after {seconds} s")


def _ask(cluster: Cluster, token: str | None) -> int:
    """The HTTP status with which the job server answers; 0 for none."""
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    request = urllib.request.Request(f"{cluster.address}/api/jobs/", headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return 0


def _extract(photos: Path, output: Path, net: TinyNet) -> list[str]:
    flags = ["--images", str(photos), "--output", str(output), "--shard-size", "8"]
    return ["jobs/extract.py", *flags, "--workers", "1", *net.flags]


def test_extract_index_and_search_by_submission(
    cluster: Cluster, photos: Path, tiny_net: TinyNet, tmp_path: Path
) -> None:
    features, index = tmp_path / "features", tmp_path / "index"
    code, text = cluster.run(*_extract(photos, features, tiny_net))
    assert code == 0, text
    assert "40 images done, 0 rejected, 40 listed" in text
    made = ["--features", str(features), "--output", str(index)]
    code, text = cluster.run("jobs/index.py", *made, "--feature", tiny_net.name, "--shards", "2")
    assert code == 0, text
    query = sorted(photos.rglob("*.jpg"))[0]
    flags = ["--index", str(index), "--query", str(query), "--top", "3", "--json"]
    code, text = cluster.run("jobs/search.py", *flags)
    assert code == 0, text
    answer = json.loads(next(line for line in text.splitlines() if line.startswith("{")))
    first = answer["answers"][0]["results"][0]
    assert first["id"] == query.relative_to(photos).as_posix()


def test_a_failed_job_says_why(cluster: Cluster, tiny_net: TinyNet, tmp_path: Path) -> None:
    """Ray's client exits with 1 whatever the code of the script."""
    code, text = cluster.run(*_extract(tmp_path / "missing", tmp_path / "out", tiny_net))
    assert code == 1
    assert "error: cannot list" in text
    assert "it does not exist; check the URI" in text
    assert "exit code 2" in text
    assert not (tmp_path / "out").exists()


def test_two_jobs_at_once_are_each_as_if_alone(
    cluster: Cluster, photos: Path, tiny_net: TinyNet, tmp_path: Path
) -> None:
    outputs = [tmp_path / "one", tmp_path / "two"]
    jobs = [cluster.submit(*_extract(photos, output, tiny_net)) for output in outputs]
    for job in jobs:
        text, _ = job.communicate(timeout=300)
        assert job.returncode == 0, text
    made = [_content(output) for output in outputs]
    assert made[0] == made[1]
    assert sum(name.startswith("part-") for name in made[0]) == 5


def _content(output: Path) -> dict[str, bytes]:
    folder = Folder(str(output))
    manifest = read_manifest(folder, "features")
    return {entry.name: read_file(folder, entry) for entry in manifest.files}


@pytest.mark.parametrize(("token", "status"), [(None, 401), ("f" * 64, 403)])
def test_a_submission_without_the_token_is_refused(
    cluster: Cluster, photos: Path, tiny_net: TinyNet, tmp_path: Path, token: str, status: int
) -> None:
    assert _ask(cluster, token) == status
    env = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token} if token else {}
    stripped = {k: v for k, v in cluster.env.items() if not k.startswith("RAY_AUTH_")}
    other = Cluster(cluster.address, stripped | env | {"HOME": str(tmp_path)})
    code, text = other.run(*_extract(photos, tmp_path / "out", tiny_net))
    assert code != 0
    assert "401" in text or "403" in text or "token" in text.lower()
    assert not (tmp_path / "out").exists()
