"""CycleMatch: cycle-consistent embeddings. Liu et al., Pattern Recognition 2019; thesis chapter 6.

Two branches of mappings: an image's vector v is mapped into the space of texts (dual embedding) and
back (reconstructed), and a text's t into that of images and back; what lies in the middle of the
dual mappings is the latent embedding, where both branches meet:

    v -> z_v -> t' -> v'',    t -> z_t -> v' -> t''.

Widths and weights are not at hand. Our reading: each mapping is fc, BN, ReLU, fc, the latent
embedding is what its BN gives, and all three kinds are learnt by ranking in a batch,

    L = w_1 (rank(t', t) + rank(v, v')) + w_2 (rank(v'', v) + rank(t, t'')) + w_3 rank(z_v, z_t).

An image and a text are compared in three spaces, as (t', t), (v, v') and (z_v, z_t); those whose
weight is 0 are left out. Their scores are joined by late fusion (`imgray.retrieval.fusion`).
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn

from imgray.matching.nets import Inputs, Net, Parts, Term, Way, unit

OTHER = {"image": "text", "text": "image"}


class Weights(NamedTuple):
    """Of the three kinds of losses, w_1 to w_3."""

    dual: float = 1.0
    reconstructed: float = 1.0
    latent: float = 1.0


class Mapper(nn.Module):
    """A mapping from one space to another: fc, BN, ReLU, fc."""

    def __init__(self, inputs: int, latent: int, outputs: int, norm: bool) -> None:
        super().__init__()
        self.into = nn.Sequential(
            nn.Linear(inputs, latent), nn.BatchNorm1d(latent) if norm else nn.Identity()
        )
        self.out = nn.Sequential(nn.ReLU(), nn.Linear(latent, outputs))

    def forward(self, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """What lies in the middle (N, L), and what it is mapped to (N, outputs)."""
        latent = self.into(vectors)
        return latent, self.out(latent)


class Cycle(Net):
    """Both branches.

    Args:
        way: in, of `Net`; its vectors are the two spaces.
        latent: L of the latent embedding.
        weights: of the losses.
        norm: whether latent embeddings are batch normalised.
        norm_inputs: whether vectors are first standardised by the batch, as RRF-Net's are.
    """

    def __init__(
        self, way: Way, latent: int, weights: Weights, norm: bool, norm_inputs: bool
    ) -> None:
        super().__init__(way)
        widths, self.weights = self.widths, weights
        self.spaces = nn.ModuleDict(
            {
                side: nn.BatchNorm1d(width, affine=False) if norm_inputs else nn.Identity()
                for side, width in widths.items()
            }
        )
        ends = {side: (widths[side], widths[OTHER[side]]) for side in OTHER}
        self.dual = nn.ModuleDict({s: Mapper(n, latent, m, norm) for s, (n, m) in ends.items()})
        self.back = nn.ModuleDict({s: Mapper(m, latent, n, norm) for s, (n, m) in ends.items()})
        duals = (widths["text"], widths["image"]) if weights.dual else ()
        self.sizes = (*duals, *((latent,) if weights.latent else ()))

    def forward(self, inputs: Inputs) -> Parts:
        """Parts in the space of texts, in that of images, and in the latent one."""
        return {side: self._parts(side, *found) for side, found in self._mapped(inputs).items()}

    def terms(self, inputs: Inputs) -> list[Term]:
        """The losses' lists, by kind."""
        mapped = self._mapped(inputs)
        images, texts = (self._parts(side, *mapped[side]) for side in ("image", "text"))
        names = [*(("dual", "dual") if self.weights.dual else ()), "latent"]
        found = [
            Term(name, image, text, getattr(self.weights, name))
            for name, image, text in zip(names, images, texts, strict=False)
        ]
        for side, (own, _, foreign) in mapped.items() if self.weights.reconstructed else ():
            back = unit(self.back[side](foreign)[1])
            found.append(Term("reconstructed", back, unit(own), self.weights.reconstructed))
        return found

    def _mapped(self, inputs: Inputs) -> dict[str, tuple[Tensor, Tensor, Tensor]]:
        """By side the vectors in their own space, in the latent one, and in the other side's."""
        found = {side: self.spaces[side](one) for side, one in self.enter(inputs).items()}
        return {side: (own, *self.dual[side](own)) for side, own in found.items()}

    def _parts(self, side: str, own: Tensor, latent: Tensor, foreign: Tensor) -> list[Tensor]:
        duals = [foreign, own] if side == "image" else [own, foreign]
        kept = [*(duals if self.weights.dual else []), *([latent] if self.weights.latent else [])]
        return [unit(one) for one in kept]
