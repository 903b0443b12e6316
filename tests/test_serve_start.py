"""How `jobs/serve.py` starts: what it says when it cannot, and Serve's high-throughput mode."""

import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import requests
import service
from ray import serve
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
        ({"host": "0.0.0.0"}, "anyone could use it"),
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


def test_a_damaged_model_is_named(artifacts: Artifacts, tmp_path: Path) -> None:
    """Its replica finds it, and the person who started the service reads why."""
    model = tmp_path / "model"
    shutil.copytree(artifacts.models["classify"], model)
    data = bytearray((model / "model.safetensors").read_bytes())
    data[len(data) // 2] ^= 1
    (model / "model.safetensors").write_bytes(data)
    try:
        with pytest.raises(UserError, match=r"model-x: .*: its content differs from") as e:
            run(ServeConfig(model=[f"x={model}"]))
    finally:
        serve.shutdown()
    assert "\\n" not in str(e.value)


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
