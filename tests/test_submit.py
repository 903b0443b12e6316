"""Jobs submitted to a cluster's job server, as a user of a shared cluster runs them."""

import json
from pathlib import Path

import pytest
from conftest import TinyNet
from head import Cluster

from imgray.artifacts.folder import Folder
from imgray.artifacts.manifest import read_file, read_manifest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture
def cluster(shared_head: Cluster) -> Cluster:
    return shared_head


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
    assert cluster.ask("api/jobs/", token) == status
    env = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token} if token else {}
    stripped = {k: v for k, v in cluster.env.items() if not k.startswith("RAY_AUTH_")}
    other = Cluster(cluster.address, stripped | env | {"HOME": str(tmp_path)})
    code, text = other.run(*_extract(photos, tmp_path / "out", tiny_net))
    assert code != 0
    assert "401" in text or "403" in text or "token" in text.lower()
    assert not (tmp_path / "out").exists()
