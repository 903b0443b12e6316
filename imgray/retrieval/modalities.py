"""Search with pictures, with words, or with both: the parts of an index, and their late fusion.

A DeepIndex over the features of pictures answers pictures. Another one over the same images, by
their joint embedding with texts, answers words. Its lists cannot be fused with the others' (thesis
chapter 4): a tuple of words needs a word of every feature, and a query by text has none of them. So
each part ranks by itself, and the rankings are joined (chapter 6).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from imgray.config import Fusion
from imgray.errors import UserError
from imgray.retrieval.codebook import Floats
from imgray.retrieval.deepindex import DeepIndex, Hits, Ints, merge, ranked
from imgray.retrieval.fusion import Fused, Scores, adaptive, average

IMAGE, TEXT = "image", "text"
MODALITIES = (IMAGE, TEXT)
LEAST_DEPTH = 500
"""Of 7,000 photographs, nine in ten of the ten best by whole rankings are then found."""

FUSIONS: dict[Fusion, Callable[[Sequence[Scores], Sequence[float]], Fused]] = {
    "average": average,
    "adaptive": adaptive,
}


@dataclass(frozen=True)
class Blend:
    """How the rankings of several modalities become one.

    weights: by modality, 1 where not named; one of weight 0 is out.
    fusion: of the scores of what is left, where that is more than one.
    """

    weights: Mapping[str, float] = field(default_factory=dict)
    fusion: Fusion = "average"

    def asked(self, given: Collection[str]) -> list[str]:
        """The modalities that count, of those in which a query is given. Raises `UserError`."""
        for name, weight in self.weights.items():
            if name not in MODALITIES:
                raise UserError(f"modality {name!r}: there are {' and '.join(MODALITIES)}")
            if not (weight >= 0 and np.isfinite(weight)):
                raise UserError(f"weight of {name}: {weight}; expected a number that is 0 or above")
        found = [name for name in given if self._weight(name)]
        if not found:
            raise UserError(
                f"{' and '.join(given)} have weight 0: nothing is left to search with"
                if given
                else "a search takes an image, a text, or both"
            )
        return found

    def join(self, answers: Mapping[str, Hits], top: int) -> Hits:
        """The ranking of the whole from what `ask` gives for each modality, from all shards.

        One alone keeps its scores. Otherwise the first `depth` of each ranking are the candidates,
        each with its score in every ranking; one that has none there, as no list with it was
        visited, counts as the lowest. The result does not depend on the shards. Ties rank by
        position.
        """
        if len(answers) == 1:
            return merge(list(answers.values()), top)
        deep = depth(answers, top)
        positions = np.unique(np.concatenate([hits.positions[:deep] for hits in answers.values()]))
        lists = np.full((len(answers), len(positions)), -np.inf)
        ids: dict[int, str] = {}
        for row, hits in zip(lists, answers.values(), strict=True):
            have = np.isin(hits.positions, positions)
            row[np.searchsorted(positions, hits.positions[have])] = hits.scores[have]
            ids |= zip(hits.positions.tolist(), hits.ids, strict=True)
        scores = FUSIONS[self.fusion](list(lists), [self._weight(name) for name in answers])
        order = ranked(positions, scores, top)
        positions, scores = positions[order], scores[order]
        touched = sum(hits.touched for hits in answers.values())
        return Hits(positions, scores, [ids[position] for position in positions.tolist()], touched)

    def _weight(self, name: str) -> float:
        return self.weights.get(name, 1.0)


def depth(asked: Collection[str], top: int) -> int:
    """How long the rankings of modalities must be for one of `top` results."""
    return top if len(asked) == 1 else max(LEAST_DEPTH, 10 * top)


def ask(
    parts: Mapping[str, DeepIndex],
    vectors: Mapping[str, Mapping[str, Floats]],
    top: int,
    weights: Mapping[str, float] | None = None,
    prefix: str = "",
) -> dict[str, Hits]:
    """What some shards know of a question, to be merged with what others do, and joined.

    Args:
        parts: by modality the part that answers it.
        vectors: by modality what is asked, one query, as `DeepIndex.search` takes it.
        top: how far to rank in each, `depth`.
        weights: of the features of images.
        prefix: as of `DeepIndex.search`.

    Returns:
        By modality the best images by it; of several modalities also the best by the others, which
        few images are by both: each with its own score.
    """

    def rank(name: str, top: int, among: Ints | None = None) -> Hits:
        own = weights if name == IMAGE else None
        return parts[name].search(vectors[name], top, own, prefix, among)[0]

    best = {name: rank(name, top) for name in vectors}
    if len(best) == 1:
        return best
    positions = np.unique(np.concatenate([hits.positions for hits in best.values()]))
    return {name: rank(name, max(1, len(positions)), positions) for name in best}
