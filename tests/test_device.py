"""Which device networks run on: the GPU that a process sees, and a job's worker only its own."""

from typing import Any

import pytest
import ray
import torch
from running import free_port

from imgray.engine.cluster import cluster, given_device
from imgray.errors import UserError
from imgray.features.backbones import visible_device


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Sets what torch sees, and what Ray has given: None outside a cluster."""

    def set_up(visible: bool, given: list[int] | None) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: visible)
        monkeypatch.setattr(ray, "is_initialized", lambda: given is not None)
        monkeypatch.setattr(ray, "get_gpu_ids", lambda: given)

    return set_up


@pytest.mark.parametrize(
    ("visible", "given", "anywhere", "in_a_job"),
    [
        (False, None, "cpu", "cpu"),
        (True, None, "cuda", "cuda"),
        (True, [0], "cuda", "cuda"),
        (True, [], "cuda", "cpu"),
        (False, [], "cpu", "cpu"),
    ],
)
def test_a_worker_takes_no_gpu_that_it_was_not_given(
    machine: Any, visible: bool, given: list[int] | None, anywhere: str, in_a_job: str
) -> None:
    machine(visible, given)
    assert (visible_device(), given_device()) == (anywhere, in_a_job)


def test_a_ray_that_is_not_there_is_a_line_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{free_port()}")
    refused = r"cannot join Ray at 127\.0\.0\.1:\d+: .*refused"
    with pytest.raises(UserError, match=refused), cluster():
        pass
