"""A head node of our own, as a shared cluster has one: dashboard, jobs and Serve, with a token."""

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
import requests
from running import ROOT, free_port

BIN = Path(sys.executable).parent
TOKEN = "0123456789abcdef" * 4


@dataclass(frozen=True)
class Cluster:
    """The head: the address of its dashboard, and what its clients have in their environment."""

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
        text, _ = process.communicate(timeout=900)
        return process.returncode, text

    def ask(self, path: str, token: str | None = TOKEN) -> int:
        """The HTTP status with which the dashboard answers; 0 for none."""
        try:
            return self.get(path, token).status_code
        except requests.RequestException:
            return 0

    def get(self, path: str, token: str | None = TOKEN) -> requests.Response:
        """What the dashboard answers."""
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        return requests.get(f"{self.address}/{path}", headers=headers, timeout=10)


@contextlib.contextmanager
def start(**environment: str) -> Iterator[Cluster]:
    """Start a head on free ports; end it, and all that it has started, by process id."""
    flags = ("port", "dashboard-port", "dashboard-agent-listen-port", "ray-client-server-port")
    ports = {flag: free_port() for flag in flags}
    folder = tempfile.mkdtemp(prefix="ray-")
    path = f"{BIN}{os.pathsep}{os.environ['PATH']}"
    env = os.environ | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN, "PATH": path}
    head = subprocess.Popen(
        [BIN / "ray", "start", "--head", "--block", "--num-cpus", "4", "--temp-dir", folder]
        + ["--object-store-memory", str(200 * 2**20), "--include-dashboard", "true"]
        + ["--dashboard-host", "127.0.0.1", "--node-ip-address", "127.0.0.1"]
        + [f"--{flag}={port}" for flag, port in ports.items()],
        env=env | environment,
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
        for process in (head, *tree):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        head.communicate(timeout=60)
        shutil.rmtree(folder, ignore_errors=True)


def _await_server(cluster: Cluster, head: subprocess.Popen[str], seconds: float = 300) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if head.poll() is not None:
            pytest.fail(f"the head ended: {head.communicate()[0]}")
        if cluster.ask("api/jobs/") == 200:
            return
        time.sleep(0.5)
    pytest.fail(f"the job server does not answer after {seconds} s")
