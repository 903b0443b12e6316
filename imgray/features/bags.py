"""A bag of words with tf-idf as a text encoder, for any language: a baseline that needs no network.

Words are runs of letters, marks and digits; of scripts that are written without spaces, each
letter is a word. The weight of a word is its count times ln((1 + n) / (1 + df)) + 1, of n texts of
which df hold it (Salton and Buckley 1988, smoothed as in scikit-learn); vectors are of unit length.
"""

from __future__ import annotations

import heapq
import json
import re
import sys
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cache, cached_property

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel

from imgray.artifacts.folder import Folder
from imgray.artifacts.manifest import FileEntry, entry_of
from imgray.errors import UserError
from imgray.features.texts import TextEncoder, TextNet

VOCABULARY = "vocabulary.json"
COUNTED = 2**20
"""Words that are counted at once while a vocabulary is made."""
SPACELESS = (
    ("\u0e00", "\u0eff"),  # Thai, Lao
    ("\u1000", "\u109f"),  # Myanmar
    ("\u1780", "\u17ff"),  # Khmer
    ("\u3040", "\u30ff"),  # Hiragana, Katakana
    ("\u3400", "\u9fff"),  # ideographs
    ("\uf900", "\ufaff"),
    ("\U00020000", "\U0003ffff"),
)
"""Scripts that are written without spaces."""


class Vocabulary(BaseModel):
    """The words of a bag, commonest first, and in how many of the texts each stands."""

    texts: int
    words: list[str]
    frequency: list[int]


class BagEncoder(TextEncoder):
    """Tf-idf over a vocabulary. A text without any word of it is rejected."""

    def refusal(self, text: str) -> str | None:
        known = any(word in self._places for word in words_of(text))
        return None if known else "none of its words is in the vocabulary"

    def encode(self, texts: Sequence[str], query: bool) -> NDArray[np.float32]:
        found = np.zeros((len(texts), len(self._places)), np.float32)
        for row, text in enumerate(texts):
            known = (self._places[word] for word in words_of(text) if word in self._places)
            places, counts = np.unique(np.fromiter(known, np.int64), return_counts=True)
            values = counts * self._weights[places]
            found[row, places] = values / (np.linalg.norm(values) or 1)
        return found

    @cached_property
    def _vocabulary(self) -> Vocabulary:
        return Vocabulary.model_validate_json(self.read(self.config.files[0]))

    @cached_property
    def _places(self) -> dict[str, int]:
        return {word: place for place, word in enumerate(self._vocabulary.words)}

    @cached_property
    def _weights(self) -> NDArray[np.float64]:
        frequency = np.array(self._vocabulary.frequency)
        found: NDArray[np.float64] = np.log((1 + self._vocabulary.texts) / (1 + frequency)) + 1
        return found


class FittedBag(BagEncoder):
    """A bag whose vocabulary lies in memory, yet to be saved."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.data = json.dumps(vocabulary.model_dump(), ensure_ascii=False).encode()
        files = (entry_of(VOCABULARY, self.data),)
        super().__init__(TextNet(library="imgray", files=files), Folder("."))

    def read(self, entry: FileEntry) -> bytes:
        return self.data


def fit(texts: Iterable[str], most: int) -> FittedBag:
    """A bag of the words that stand in most texts, as `vocabulary_of` finds them.

    Raises:
        UserError: there is no word in them.
    """
    found = vocabulary_of(texts, most)
    if not found.words:
        raise UserError("--extractor tfidf: there is no word in the texts")
    return FittedBag(found)


def vocabulary_of(texts: Iterable[str], most: int, least: int = 1) -> Vocabulary:
    """The words that stand in most texts, equal ones in alphabetical order.

    Memory is bounded: of more than `COUNTED` words, the rarer half is forgotten, and counted anew
    where it comes again (in the manner of lossy counting, Manku and Motwani 2002).

    Args:
        texts: read once.
        most: words at most.
        least: texts in which a word stands at least.
    """
    counts: Counter[str] = Counter()
    total = 0
    for text in texts:
        counts.update(set(words_of(text)))
        total += 1
        if len(counts) > COUNTED:
            counts = Counter(dict(_commonest(counts, COUNTED // 2)))
    chosen = [(word, df) for word, df in _commonest(counts, most) if df >= least]
    words, frequency = [word for word, _ in chosen], [df for _, df in chosen]
    return Vocabulary(texts=total, words=words, frequency=frequency)


def words_of(text: str) -> list[str]:
    """The words of a text: of its compatible form (NFKC), in small letters."""
    found: list[str] = _pattern().findall(unicodedata.normalize("NFKC", text).casefold())
    return found


@cache
def _pattern() -> re.Pattern[str]:
    every = map(chr, range(sys.maxunicode + 1))
    marks = "".join(letter for letter in every if unicodedata.category(letter)[0] == "M")
    alone = "".join(f"{first}-{last}" for first, last in SPACELESS)
    return re.compile(
        rf"[{alone}][{marks}]*|(?:(?![{alone}])[^\W_])(?:(?![{alone}])(?:[^\W_]|[{marks}]))*"
    )


def _commonest(counts: Counter[str], most: int) -> list[tuple[str, int]]:
    return heapq.nsmallest(most, counts.items(), key=lambda item: (-item[1], item[0]))
