"""The networks of matching: from vectors of images and of texts to embeddings that are compared."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, nn

from imgray.matching.closed import Map

SIDES = ("image", "text")
Inputs = Mapping[str, Tensor]
"""Vectors (N, d) by side, or what a reader makes them of; one may be absent."""
Parts = dict[str, list[Tensor]]
"""By side the embeddings (N, D) of unit length, of which each of the image's is compared with the
text's at its place."""


class Term(NamedTuple):
    """Two lists of embeddings of unit length (N, D) that a loss ranks against each other."""

    name: str
    images: Tensor
    texts: Tensor
    weight: float = 1.0


@dataclass(frozen=True)
class Way:
    """How vectors enter a network.

    dims: d by side; first: outputs of a linear map before all else, where there is one, by side;
    dropout: before it; readers: by side what makes the vectors, where that is learnt too.
    """

    dims: Mapping[str, int]
    first: Mapping[str, int] = field(default_factory=dict)
    dropout: float = 0.0
    readers: Mapping[str, nn.Module] = field(default_factory=dict)


class Net(nn.Module, ABC):
    """What all networks have in common.

    Attributes:
        sizes: D of each part.
        widths: of vectors that have entered, by side.
        solved: whether the first maps have been set to a closed form.
    """

    sizes: tuple[int, ...]
    solved: Tensor

    def __init__(self, way: Way) -> None:
        super().__init__()
        self.readers = nn.ModuleDict(way.readers)
        self.dropout = nn.Dropout(way.dropout)
        self.first = nn.ModuleDict({s: nn.Linear(way.dims[s], n) for s, n in way.first.items()})
        self.widths = {**way.dims, **way.first}
        self.register_buffer("solved", torch.tensor(False))

    def enter(self, inputs: Inputs) -> dict[str, Tensor]:
        """Inputs by side, as vectors, after dropout and the first map."""
        read = {s: self.readers[s](one) if s in self.readers else one for s, one in inputs.items()}
        found = {side: self.dropout(vectors) for side, vectors in read.items()}
        return {s: self.first[s](one) if s in self.first else one for s, one in found.items()}

    @torch.no_grad()
    def set_first(self, maps: Mapping[str, Map]) -> None:
        """Set the first maps, by side, to a closed form."""
        for side, found in maps.items():
            self.first[side].load_state_dict({"weight": found.weight.T, "bias": found.bias})
        self.solved.fill_(True)

    @abstractmethod
    def forward(self, inputs: Inputs) -> Parts:
        """The parts of the embedding."""

    def terms(self, inputs: Inputs) -> list[Term]:
        """What the loss ranks, of vectors of both sides: the parts first."""
        parts = self(inputs)
        pairs = zip(*(parts[side] for side in SIDES), strict=True)
        return [Term("rank", image, text) for image, text in pairs]


class Towers(Net):
    """A tower for each side; several pairs of towers are an ensemble, whose scores are averaged.

    Args:
        way: in.
        heads: by member and side what follows.
        size: D of their outputs.
    """

    def __init__(self, way: Way, heads: Sequence[dict[str, nn.Module]], size: int) -> None:
        super().__init__(way)
        self.sides = nn.ModuleDict({s: nn.ModuleList(one[s] for one in heads) for s in SIDES})
        self.sizes = (size,) * len(heads)

    def forward(self, inputs: Inputs) -> Parts:
        """A part by each member."""
        found = self.enter(inputs).items()
        return {side: [unit(head(one)) for head in self.heads(side)] for side, one in found}

    def heads(self, side: str) -> list[nn.Module]:
        """The members' heads of a side."""
        return list(self.sides[side].children())


class Around(nn.Module):
    """A head added to the vectors it takes: x + g head(x), where g is learnt and begins at 0.

    So training starts from the space of the vectors, such as that of a closed form. This is ours.
    """

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head, self.gain = head, nn.Parameter(torch.zeros(()))

    def forward(self, vectors: Tensor) -> Tensor:
        """Vectors (N, D) of the same shape."""
        found: Tensor = vectors + self.gain * self.head(vectors)
        return found


def unit(vectors: Tensor) -> Tensor:
    """Vectors (N, D) at unit length, float32: x / (|x| + 1e-6), as RRF-Net's published layer."""
    with torch.autocast(vectors.device.type, enabled=False):
        wide = vectors.to(torch.promote_types(vectors.dtype, torch.float32))
        return wide / (wide.norm(dim=1, keepdim=True) + 1e-6)


def joined(parts: list[Tensor]) -> Tensor:
    """One embedding whose dot products are the means of those of the parts."""
    return torch.cat(parts, dim=1) / len(parts) ** 0.5
