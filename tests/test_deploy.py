"""The production configuration on a running cluster: `serve deploy cluster/serve.yaml`, for real.

Buckets, ports, CPUs, GPUs, the pace of autoscaling, the number of replicas with networks and the
time that shards have (two seconds, where other tests take the cores) are not those of the file.
"""

import contextlib
import hashlib
import os
import re
import signal
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import requests
import yaml
from conftest import S3, upload
from head import BIN, Cluster
from running import ROOT, free_port
from service import ADMIN, Artifacts

from imgray.artifacts.folder import Folder
from imgray.artifacts.manifest import read_manifest

pytestmark = pytest.mark.slow
KEY = {"Authorization": "Bearer a-key"}
PACE = {
    "upscale_delay_s": 1,
    "downscale_delay_s": 3,
    "metrics_interval_s": 0.5,
    "look_back_period_s": 2,
}
MODELS = {"scenes": "classify", "streets": "segment", "edges": "edges"}


def _configured(bucket: str, port: int) -> dict[str, Any]:
    text = (ROOT / "cluster/serve.yaml").read_text().replace("BUCKET", bucket)
    config = yaml.safe_load(text)
    config["http_options"] |= {"host": "127.0.0.1", "port": port}
    config["applications"][0]["args"]["limits"]["shard_seconds"] = 20
    for deployment in config["applications"][0]["deployments"]:
        deployment["ray_actor_options"] = {"num_cpus": 0.05}
        if "autoscaling_config" in deployment:
            deployment["autoscaling_config"] = {**deployment["autoscaling_config"], **PACE}
            if deployment["name"] != "service":
                deployment["autoscaling_config"] |= {"min_replicas": 1, "max_replicas": 2}
        if deployment["name"] == "encoder":
            deployment["autoscaling_config"] |= {"target_ongoing_requests": 1}
    return config


@dataclass
class Deployed:
    """An application on a cluster."""

    cluster: Cluster
    config: dict[str, Any]
    file: Path
    url: str

    def deploy(self) -> None:
        """`serve deploy`, as the README says."""
        self.file.write_text(yaml.safe_dump(self.config))
        self.serve("deploy", str(self.file))

    def serve(self, *words: str) -> None:
        """Serve's own command, at the cluster."""
        command = [BIN / "serve", *words, "--address", self.cluster.address]
        done = subprocess.run(command, env=self.cluster.env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr

    def details(self) -> dict[str, Any]:
        """What Serve says of the application."""
        found: dict[str, Any] = self.cluster.get("api/serve/applications/").json()
        return found["applications"]["imgray"]

    def up(self) -> bool:
        """Whether the application runs; fails the test where it never will."""
        details = self.details()
        if details["status"] in ("DEPLOY_FAILED", "UNHEALTHY"):
            pytest.fail(str(details))
        return bool(details["status"] == "RUNNING")

    def running(self, name: str) -> list[int]:
        """Process ids of a deployment's replicas that run."""
        replicas = self.details()["deployments"][name]["replicas"]
        return [replica["pid"] for replica in replicas if replica["state"] == "RUNNING"]


@pytest.fixture(scope="module")
def deployed(
    artifacts: Artifacts,
    shared_head: Cluster,
    _s3_server: S3,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Deployed]:
    bucket = _s3_server.uri("production").removeprefix("s3://")
    for number, uri in enumerate(artifacts.indexes):
        upload(Path(uri), Folder(f"s3://{bucket}/index" + "-next" * number))
    for name, kind in zip(("cfn", "fcfn", "rds"), MODELS.values(), strict=True):
        upload(Path(artifacts.models[kind]), Folder(f"s3://{bucket}/models/{name}"))
    port = free_port()
    file = tmp_path_factory.mktemp("deploy") / "serve.yaml"
    found = Deployed(shared_head, _configured(bucket, port), file, f"http://127.0.0.1:{port}")
    found.deploy()
    _await(found.up, 600)
    yield found
    found.serve("shutdown", "--yes")


def _await(reached: Any, seconds: float) -> None:
    end = time.monotonic() + seconds
    while not reached():
        assert time.monotonic() < end, f"not reached within {seconds} s"
        time.sleep(0.5)


@dataclass
class Load:
    """Clients that ask without pause, and what they got."""

    statuses: Counter[int] = field(default_factory=Counter)
    versions: Counter[str] = field(default_factory=Counter)
    missing: int = 0
    again: int = 0

    @contextmanager
    def of(self, clients: int, url: str, picture: bytes) -> Iterator[None]:
        """Ask for as long as the block runs."""
        done = threading.Event()

        def ask() -> None:
            with requests.Session() as session:
                while not done.is_set():
                    answer = self._asked(session, url, picture)
                    self.statuses[answer.status_code] += 1
                    found = answer.json()
                    self.versions[found.get("version")] += 1
                    self.missing += len(found.get("shards", {}).get("missing", ()))

        with ThreadPoolExecutor(clients) as pool:
            asking = [pool.submit(ask) for _ in range(clients)]
            try:
                yield
            finally:
                done.set()
        for one in asking:
            one.result()

    def _asked(self, session: requests.Session, url: str, picture: bytes) -> requests.Response:
        """The answer, of a second attempt if the first was none or an error."""
        for attempt in range(2):
            with contextlib.suppress(requests.ConnectionError):
                answer = session.post(f"{url}/v1/search", picture, headers=KEY, timeout=60)
                if answer.status_code == 200 or attempt:
                    return answer
            self.again += 1
        pytest.fail("no answer, twice")


@pytest.fixture(scope="module")
def picture(artifacts: Artifacts) -> bytes:
    return min(artifacts.images.rglob("*.jpg")).read_bytes()


def test_it_answers_those_who_have_a_key(deployed: Deployed, picture: bytes) -> None:
    assert requests.get(f"{deployed.url}/readyz", timeout=30).json()["ready"]
    assert requests.post(f"{deployed.url}/v1/search", picture, timeout=30).status_code == 401
    found = requests.post(f"{deployed.url}/v1/search", picture, headers=KEY, timeout=30).json()
    assert found["shards"] == {"total": 2, "answered": 2, "missing": []}
    models = requests.get(f"{deployed.url}/v1/models", headers=KEY, timeout=30).json()["models"]
    assert {model["name"]: model["kind"] for model in models} == MODELS


def test_the_dashboard_tells_no_key(deployed: Deployed) -> None:
    for path in ("api/serve/applications/", "api/v0/actors?detail=1&limit=1000"):
        answer = deployed.cluster.get(path)
        assert answer.status_code == 200
        assert "service" in answer.text
        digests = [hashlib.sha256(key.encode()).hexdigest() for key in ("a-key", ADMIN)]
        assert not [secret for secret in ("a-key", ADMIN, *digests) if secret in answer.text]


def test_another_start_leaves_it_alone(deployed: Deployed, artifacts: Artifacts) -> None:
    port = str(deployed.config["http_options"]["port"])
    flags = ["--index", artifacts.indexes[0], "--port", port]
    code, text = deployed.cluster.run("jobs/serve.py", *flags)
    assert code == 1
    assert "error: the application 'imgray' answers on this Ray already" in text
    assert requests.get(f"{deployed.url}/v1/index", headers=KEY, timeout=30).status_code == 200


def test_replicas_come_with_the_load_and_go_after_it(deployed: Deployed, picture: bytes) -> None:
    assert len(deployed.running("encoder")) == 1
    load = Load()
    with load.of(16, deployed.url, picture):
        _await(lambda: len(deployed.running("encoder")) == 2, 240)
    with load.of(1, deployed.url, picture):
        _await(lambda: len(deployed.running("encoder")) == 1, 240)
    assert set(load.statuses) == {200}
    assert load.again == 0


@pytest.mark.chaos
@pytest.mark.parametrize("name", ["service", "shards-0", "registry"])
def test_a_killed_replica_is_not_missed(deployed: Deployed, picture: bytes, name: str) -> None:
    """By clients that ask a second time, and by the answers: no shard is missing."""
    before = deployed.running(name)
    load = Load()
    with load.of(2, deployed.url, picture):
        time.sleep(1)
        os.kill(before[0], signal.SIGKILL)
        _await(lambda: len(set(deployed.running(name)) - {before[0]}) == len(before), 240)
        time.sleep(1)
    assert set(load.statuses) == {200}
    assert load.missing == 0


def test_another_index_in_the_configuration_swaps_under_load(
    deployed: Deployed, picture: bytes
) -> None:
    (application,) = deployed.config["applications"]
    registry = next(one for one in application["deployments"] if one["name"] == "registry")
    before = registry["user_config"]["index"]
    uris = (before + "-next", before)
    digests = {uri: read_manifest(Folder(uri), "index").digest for uri in uris}
    load = Load()
    with load.of(3, deployed.url, picture):
        for uri in uris:
            registry["user_config"] = {"index": uri}
            deployed.deploy()
            _await(lambda uri=uri: _version(deployed) == digests[uri], 240)
    assert set(load.statuses) == {200}
    assert load.again == 0
    assert load.versions.keys() == set(digests.values())


def _version(deployed: Deployed) -> str:
    answer = requests.get(f"{deployed.url}/v1/index", headers=KEY, timeout=30)
    return str(answer.json()["version"])


def test_prometheus_finds_what_was_done(deployed: Deployed, picture: bytes) -> None:
    requests.post(f"{deployed.url}/v1/search", b"no picture", headers=KEY, timeout=30)
    (node,) = deployed.cluster.get("nodes?view=summary").json()["data"]["summary"]
    metrics = f"http://127.0.0.1:{node['raylet']['metricsExportPort']}/metrics"
    wanted = (
        'ray_imgray_requests_total{.*endpoint="/v1/search".*status="200"',
        'ray_imgray_rejected_total{.*reason="picture"',
        'ray_imgray_stage_seconds_count{.*deployment="encoder".*stage="decode"',
        'ray_imgray_batch_size_count{.*deployment="encoder"',
    )
    _await(
        lambda: all(re.search(one, requests.get(metrics, timeout=30).text) for one in wanted), 60
    )
