"""Checkpoints: what is packed comes back, the newest whole one is found."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from imgray.artifacts.folder import Folder
from imgray.errors import UserError
from imgray.training.checkpoints import KEPT, Keeper, check_finite, load_state, pack, unpack


def _same(one: object, other: object) -> bool:
    if isinstance(one, torch.Tensor):
        assert isinstance(other, torch.Tensor)
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        assert isinstance(other, dict)
        return list(one) == list(other) and all(_same(one[k], other[k]) for k in one)
    if isinstance(one, list | tuple):
        assert type(one) is type(other)
        return len(one) == len(other) and all(map(_same, one, other))
    return type(one) is type(other) and one == other


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.Adam])
def test_the_state_of_an_optimizer_comes_back(kind: type[torch.optim.Optimizer]) -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    optimizer = kind(net.parameters(), lr=0.1)
    net(torch.randn(5, 3)).sum().backward()
    optimizer.step()
    state = {
        "net": dict(net.state_dict()),
        "optimizer": optimizer.state_dict(),
        "more": [None, True, 3, 0.1, "text", (1, 2), {7: torch.zeros(0), "x": torch.tensor(5)}],
    }
    again = unpack(pack(state))
    assert _same(state, again)
    kind(net.parameters(), lr=0.5).load_state_dict(again["optimizer"])


def test_what_cannot_be_kept_is_refused() -> None:
    with pytest.raises(TypeError, match="set"):
        pack({"a": {1, 2}})
    with pytest.raises(ValueError, match="not a checkpoint"):
        unpack(b"nothing of the kind")


def test_tensors_that_share_memory_are_kept_apart() -> None:
    whole = torch.arange(6.0)
    again = unpack(pack({"whole": whole, "part": whole[2:4], "turned": whole.reshape(2, 3).T}))
    assert torch.equal(again["part"], torch.tensor([2.0, 3.0]))
    assert torch.equal(again["turned"], whole.reshape(2, 3).T)


def test_the_newest_is_found_and_old_ones_go(tmp_path: Path) -> None:
    keeper = Keeper(Folder(str(tmp_path)))
    assert keeper.newest() is None
    for step in (5, 100, 20_000):
        keeper.save(step, {"step": step})
    found = keeper.newest()
    assert found is not None
    assert found[:2] == (20_000, {"step": 20_000})
    assert keeper.load(found.name) == found
    assert len(list(tmp_path.iterdir())) == KEPT


@pytest.mark.parametrize(
    "damage", [lambda b: b[:-3], lambda b: b[:-9] + bytes([b[-9] ^ 1]) + b[-8:]]
)
def test_a_damaged_checkpoint_is_passed_over(
    tmp_path: Path, damage: Callable[[bytes], bytes]
) -> None:
    keeper = Keeper(Folder(str(tmp_path)))
    keeper.save(1, {"tensor": torch.ones(4)})
    keeper.save(2, {"tensor": torch.ones(4)})
    newest = max(tmp_path.iterdir())
    newest.write_bytes(damage(newest.read_bytes()))
    found = keeper.newest()
    assert found is not None
    assert found[0] == 1


def test_tensors_of_another_model_are_refused() -> None:
    net = nn.Linear(3, 4)
    with pytest.raises(UserError, match=r"here: 1 tensors do not fit .* weight \(\(4, 2\) there"):
        load_state(net, {"weight": torch.zeros(4, 2), "bias": torch.zeros(4)}, "here")
    with pytest.raises(UserError, match=r"None there"):
        load_state(net, {"weight": torch.zeros(4, 3)}, "here")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_the_tensor_that_is_not_finite_is_named(value: float, kind: torch.dtype) -> None:
    whole = {"weight": torch.full((3, 2), 3e38, dtype=kind), "count": torch.tensor(7)}
    check_finite({"one": whole, "two": whole, "none": {"empty": torch.zeros(0)}}, 9)
    part = whole["weight"].clone()
    part[2, 1] = value
    with pytest.raises(UserError, match=r"two: weight is not finite at step 9,000: .* --over"):
        check_finite({"one": whole, "two": {**whole, "weight": part}}, 9000)
