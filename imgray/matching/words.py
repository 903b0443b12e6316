"""Texts as sequences of words, read by a gated recurrent unit that is trained with what follows.

The unit is that of Cho et al. (EMNLP 2014), as torch has it. It stands where Faghri et al. (VSE++,
BMVC 2018) have it: vectors of words are learnt with all else, drawn uniformly at first, and the
state behind the last word is the vector of the text. Words are those of a bag of words
(`imgray.features.bags`), so that any language is read.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

from imgray.errors import UserError
from imgray.features.bags import vocabulary_of, words_of
from imgray.training.recipe import Settings

PADDING, UNKNOWN = -1, 0
"""Numbers of no word, behind the last of a text, and of one that the vocabulary lacks. Those of the
vocabulary follow."""
SPREAD = 0.1
"""Of the numbers that words' vectors begin with, either side of 0, as in the code of VSE++."""


class WordSettings(Settings):
    """What a recipe may say about texts that are read word by word.

    A vocabulary that the recipe does not give is taken from the training data as a run begins, and
    is in the recipe of the model. `least`, `dim` and `hidden` are at first those of VSE++.
    """

    size: int = Field(default=10_000, ge=1, le=2**18, description="words at most, commonest first")
    least: int = Field(
        default=4, ge=1, le=2**20, description="texts in which a word stands at least"
    )
    longest: int = Field(default=64, ge=1, le=2**12, description="words; what follows is not read")
    dim: int = Field(default=300, ge=1, le=2**13, description="of the vectors of words")
    hidden: int = Field(default=1024, ge=1, le=2**14, description="of the state, of each direction")
    bidirectional: bool = Field(
        default=False, description="whether a second unit reads backwards, both states side by side"
    )
    vocabulary: tuple[str, ...] = Field(
        default=(),
        description="words in the order of their numbers; by default those of the data; to start "
        "from a model that reads, give its own",
    )

    @model_validator(mode="after")
    def _consistent(self) -> WordSettings:
        if len(set(self.vocabulary)) < len(self.vocabulary):
            raise ValueError("vocabulary: a word stands there twice")
        if len(self.vocabulary) > self.size:
            raise ValueError(f"vocabulary: {len(self.vocabulary):,} words, but size {self.size:,}")
        if wrong := [word for word in self.vocabulary if words_of(word) != [word]]:
            raise ValueError(f"vocabulary: {wrong[0]!r} is no word as texts are read")
        return self

    @property
    def width(self) -> int:
        """Length of the vector of a text."""
        return self.hidden * (2 if self.bidirectional else 1)

    def fitted(self, texts: Iterable[str]) -> WordSettings:
        """The same with the words that stand in most texts, equal ones in alphabetical order.

        Raises:
            UserError: no word stands in as many texts as are needed.
        """
        found = vocabulary_of(texts, self.size, self.least).words
        if not found:
            raise UserError(
                f"recipe: settings.words.least: no word stands in {self.least} of the texts to "
                "train on; lower it"
            )
        return self.model_copy(update={"vocabulary": tuple(found)})


class Numbers:
    """Texts as the numbers of their words.

    Args:
        settings: with a vocabulary.

    Raises:
        UserError: there is none.
    """

    def __init__(self, settings: WordSettings) -> None:
        if not settings.vocabulary:
            raise UserError(
                "recipe: settings.words.vocabulary: not known before a run takes it from its data"
            )
        self.longest = settings.longest
        self.places = {word: n for n, word in enumerate(settings.vocabulary, UNKNOWN + 1)}

    def __call__(self, text: str) -> NDArray[np.int64]:
        """The numbers (longest,) of a text's words, `PADDING` behind them; at least one stands."""
        words = words_of(text)[: self.longest]
        found = np.full(self.longest, PADDING, np.int64)
        found[: max(1, len(words))] = [self.places.get(word, UNKNOWN) for word in words] or UNKNOWN
        return found


class Reader(nn.Module):
    """The recurrent unit over vectors of words.

    A text's vector does not depend on padding. In another batch it may come out in other last
    digits, as of any layer: kernels are chosen by shape.

    Args:
        settings: without a vocabulary all words are one.
    """

    def __init__(self, settings: WordSettings) -> None:
        super().__init__()
        self.vectors = nn.Embedding(1 + len(settings.vocabulary), settings.dim)
        nn.init.uniform_(self.vectors.weight, -SPREAD, SPREAD)
        self.unit = nn.GRU(
            settings.dim, settings.hidden, batch_first=True, bidirectional=settings.bidirectional
        )

    def forward(self, numbers: Tensor) -> Tensor:
        """The vectors (N, width) of texts by their `Numbers` (N, longest), int64."""
        lengths = (numbers != PADDING).sum(dim=1).cpu()
        words = pack_padded_sequence(numbers, lengths, batch_first=True, enforce_sorted=False)
        read = words._replace(data=self.vectors(words.data))
        states: Tensor = self.unit(read)[1]  # (directions, N, hidden)
        return states.transpose(0, 1).flatten(start_dim=1)
