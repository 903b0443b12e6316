"""Jobs submitted to a cluster's job server, as a user of a shared cluster runs them."""

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
from conftest import TinyNet
from head import Cluster

from imgray.artifacts.folder import Folder
from imgray.artifacts.manifest import read_file, read_manifest

pytestmark = pytest.mark.slow


@pytest.fixture
def cluster(shared_head: Cluster) -> Cluster:
    return shared_head


def _extract(photos: Path, output: Path, net: TinyNet) -> list[str]:
    flags = ["--images", str(photos), "--output", str(output), "--shard-size", "8"]
    return ["jobs/extract.py", *flags, "--workers", "1", *net.flags]


@dataclass(frozen=True)
class Done:
    """A job that has ended: its output, its exit code, and all that it printed."""

    output: Path
    code: int
    text: str


@pytest.fixture(scope="module")
def done(
    shared_head: Cluster, photos: Path, tiny_net: TinyNet, tmp_path_factory: pytest.TempPathFactory
) -> list[Done]:
    """Three extractions at once; the images of the last are missing."""
    folder = tmp_path_factory.mktemp("submitted")
    images = [photos, photos, folder / "missing"]
    outputs = [folder / name for name in ("one", "two", "none")]
    jobs = [
        shared_head.submit(*_extract(some, output, tiny_net))
        for some, output in zip(images, outputs, strict=True)
    ]
    texts = [job.communicate(timeout=300)[0] for job in jobs]
    return [
        Done(*one) for one in zip(outputs, (job.returncode for job in jobs), texts, strict=True)
    ]


def test_extract_index_and_search_by_submission(
    cluster: Cluster, done: list[Done], photos: Path, tiny_net: TinyNet, tmp_path: Path
) -> None:
    assert done[0].code == 0, done[0].text
    assert "40 images done, 0 rejected, 40 listed" in done[0].text
    index = tmp_path / "index"
    made = ["--features", str(done[0].output), "--output", str(index)]
    code, text = cluster.run("jobs/index.py", *made, "--feature", tiny_net.name, "--shards", "2")
    assert code == 0, text
    query = sorted(photos.rglob("*.jpg"))[0]
    flags = ["--index", str(index), "--query", str(query), "--top", "3", "--json"]
    code, text = cluster.run("jobs/search.py", *flags)
    assert code == 0, text
    answer = json.loads(next(line for line in text.splitlines() if line.startswith("{")))
    first = answer["answers"][0]["results"][0]
    assert first["id"] == query.relative_to(photos).as_posix()


def test_a_failed_job_says_why(done: list[Done]) -> None:
    """Ray's client exits with 1 whatever the code of the script."""
    failed = done[2]
    assert failed.code == 1
    assert "error: cannot list" in failed.text
    assert "it does not exist; check the URI" in failed.text
    assert "exit code 2" in failed.text
    assert not failed.output.exists()


def test_jobs_at_once_are_each_as_if_alone(done: list[Done]) -> None:
    assert done[1].code == 0, done[1].text
    made = [_content(one.output) for one in done[:2]]
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
