"""What data parallel workers do together: each function is called by all of them, in one order.

A worker alone, without a process group of torch, does nothing here and is given what it gives.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from imgray.errors import UserError

BUCKET = 25 * 2**20
"""Bytes of gradients that go together, at most, unless a single one has more."""

Nets = Mapping[str, nn.Module]


def alone() -> bool:
    """Whether there is no other worker."""
    return not dist.is_initialized() or dist.get_world_size() == 1


def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Replace the gradients of parameters, the same on all workers, by their means.

    One that only some workers have counts as zero on the others; one that none has stays None.
    """
    if not alone():
        for bucket in _buckets(parameters):
            _average(bucket)


def _buckets(parameters: Iterable[nn.Parameter]) -> Iterator[list[nn.Parameter]]:
    """Parameters of one type and device whose gradients go together."""
    kinds: dict[Any, list[nn.Parameter]] = {}
    for parameter in parameters:
        kinds.setdefault((parameter.dtype, parameter.device), []).append(parameter)
    for kind in kinds.values():
        start = size = 0
        for place, parameter in enumerate(kind):
            if size and size + parameter.nbytes > BUCKET:
                yield kind[start:place]
                start, size = place, 0
            size += parameter.nbytes
        yield kind[start:]


def _average(bucket: list[nn.Parameter]) -> None:
    """Gradients laid end to end, and behind them a flag for each: whether the worker has it."""
    sizes = [parameter.numel() for parameter in bucket]
    flat = bucket[0].new_zeros(sum(sizes) + len(bucket))
    *pieces, flags = flat.split([*sizes, len(bucket)])
    means = [m.as_strided(p.shape, p.stride()) for m, p in zip(pieces, bucket, strict=True)]
    for mean, parameter in zip(means, bucket, strict=True):
        if parameter.grad is not None:
            mean.copy_(parameter.grad)
    used = [parameter.grad is not None for parameter in bucket]
    flags.copy_(torch.tensor(used))
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    if not all(used):
        used = flags.bool().tolist()
    for mean, parameter, one in zip(means, bucket, used, strict=True):
        parameter.grad = mean if one else None


def spread(nets: Nets) -> None:
    """Give all workers the parameters and buffers of the first."""
    if alone():
        return
    for net in nets.values():
        for tensor in (*net.parameters(), *net.buffers()):
            data = tensor.detach().contiguous()
            dist.broadcast(data.view(-1).view(torch.uint8), 0)
            tensor.detach().copy_(data)


def average_statistics(nets: Nets) -> None:
    """Replace floating-point buffers, such as running statistics, by their means.

    Raises:
        UserError: other buffers differ between the workers.
    """
    if alone():
        return
    buffers = {f"{net}: {name}": b for net in nets for name, b in nets[net].named_buffers()}
    _check_alike({name: b for name, b in buffers.items() if not b.is_floating_point()})
    means = [buffer for buffer in buffers.values() if buffer.is_floating_point()]
    if means:
        # In float64, so that what is the same on all workers stays so to the bit.
        flat = torch.cat([buffer.detach().double().reshape(-1) for buffer in means])
        dist.all_reduce(flat)
        flat /= dist.get_world_size()
        for buffer, mean in zip(means, flat.split([b.numel() for b in means]), strict=True):
            buffer.copy_(mean.view(buffer.shape))


def _check_alike(buffers: Mapping[str, Tensor]) -> None:
    for name, buffer in buffers.items():
        extremes = torch.stack([buffer.detach().long(), -buffer.detach().long()])
        dist.all_reduce(extremes, dist.ReduceOp.MAX)
        if extremes.sum(dim=0).any():
            raise UserError(
                f"network {name} differs between the workers: a buffer of whole numbers must "
                "change alike on all; keep what is a worker's own in Learner.state"
            )


def summed(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors on the CPU added over all workers by name; a worker may lack some."""
    if alone():
        return dict(values)
    parts: list[dict[str, Tensor]] = [{} for _ in range(dist.get_world_size())]
    dist.all_gather_object(parts, dict(values))
    totals: dict[str, Tensor] = {}
    for part in parts:
        for name, value in part.items():
            totals[name] = totals[name] + value if name in totals else value
    return totals


def gathered(values: Mapping[str, Tensor]) -> list[dict[str, Tensor]]:
    """Every worker's tensors on the CPU, by rank, on the first worker; nothing on the others."""
    if alone():
        return [dict(values)]
    parts: list[Any] | None = None
    if dist.get_rank() == 0:
        parts = [None] * dist.get_world_size()
    dist.gather_object(dict(values), parts)
    return parts or []


def from_first(value: str | None) -> str | None:
    """What the first worker says; what others give is not looked at."""
    if alone():
        return value
    said = [value]
    dist.broadcast_object_list(said, 0)
    return said[0]


def dealt(parts: list[dict[str, Tensor]], rank: int, world: int) -> dict[str, Tensor]:
    """A worker's share of what each of some earlier workers had: its own, if they were as many.

    Otherwise their items, which lie along the first axis, are dealt one by one in order of rank.
    """
    if len(parts) == world:
        return parts[rank]
    names = {name: None for part in parts for name in part}
    return {
        name: torch.cat([part[name] for part in parts if name in part])[rank::world]
        for name in names
    }
