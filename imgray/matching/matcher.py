"""Matching of images and texts by their features: the task that all systems of it share.

A record has the vector of an image, that of a text, or both; one to learn from has both. With the
setting `words` it has the text itself, which the network reads. The joint embeddings of the two are
of one space, where their dot product is the score of the pair.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from imgray.data.datasets import Dataset, Record
from imgray.data.fields import Input, Output, Scores, Text, Values, Vector
from imgray.data.pixels import Rejected
from imgray.drawing import plots
from imgray.errors import UserError
from imgray.features.bags import words_of
from imgray.features.texts import cleaned
from imgray.matching.bi_rank import Pairs
from imgray.matching.closed import moments, solve
from imgray.matching.nets import SIDES, Term, joined
from imgray.matching.settings import MatchingSettings
from imgray.matching.words import Numbers
from imgray.retrieval import fusion
from imgray.retrieval.recall import Ids, matching_metrics, matching_ranks
from imgray.training import workers
from imgray.training.task import Arrays, At, Batch, Learner, Prediction, Task


class Matching(Task):
    """Images and texts in one space.

    Texts of one image are told by the column `group` of a table, or else by their image's vector;
    texts whose vectors are equal are the same text, or of those that are read, whose words are.
    """

    kind = "match"
    Settings = MatchingSettings
    settings: MatchingSettings
    rows = frozenset({"image", "text", "image_id", "text_id"})

    @property
    def inputs(self) -> Mapping[str, Input]:
        return self._sides(optional=True)

    @property
    def fields(self) -> Mapping[str, Input]:
        return {**self._sides(optional=False), **self.truth}

    def _sides(self, optional: bool) -> dict[str, Input]:
        read: dict[str, Input] = {"text": Text(optional=optional)} if self.settings.words else {}
        if not self.settings.dims:
            lacking = [side for side in SIDES if side not in read]
            flags = " ".join(f"{side}=URI" for side in lacking)
            dims = ", ".join(f"{side}: N" for side in lacking)
            raise UserError(
                "recipe: settings.dims: the lengths of vectors are not known; give --features "
                f"{flags}, or for columns of a table settings.dims={{{dims}}}"
            )
        lengths = self.settings.lengths.items()
        return {side: Vector(dim, optional=optional) for side, dim in lengths} | read

    @property
    def outputs(self) -> Mapping[str, Output]:
        embeddings = {f"{side}_embedding": Vector(self.joint) for side in SIDES}
        return {"score": Scores(), **embeddings}

    @property
    def joint(self) -> int:
        return sum(self._sizes)

    @cached_property
    def _sizes(self) -> tuple[int, ...]:
        with torch.device("meta"):
            return self.settings.net().sizes

    def check_classes(self, part: Dataset) -> None:
        """There are none."""

    def completed(self, train: Dataset) -> dict[str, Any]:
        """The vocabulary of texts that are read."""
        words = self.settings.words
        if words is None or words.vocabulary:
            return {}
        return {"words": words.fitted(train.values("text")).model_dump(mode="json")}

    def prepare(self, values: Values) -> Arrays:
        found = {s: self._array(s, values[s]) for s in SIDES if values.get(s) is not None}
        if not found:
            raise Rejected(f"{' or '.join(SIDES)} is needed")
        return found

    def _array(self, side: str, given: Any) -> NDArray[Any]:
        if side != "text" or not self.settings.words:
            return np.asarray(given, np.float32)
        try:
            return self._numbers(cleaned(given))
        except Rejected as error:
            raise Rejected(f"text: {error}") from None

    @cached_property
    def _numbers(self) -> Numbers:
        assert self.settings.words
        return Numbers(self.settings.words)

    def example(self, record: Record, chance: np.random.Generator | None) -> Arrays:
        vectors = self.prepare(record)
        if lacking := [side for side in SIDES if side not in vectors]:
            raise UserError(f"{record['id']}: no {lacking[0]}; to learn from, a record needs both")
        image = str(record["group"]).encode() if "group" in record else vectors["image"].tobytes()
        read = self.settings.words is not None
        text = " ".join(words_of(record["text"])).encode() if read else vectors["text"].tobytes()
        return {**vectors, "image_id": _number(image), "text_id": _number(text)}

    def learner(self, initial: bool = True) -> MatchingLearner:
        return MatchingLearner(self.settings)

    def summarize(self, sums: Mapping[str, Tensor]) -> dict[str, float]:
        """R@1, 5 and 10 both ways, median ranks, and their sum `rsum`, as `matching_metrics`."""
        return matching_metrics(self._ranks(sums))

    def plot(self, sums: Mapping[str, Tensor], path: Path) -> None:
        """The recall at every k, both ways."""
        plots.recalls(self._ranks(sums), path)

    def _ranks(self, sums: Mapping[str, Tensor]) -> dict[str, Ids]:
        """By direction; average fusion is that of the joint embedding, whose parts are summed."""
        adaptive = self.settings.fusion == "adaptive"
        sizes = self._sizes if adaptive else (self.joint,)
        images, texts = ([p.numpy() for p in sums[side].split(sizes, dim=1)] for side in SIDES)
        ids = sums["image_id"].numpy(), sums["text_id"].numpy()
        return matching_ranks(images, texts, *ids, fusion.adaptive if adaptive else sum)


class MatchingLearner(Learner):
    """A network under a ranking loss, a closed form, or one that follows the other."""

    def __init__(self, settings: MatchingSettings) -> None:
        self.settings, self.net = settings, settings.net()
        self.modules = {"net": self.net}
        self.optimizers = {"net": settings.optimizer_of(self.modules)} if settings.trained else {}
        self.loss = settings.ranking()
        self.moments: dict[str, Tensor] = {}
        self.memory: dict[str, Tensor] = {}

    def step(self, batch: Batch, at: At) -> dict[str, Tensor]:
        if self.settings.closed and not self.net.solved:
            if not self.settings.trained or at.epoch < 1:
                self._gather(batch, last=at.step + 1 == at.steps)
                return {}
            self._solve()
        if len(batch["image_id"]) == 1 and self.settings.normalised:
            raise UserError(
                "batch normalisation needs two examples on each worker: raise batch_size, or lower "
                "--workers"
            )
        losses = self.objective(batch, at)
        total = torch.stack(list(losses.values())).sum()
        self.descend("net", total)
        return {"loss": total, **(losses if len(losses) > 1 else {})}

    def objective(self, batch: Batch, at: At) -> dict[str, Tensor]:
        """The losses of a step, weighted, by kind."""
        return self.ranked(self.terms(batch), batch["image_id"])

    def terms(self, batch: Batch) -> list[Term]:
        """What is to be ranked of a batch."""
        return self.net.terms({side: batch[side] for side in SIDES})

    def ranked(self, terms: list[Term], ids: Tensor) -> dict[str, Tensor]:
        """The losses of terms of images, weighted, by kind; they are remembered if that is set."""
        found: dict[str, Tensor] = {}
        for term, others in zip(terms, self._others(terms), strict=True):
            loss = term.weight * self.loss(Pairs(term.images, term.texts, ids), others)
            found[term.name] = found[term.name] + loss if term.name in found else loss
        self._remember(terms, ids)
        return found

    def _others(self, terms: list[Term]) -> list[Pairs | None]:
        """Pairs of earlier batches, by term."""
        if not self.memory:
            return [None] * len(terms)
        sizes = [term.images.shape[1] for term in terms]
        sides = [self.memory[side].split(sizes, dim=1) for side in SIDES]
        pairs = zip(*sides, strict=True)
        return [Pairs(image, text, self.memory["image_id"]) for image, text in pairs]

    def _remember(self, terms: list[Term], ids: Tensor) -> None:
        if not self.settings.memory:
            return
        images = torch.cat([term.images for term in terms], dim=1).detach()
        texts = torch.cat([term.texts for term in terms], dim=1).detach()
        new = {"image": images, "text": texts, "image_id": ids}
        self.memory = {
            name: torch.cat([self.memory[name], rows] if self.memory else [rows])
            for name, rows in new.items()
        }
        self._forget()

    def _forget(self) -> None:
        self.memory = {name: rows[-self.settings.memory :] for name, rows in self.memory.items()}

    def _gather(self, batch: Batch, last: bool) -> None:
        self.moments = workers.merged([self.moments, moments(*(batch[side] for side in SIDES))])
        if last:
            self._solve()

    def _solve(self) -> None:
        """Set the first maps to the closed form over the pairs of all workers."""
        settings, kind = self.settings, self.settings.closed
        assert kind
        sums = workers.summed({name: one.cpu() for name, one in self.moments.items()})
        dim = settings.first_width("image") or settings.dim
        maps = solve(kind, sums, dim, settings.shrink, settings.power)
        self.net.set_first(dict(zip(SIDES, maps, strict=True)))
        workers.spread(self.modules)
        self.moments = {}

    def state(self) -> dict[str, Tensor]:
        return {**{f"sum_{name}": one for name, one in self.moments.items()}, **self.memory}

    def load(self, state: Mapping[str, Tensor]) -> None:
        sums = {n.removeprefix("sum_"): one for n, one in state.items() if n.startswith("sum_")}
        self.moments = {name: one.sum(dim=0, keepdim=True) for name, one in sums.items()}
        self.memory = {name: one for name, one in state.items() if not name.startswith("sum_")}
        self._forget()

    def embed(self, batch: Batch) -> dict[str, Tensor]:
        parts = self.net({side: batch[side] for side in SIDES if side in batch})
        return {side: joined(some) for side, some in parts.items()}

    def evaluate(self, batch: Batch) -> dict[str, Tensor]:
        return {**self.embed(batch), **{name: batch[name] for name in ("image_id", "text_id")}}

    def predict(self, batch: Batch) -> list[Prediction]:
        """The embeddings of what is given, and the score where both are."""
        return [Prediction(row) for row in by_row(told(self.embed(batch)))]


def told(found: Mapping[str, Tensor]) -> dict[str, list[Any]]:
    """Columns of predictions: embeddings (N, D) by side, and of both sides their scores."""
    columns: dict[str, list[Any]] = {f"{s}_embedding": e.cpu().tolist() for s, e in found.items()}
    if len(found) == len(SIDES):
        columns["score"] = (found["image"] * found["text"]).sum(dim=1).cpu().tolist()
    return columns


def by_row(columns: Mapping[str, list[Any]]) -> list[dict[str, Any]]:
    """Columns as rows."""
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def _number(data: bytes) -> Any:
    """A number that tells bytes from others, int64."""
    digest = hashlib.blake2b(data, digest_size=8).digest()
    return np.array(int.from_bytes(digest, "little", signed=True))
