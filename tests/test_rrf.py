"""RRF-Net's branch against the published file: parameters, shared layers, initial values, rates."""

import itertools
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from imgray.matching.rrf import STD, Block, Branch, BranchPlan
from imgray.training.rates import parameter_groups

IMAGE, TEXT = 2048, 6000
FC3 = 512 * 512 + 512
STEP = 2 * 512 + 1


def _count(net: nn.Module) -> int:
    return sum(parameter.numel() for parameter in net.parameters())


def _branch(inputs: int, **changes: object) -> Branch:
    with torch.device("meta"):
        return Branch(inputs, replace(BranchPlan(), **changes))


@pytest.mark.parametrize("inputs", [IMAGE, TEXT])
@pytest.mark.parametrize("steps", range(5))
def test_parameters(inputs: int, steps: int) -> None:
    around = 2 * inputs + (inputs + 1) * 2048 + 2049 * 512 + 2 * 512 + 513 * 512 + 2 * 512
    fusion = 1 + 2  # bias of the convolution, scale and shift behind it
    assert FC3 == 262_656
    assert _count(_branch(inputs, steps=steps)) == around + FC3 + (steps + 1) * STEP + fusion
    assert _count(_branch(inputs, steps=None)) == around


def test_a_step_costs_a_norm_and_a_weight() -> None:
    counts = [_count(_branch(IMAGE, steps=steps)) for steps in range(5)]
    assert {later - earlier for earlier, later in itertools.pairwise(counts)} == {1_025}


def _by_hand(block: Block, vectors: Tensor, residual: bool, fused: bool) -> Tensor:
    """The block in evaluation, from its tensors."""
    state, steps = block.state_dict(), []
    for t in range(len(block.norms)):
        mean, var, scale, shift = (
            state[f"norms.{t}.{name}"] for name in ("running_mean", "running_var", "weight", "bias")
        )
        applied = vectors @ state["shared.weight"].T + state["shared.bias"]
        step = ((applied - mean) / (var + 1e-5).sqrt() * scale + shift).clamp(min=0)
        vectors = vectors + step if residual else step
        steps.append(vectors)
    if not fused:
        return vectors
    sums = sum(w * s for w, s in zip(state["fusion.0.weight"][0, :, 0], steps, strict=True))
    found = sums + state["fusion.0.bias"] - state["fusion.1.running_mean"]
    found = found / (state["fusion.1.running_var"] + 1e-5).sqrt()
    return (found * state["fusion.1.weight"] + state["fusion.1.bias"]).clamp(min=0)


@pytest.mark.parametrize("steps", range(5))
@pytest.mark.parametrize(("residual", "fused"), [(True, True), (True, False), (False, True)])
def test_the_block_is_its_recurrence(steps: int, residual: bool, fused: bool) -> None:
    torch.manual_seed(steps)
    block = Block(BranchPlan(dim=7, steps=steps, residual=residual, fused=fused)).double()
    for _ in range(3):
        block(torch.randn(20, 7, dtype=torch.float64))  # running statistics
    for parameter in block.parameters():
        nn.init.uniform_(parameter, 0.1, 0.9)
    vectors = torch.randn(9, 7, dtype=torch.float64)
    expected = _by_hand(block, vectors, residual, fused)
    assert expected.abs().sum() > 0
    torch.testing.assert_close(block.eval()(vectors), expected)


@pytest.mark.parametrize("steps", range(5))
def test_all_steps_share_one_layer_and_no_norm(steps: int) -> None:
    block = Block(BranchPlan(dim=4, steps=steps))
    assert [name for name, _ in block.named_parameters() if "shared" in name] == [
        "shared.weight", "shared.bias",
    ]  # fmt: skip
    applied: list[Tensor] = []
    block.shared.register_forward_hook(lambda module, given, found: applied.append(found))
    block(torch.randn(8, 4))
    assert len(applied) == len(block.norms) == steps + 1
    assert len({id(norm.weight) for norm in block.norms}) == steps + 1


def test_the_fusion_is_normalised_as_one_channel() -> None:
    block = Block(BranchPlan(dim=6, steps=2))
    found: list[Tensor] = []
    block.fusion[1].register_forward_hook(lambda module, given, out: found.append(out.detach()))
    block(torch.randn(64, 6))
    assert block.fusion[1].weight.shape == (1,)
    assert found[0].mean().abs() < 1e-6
    assert float(found[0].var(unbiased=False)) == pytest.approx(1, abs=1e-3)
    assert found[0].mean(dim=0).abs().max() > 1e-3  # not every position by itself


def test_initial_weights() -> None:
    torch.manual_seed(0)
    branch = Branch(300, BranchPlan())
    for name, module in branch.named_modules():
        if isinstance(module, nn.Linear | nn.Conv1d):
            few = module.weight.numel() < 99
            assert few or float(module.weight.std()) == pytest.approx(STD, rel=0.02), name
            assert float(module.weight.abs().max()) < 6 * STD, name
            assert not module.bias.any()


def test_the_layers_come_in_the_published_order() -> None:
    kinds = [type(layer).__name__ for layer in _branch(IMAGE)]
    assert kinds == [
        "BatchNorm1d", "Linear", "ReLU", "Dropout", "Linear", "BatchNorm1d", "ReLU", "Block",
        "Linear", "BatchNorm1d",
    ]  # fmt: skip
    bare = _branch(IMAGE, norm=False, norm_inputs=False, dropout=0.0, steps=None)
    assert not any(isinstance(layer, nn.BatchNorm1d) for layer in bare.modules())


def test_biases_and_shifts_learn_twice_as_fast_and_do_not_decay() -> None:
    branch = _branch(IMAGE)
    groups = parameter_groups(branch, 0.1, 5e-4)
    assert [(group["lr"], group["weight_decay"]) for group in groups] == [(0.1, 5e-4), (0.2, 0.0)]
    biases = [p for name, p in branch.named_parameters() if name.endswith("bias")]
    assert {id(p) for p in groups[1]["params"]} == {id(p) for p in biases}
