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
from imgray.retrieval.deepindex import Hits, ranked
from imgray.retrieval.fusion import Fused, Scores, adaptive, average

IMAGE, TEXT = "image", "text"
MODALITIES = (IMAGE, TEXT)

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
        """The ranking of the whole from those of each modality, `depth` long.

        One alone stays as it is. Otherwise the candidates are those of any ranking; one that a
        ranking lacks counts as its lowest. Rankings of all shards must be merged before: then the
        result does not depend on the shards. Ties rank by position.
        """
        if len(answers) == 1:
            return next(iter(answers.values()))
        positions = np.unique(np.concatenate([hits.positions for hits in answers.values()]))
        lists = np.full((len(answers), len(positions)), -np.inf)
        ids: dict[int, str] = {}
        for row, hits in zip(lists, answers.values(), strict=True):
            row[np.searchsorted(positions, hits.positions)] = hits.scores
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
    return top if len(asked) == 1 else max(100, 10 * top)
