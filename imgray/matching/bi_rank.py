"""The bi-rank loss of RRF-Net: Liu et al., ICCV 2017, and chapter 5 of the thesis.

As in the author's published layer (bi_rank_loss_layer.cpp): with s the dot product of embeddings of
unit length, pair i has as negatives those texts j whose image is another and that violate

    c_i + s(x_i, y_j) > 0,    c_i = m − s(x_i, y_i),

the K nearest of them, by the lower index where they are equally near, and likewise images. Then

    L = 1/(K N) Σ_i { Σ_j∈texts  α1 (c_i + s(x_i, y_j))+ + α2 (c_i + s(y_i, y_j))+
                    + Σ_j∈images α3 (c_i + s(x_j, y_i))+ + α4 (c_i + s(x_i, x_j))+ },

The divisor stays K N where there are fewer negatives, and the choice carries no gradient.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


class Pairs(NamedTuple):
    """Images and the texts that belong to them.

    images, texts: embeddings of unit length (N, D); ids: of the images (N,), int64.
    """

    images: Tensor
    texts: Tensor
    ids: Tensor


@dataclass(frozen=True)
class BiRank:
    """The loss; with alphas (1, 0, 2, 0) its form of two terms, bi-directional ranking.

    alphas: weights α1 to α4; margin: m; negatives: K.
    """

    alphas: tuple[float, float, float, float] = (1.0, 0.5, 2.0, 1.0)
    margin: float = 0.1
    negatives: int = 50

    def __call__(self, pairs: Pairs, others: Pairs | None = None) -> Tensor:
        """The loss of a batch, a scalar: float32 or wider, also under autocast.

        Args:
            pairs: the batch.
            others: more pairs (M) among which negatives are sought, such as those of earlier
                batches: ours, the published loss knows none.
        """
        with torch.autocast(pairs.images.device.type, enabled=False):
            near, both = with_others(pairs, others)
            scores, count = near.images @ near.texts.T, len(near.ids)
            to_texts = torch.cat([scores, near.images @ both.texts[count:].T], dim=1)
            to_images = torch.cat([scores.T, near.texts @ both.images[count:].T], dim=1)
            slack = self.margin - scores.diagonal()[:, None]
            foreign = near.ids[:, None] != both.ids
            first, second = self.alphas[:2], self.alphas[2:]
            total = self._terms(to_texts, near.texts, both.texts, slack, foreign, first)
            total = total + self._terms(to_images, near.images, both.images, slack, foreign, second)
            return total / (self.negatives * count)

    def _terms(
        self,
        scores: Tensor,
        own: Tensor,
        among: Tensor,
        slack: Tensor,
        foreign: Tensor,
        alphas: tuple[float, ...],
    ) -> Tensor:
        """The two terms of negatives in one modality, summed.

        Args:
            scores: of the pairs' other halves with all negatives (N, M).
            own: the pairs' halves in this modality (N, D).
            among: the negatives (M, D).
            slack: the margin less the scores of the pairs (N, 1).
            foreign: which negatives are of other images (N, M), bool.
            alphas: weights of the terms.
        """
        across = scores + slack
        chosen = _nearest(scores.detach(), foreign & (across > 0), self.negatives)
        total = alphas[0] * across.where(chosen, 0).sum()
        if alphas[1]:
            within = own @ among.T + slack
            total = total + alphas[1] * within.relu().where(chosen, 0).sum()
        return total


def _nearest(scores: Tensor, open_: Tensor, count: int) -> Tensor:
    """Which of the open ones (N, M) have the `count` largest scores of a row: bool (N, M)."""
    found = scores.masked_fill(~open_, -torch.inf)
    bound = found.topk(min(count, found.shape[1]), dim=1).values[:, -1:]
    above, ties = found > bound, open_ & (found == bound)
    return above | (ties & (ties.cumsum(dim=1) <= count - above.sum(dim=1, keepdim=True)))


def with_others(pairs: Pairs, others: Pairs | None) -> tuple[Pairs, Pairs]:
    """Pairs in float32 or wider, and with the others behind them."""
    near = _wide(pairs)
    if others is None:
        return near, near
    return near, Pairs(*(torch.cat(two) for two in zip(near, _wide(others), strict=True)))


def _wide(pairs: Pairs) -> Pairs:
    wide = torch.promote_types(pairs.images.dtype, torch.float32)
    return pairs._replace(images=pairs.images.to(wide), texts=pairs.texts.to(wide))
