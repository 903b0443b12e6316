"""How `jobs/serve.py` starts: what it says when it cannot, and Serve's high-throughput mode."""

import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
import service
import theirs
from ray import serve
from ray.serve.context import _get_global_client
from ray.serve.schema import ServeDeploySchema
from running import free_port
from service import Artifacts

from imgray.engine.search import SearchEngine
from imgray.errors import UserError
from imgray.serving.run import run
from imgray.serving.settings import ServeConfig

pytestmark = pytest.mark.slow


def test_its_settings_need_neither_ray_nor_torch() -> None:
    code = "import sys, imgray.serving.settings; print({'ray', 'torch'} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


@pytest.fixture
def no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    def never() -> None:
        raise AssertionError("Ray would start")

    monkeypatch.setattr("imgray.serving.run.cluster", never)
    monkeypatch.setattr("ray.is_initialized", lambda: False)


@pytest.mark.usefixtures("no_ray")
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"index": None}, "nothing to serve"),
        ({"index": "{nothing}"}, "no index artifact here"),
        ({"model": ["x=INDEX"]}, "but model is needed"),
        ({"model": ["x"]}, "expected NAME=URI"),
        ({"model": ["a/b=x"]}, "expected NAME=URI"),
        ({"keys_file": "{nothing}"}, "cannot be read"),
        ({"admin_keys_file": "{nothing}"}, "cannot be read"),
        ({"host": "0.0.0.0"}, "--host 0.0.0.0: anyone could use it"),
        ({"host": "192.0.2.99", "keys_file": "{keys}"}, "--host 192.0.2.99"),
    ],
)
def test_bad_settings_are_refused_before_anything_starts(
    artifacts: Artifacts, tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    (tmp_path / "keys").write_text("a-key")
    places = {"nothing": str(tmp_path / "nothing"), "keys": str(tmp_path / "keys")}
    given = {
        name: value.format(**places) if isinstance(value, str) else value
        for name, value in settings.items()
    }
    models = [one.replace("INDEX", artifacts.indexes[0]) for one in given.pop("model", [])]
    config = ServeConfig(**{"index": artifacts.indexes[0], "model": models, **given})
    with pytest.raises(UserError, match=message):
        run(config)


@pytest.mark.usefixtures("no_ray")
def test_a_port_that_is_taken_is_named(artifacts: Artifacts) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(UserError, match=f"--port {port}: Address already in use"):
            run(ServeConfig(index=artifacts.indexes[0], port=port))


@pytest.fixture(scope="module")
def others_port(artifacts: Artifacts) -> Iterator[int]:
    """The port of a Serve that others started, on a Ray whose workers know no key."""
    port = free_port()
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    yield port
    serve.shutdown()


@pytest.fixture
def key(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Headers with a key that the environment of this process names, of none that runs already."""
    monkeypatch.setenv("IMGRAY_API_KEYS", "a-key")
    return {"Authorization": "Bearer a-key"}


@pytest.mark.usefixtures("key")
def test_a_damaged_model_is_named(artifacts: Artifacts, tmp_path: Path, others_port: int) -> None:
    """Its replica finds it, and the person who started the service reads why."""
    model = tmp_path / "model"
    shutil.copytree(artifacts.models["classify"], model)
    data = bytearray((model / "model.safetensors").read_bytes())
    data[len(data) // 2] ^= 1
    (model / "model.safetensors").write_bytes(data)
    with pytest.raises(UserError, match=r"model-x: .*: its content differs from") as e:
        run(ServeConfig(model=[f"x={model}"], port=others_port))
    assert "\\n" not in str(e.value)
    assert not serve.status().applications


def test_keys_of_who_starts_it_reach_its_replicas(
    artifacts: Artifacts, others_port: int, key: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    url, statuses = f"http://127.0.0.1:{others_port}/v1/models", []

    def ask() -> None:
        for headers in (key, {}, {"Authorization": "Bearer another"}):
            statuses.append(requests.get(url, headers=headers, timeout=30).status_code)

    monkeypatch.setattr("imgray.serving.run._until_told", ask)
    run(ServeConfig(model=[f"x={artifacts.models['classify']}"], port=others_port))
    assert statuses == [200, 401, 401]
    status = serve.status()
    assert status.proxies, "the Serve of others was ended"
    assert not status.applications


@pytest.mark.usefixtures("key")
def test_what_is_deployed_in_its_place_stays(
    artifacts: Artifacts, others_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def deploy() -> None:
        wanted = {"name": "imgray", "import_path": "theirs:app"}
        _get_global_client().deploy_apps(ServeDeploySchema(applications=[wanted]), _blocking=True)

    monkeypatch.setattr("imgray.serving.run._until_told", deploy)
    run(ServeConfig(model=[f"x={artifacts.models['classify']}"], port=others_port))
    assert requests.get(f"http://127.0.0.1:{others_port}", timeout=30).text == "theirs"
    serve.delete("imgray")


@pytest.mark.usefixtures("key")
@pytest.mark.parametrize("name", ["imgray", "another"])
def test_an_application_of_others_is_left_alone(
    artifacts: Artifacts, others_port: int, name: str
) -> None:
    serve.run(theirs.app, name=name)
    try:
        with pytest.raises(UserError, match=f"serve delete {name}"):
            run(ServeConfig(index=artifacts.indexes[0], port=others_port))
        assert requests.get(f"http://127.0.0.1:{others_port}", timeout=30).text == "theirs"
    finally:
        serve.delete(name)


@pytest.mark.usefixtures("key")
def test_a_serve_that_listens_elsewhere_is_named(artifacts: Artifacts, others_port: int) -> None:
    with pytest.raises(UserError, match=f"--host 127.0.0.1 --port {others_port}"):
        run(ServeConfig(index=artifacts.indexes[0], port=free_port()))


@pytest.mark.usefixtures("no_ray")
@pytest.mark.parametrize("address", [None, "head.cluster:6379"])
def test_without_keys_only_a_ray_of_its_own_serves(
    artifacts: Artifacts, monkeypatch: pytest.MonkeyPatch, address: str | None
) -> None:
    """The Ray that is named may be anyone's, as the one that this process is connected to."""
    if address:
        monkeypatch.setenv("RAY_ADDRESS", address)
    else:
        monkeypatch.setattr("ray.is_initialized", lambda: True)
    with pytest.raises(UserError, match=f"{address or 'connected'}.*IMGRAY_API_KEYS"):
        run(ServeConfig(index=artifacts.indexes[0]))


def test_the_high_throughput_mode_answers_the_same_and_stops_in_peace(
    artifacts: Artifacts,
) -> None:
    mode = {"RAY_SERVE_ENABLE_HA_PROXY": "1", "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1"}
    picture = min(artifacts.images.rglob("*.jpg")).read_bytes()
    fast = service.start("--index", artifacts.indexes[0], **mode)
    found = requests.post(f"{fast.url}/v1/search", picture, timeout=60).json()
    expected = SearchEngine(artifacts.indexes[0]).search_images({"query": picture}, 10)[0]
    assert [row["id"] for row in found["results"]] == expected.ids
    missing = requests.get(f"{fast.url}/v1/images/none.jpg", timeout=60)
    assert (missing.status_code, missing.json()["error"]["field"]) == (404, "id")
    fast.stop_at_work(picture)
