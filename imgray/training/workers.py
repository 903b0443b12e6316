"""What data parallel workers do together: each function is called by all of them, in one order.

A worker alone, without a process group of torch, does nothing here and is given what it gives.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from imgray.errors import UserError

BUCKET = 25 * 2**20
"""Bytes of gradients that go together, at most, unless a single one has more."""

Nets = Mapping[str, nn.Module]
Tensors = Mapping[str, Tensor]


def alone() -> bool:
    """Whether there is no other worker."""
    return not dist.is_initialized() or dist.get_world_size() == 1


def gone(world: int) -> bool:
    """Whether the group of so many workers is no more, and what is done since is of no use.

    Ray Train takes it from those that still run when one of them is lost, or when the group is to
    grow, a moment before it ends them: until then they seem to be `alone`.
    """
    return world > 1 and not dist.is_initialized()


def check_group(world: int) -> None:
    """Raise `DistError` where the group of so many workers is `gone`."""
    if gone(world):
        raise dist.DistError("the group of workers is gone")


@contextmanager
def averaged(parameters: Sequence[nn.Parameter]) -> Iterator[None]:
    """Within the block a backward pass, behind it the means over the workers as gradients.

    They are sent as the pass makes them, in buckets that all workers send in one order. One that
    only some workers have counts as zero on the others; one that none has stays None; a sparse one
    becomes dense.

    Args:
        parameters: without gradients, the same on all workers.
    """
    if alone():
        yield
        return
    queue = _Queue(_buckets(parameters))
    hooks = [p.register_post_accumulate_grad_hook(queue.made) for p in parameters]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
    queue.finish()


def _buckets(parameters: Iterable[nn.Parameter]) -> Iterator[_Bucket]:
    """Of one type and device each, the last parameters first: so a backward pass comes to them."""
    kinds: dict[Any, list[nn.Parameter]] = {}
    for parameter in reversed(list(parameters)):
        kinds.setdefault((parameter.dtype, parameter.device), []).append(parameter)
    for kind in kinds.values():
        start = size = 0
        for place, parameter in enumerate(kind):
            if size and size + parameter.nbytes > BUCKET:
                yield _Bucket(kind[start:place])
                start, size = place, 0
            size += parameter.nbytes
        yield _Bucket(kind[start:])


class _Queue:
    """Buckets on their way: each leaves when it is full and all before it have left."""

    def __init__(self, buckets: Iterable[_Bucket]) -> None:
        self.waiting = deque(buckets)
        self.sent: list[_Bucket] = []
        self.bucket_of = {p: bucket for bucket in self.waiting for p in bucket.parameters}

    def made(self, parameter: nn.Parameter) -> None:
        """A backward pass has made the gradient of a parameter."""
        self.bucket_of[parameter].missing -= 1
        while self.waiting and not self.waiting[0].missing:
            self._send()

    def finish(self) -> None:
        """Send what has not been filled, and await all."""
        while self.waiting:
            self._send()
        for bucket in self.sent:
            bucket.receive()

    def _send(self) -> None:
        self.sent.append(self.waiting.popleft())
        self.sent[-1].send()


class _Bucket:
    """Gradients laid end to end, and behind them a flag for each: whether the worker has it."""

    def __init__(self, parameters: list[nn.Parameter]) -> None:
        self.parameters, self.missing = parameters, len(parameters)

    def send(self) -> None:
        sizes = [p.numel() for p in self.parameters]
        self.flat = self.parameters[0].new_zeros(sum(sizes) + len(sizes))
        *pieces, self.flags = self.flat.split([*sizes, len(sizes)])
        pairs = zip(pieces, self.parameters, strict=True)
        self.means = [piece.as_strided(p.shape, p.stride()) for piece, p in pairs]
        for mean, parameter in zip(self.means, self.parameters, strict=True):
            if parameter.grad is not None:  # divided before they are added: half precision is short
                mean.copy_(parameter.grad.to_dense() / dist.get_world_size())
        self.flags.copy_(torch.tensor([p.grad is not None for p in self.parameters]))
        self.work = dist.all_reduce(self.flat, async_op=True)

    def receive(self) -> None:
        self.work.wait()
        # Where this worker has all, so have some: the flags of a GPU need not be awaited.
        used = self.flags.tolist() if self.missing else [1.0] * len(self.parameters)
        for mean, parameter, share in zip(self.means, self.parameters, used, strict=True):
            parameter.grad = mean if share else None


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


def merged(parts: Iterable[Tensors], rows: Collection[str] = ()) -> dict[str, Tensor]:
    """By name the sums of tensors; of `rows` those of all parts, one after another.

    A part may lack some.
    """
    found: dict[str, list[Tensor]] = {}
    for part in parts:
        for name, value in part.items():
            if name in rows or name not in found:
                found.setdefault(name, []).append(value)
            else:
                found[name] = [found[name][0] + value]
    return {name: torch.cat(some) if name in rows else some[0] for name, some in found.items()}


def summed(values: Tensors, rows: Collection[str] = ()) -> dict[str, Tensor]:
    """Tensors on the CPU, `merged` over all workers; a worker may lack some."""
    if alone():
        return dict(values)
    parts: list[dict[str, Tensor]] = [{} for _ in range(dist.get_world_size())]
    dist.all_gather_object(parts, dict(values))
    return merged(parts, rows)


def gathered(values: Tensors) -> list[dict[str, Tensor]]:
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
