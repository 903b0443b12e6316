"""What a recipe may say about matching, and the networks, losses and optimizers that it means."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, get_args

import torch
from pydantic import Field, model_validator
from torch import nn

from imgray.config import Fusion
from imgray.matching.bi_rank import BiRank
from imgray.matching.closed import Solution
from imgray.matching.contrast import Contrast
from imgray.matching.cycle import Cycle, Weights
from imgray.matching.nets import SIDES, Around, Net, Towers, Way
from imgray.matching.rrf import Branch, BranchPlan
from imgray.matching.words import Reader, WordSettings
from imgray.training.rates import parameter_groups
from imgray.training.recipe import Settings

Layout = Literal["rrf", "cycle", "linear", "cca", "ridge"]
Length = Annotated[int, Field(ge=1, le=2**18)]


class MatchingSettings(Settings):
    """Layouts `rrf` and `cycle` are the thesis', the others are what a user would take first.

    `cca` and `ridge` are linear maps in closed form, `linear` are maps that are trained. `first` is
    ours: maps of a closed form come first, for which the first epoch gathers what is needed, and
    are trained on from there with what follows. Defaults are RRF-Net's as published.
    """

    layout: Layout = "rrf"
    dims: dict[str, Length] = Field(
        default={}, description="lengths of `image` and `text`; by default those that are joined"
    )
    words: WordSettings | None = Field(
        default=None, description="where texts are read word by word, rather than given as vectors"
    )
    dim: int = Field(default=512, ge=1, le=2**16, description="of embeddings, or latent ones")

    steps: int | tuple[int | None, ...] | None = Field(
        default=3, description="T of rrf, null without its block; several are an ensemble"
    )
    hidden: int = Field(default=2048, ge=1, le=2**16)
    dropout: float = Field(default=0.5, ge=0, lt=1, description="behind fc1 of rrf")
    residual: bool = Field(default=True, description="whether steps are added, not replaced")
    fused: bool = Field(default=True, description="whether steps are fused, or the last is taken")
    norm: bool = Field(default=True, description="batch normalisation of layers")
    norm_inputs: bool = Field(default=True, description="batch normalisation of vectors")

    weights: Weights = Field(default=Weights(), description="of cycle's three kinds of losses")
    fusion: Fusion = Field(default="average", description="of several scores, in evaluation")

    first: Literal["none", "cca", "ridge"] = "none"
    first_rate: float = Field(default=1.0, ge=0, description="multiplies the rate of first maps")
    first_dim: int | None = Field(
        default=None, ge=1, le=2**16, description="of cca; by default dim"
    )
    around: bool = Field(default=False, description="whether a head is added to first maps")
    dropout_inputs: float = Field(default=0.0, ge=0, lt=1)
    shrink: tuple[float, float] = Field(
        default=(5.0, 0.3), description="by side, in mean variances, of closed forms"
    )
    power: float = Field(default=0.5, ge=0, description="of correlations, of cca")

    loss: Literal["bi-rank", "contrast"] = "bi-rank"
    alphas: tuple[float, float, float, float] = BiRank.alphas
    margin: float = Field(default=BiRank.margin, ge=0)
    negatives: int = Field(default=BiRank.negatives, ge=1, le=2**16)
    temperature: float = Field(default=Contrast.temperature, gt=0)
    memory: int = Field(
        default=0, ge=0, le=2**20, description="earlier pairs among which negatives are too"
    )

    optimizer: Literal["sgd", "adam"] = "sgd"
    rate: float = Field(default=0.1, gt=0)
    momentum: float = Field(default=0.9, ge=0, lt=1, description="of sgd")
    weight_decay: float = Field(default=5e-4, ge=0)

    @model_validator(mode="after")
    def _consistent(self) -> MatchingSettings:
        if self.words and self.closed:
            key = "layout" if self.layout == self.closed else "first"
            raise ValueError(f"words: {key} {self.closed} needs vectors of texts; leave one away")
        if self.words and "text" in self.dims:
            raise ValueError("words: texts are read; leave dims.text or --features text=URI away")
        if wrong := self.lengths.keys() ^ set(SIDES) if self.dims else set():
            raise ValueError(f"dims: {', '.join(SIDES)} are needed, not {', '.join(sorted(wrong))}")
        if min(self.shrink) < 0:
            raise ValueError("shrink is not negative")
        if not self.members or any(s is not None and not 0 <= s <= 99 for s in self.members):
            raise ValueError("steps are from 0 to 99, or null, at least one")
        if min(*self.weights, *self.alphas) < 0:
            raise ValueError("weights and alphas are not negative")
        if not self.weights.dual and not self.weights.latent:
            raise ValueError("weights: of dual and latent one is needed, to compare by")
        if self.around and (self.layout != "rrf" or self.first_width("image") != self.dim):
            raise ValueError(f"around: rrf with first maps to dim, {self.dim} numbers, is needed")
        return self

    @property
    def lengths(self) -> dict[str, int]:
        """Of the vectors that enter the network, by side; without `dims` they are not known."""
        return self.dims | {"text": self.words.width} if self.dims and self.words else self.dims

    @property
    def members(self) -> tuple[int | None, ...]:
        """T of each member of an ensemble."""
        return self.steps if isinstance(self.steps, tuple) else (self.steps,)

    @property
    def normalised(self) -> bool:
        """Whether there is batch normalisation."""
        return self.layout in ("rrf", "cycle") and (self.norm or self.norm_inputs)

    @property
    def trained(self) -> bool:
        """Whether there is more to it than a closed form."""
        return self.layout not in get_args(Solution)

    @property
    def closed(self) -> Solution | None:
        """The closed form that comes first."""
        if self.layout == "cca" or self.layout == "ridge":
            return self.layout
        return None if self.first == "none" else self.first

    def first_width(self, side: str) -> int | None:
        """Outputs of the first map of a side; None where there is none."""
        if self.closed == "ridge":
            return self.dims.get("text")
        if self.closed == "cca":
            return min([self.first_dim or self.dim, *self.dims.values()])
        return self.dim if self.layout == "linear" else None

    def net(self) -> Net:
        """The network."""
        first = {side: width for side in SIDES if (width := self.first_width(side))}
        readers = {"text": Reader(self.words)} if self.words else {}
        way = Way(self.lengths, first, self.dropout_inputs, readers)
        if self.layout == "cycle":
            return Cycle(way, self.dim, self.weights, self.norm, self.norm_inputs)
        if self.layout != "rrf":
            return Towers(way, [{side: nn.Identity() for side in SIDES}], first["text"])
        widths, plans = self.lengths | first, [self._plan(steps) for steps in self.members]
        heads = [{side: self._head(widths[side], plan) for side in SIDES} for plan in plans]
        return Towers(way, heads, self.dim)

    def _head(self, inputs: int, plan: BranchPlan) -> nn.Module:
        head = Branch(inputs, plan)
        return Around(head) if self.around else head

    def _plan(self, steps: int | None) -> BranchPlan:
        return BranchPlan(
            hidden=self.hidden,
            dim=self.dim,
            dropout=self.dropout,
            steps=steps,
            residual=self.residual,
            fused=self.fused,
            norm=self.norm,
            norm_inputs=self.norm_inputs,
        )

    def ranking(self) -> BiRank | Contrast:
        """The loss."""
        if self.loss == "contrast":
            return Contrast(self.temperature)
        return BiRank(self.alphas, self.margin, self.negatives)

    def optimizer_of(self, nets: Mapping[str, nn.Module]) -> torch.optim.Optimizer:
        """The optimizer of all networks, by name; `first_rate` is for the first maps of `net`."""
        both, rates = nn.ModuleDict(nets), {"net.first.": self.first_rate}
        groups: list[Any] = list(parameter_groups(both, self.rate, self.weight_decay, rates))
        if self.optimizer == "adam":
            return torch.optim.AdamW(groups, lr=self.rate)
        return torch.optim.SGD(groups, lr=self.rate, momentum=self.momentum)
