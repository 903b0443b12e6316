"""What `jobs/serve.py` says when it cannot start: one line, where possible before Ray starts."""

import shutil
import socket
from pathlib import Path
from typing import Any

import pytest
from ray import serve
from service import Artifacts

from imgray.errors import UserError
from imgray.serving.run import ServeConfig, run

pytestmark = pytest.mark.slow


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
