"""Translation of pictures of one domain into those of another: the task."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from torch import Tensor

from imgray.data import pixels
from imgray.data.datasets import Dataset, Record
from imgray.data.fields import Input, Label, Output, Picture, Text, Values
from imgray.data.unpaired import DOMAINS, Unpaired
from imgray.errors import UserError
from imgray.synthesis.cut import Cut
from imgray.synthesis.scoring import ROWS, scores
from imgray.synthesis.settings import TranslationSettings
from imgray.synthesis.translator import TranslationLearner
from imgray.training.task import Arrays, Task


class Translation(Task):
    """Pictures of the first class of a data set to those of the second, and back.

    The data set is pictures in two classes, the domains: folders, or a table with a `label`.
    """

    kind = "translate"
    one_shape = False
    Settings = TranslationSettings
    settings: TranslationSettings
    outputs: Mapping[str, Output] = {"picture": Picture()}
    truth = {"label": Label()}
    rows = frozenset(f"{kind}_{domain}" for kind in ROWS for domain in DOMAINS)

    @property
    def inputs(self) -> Mapping[str, Input]:
        """`to` is the domain to translate into, the second where it is not said."""
        return {"image": Picture(), "to": Text(choices=self.classes, optional=True)}

    @property
    def fields(self) -> Mapping[str, Input]:
        return {"image": Picture(), **self.truth}

    def arranged(self, part: Dataset, scored: bool) -> Dataset:
        settings = self.settings
        return Unpaired(part, settings.paired and (scored or settings.supervised > 0))

    def check_classes(self, part: Dataset) -> None:
        if self.settings.maps not in (None, *part.classes):
            have = ", ".join(part.classes)
            raise UserError(f"settings.maps: no domain {self.settings.maps!r}; there are {have}")
        if tuple(part.classes) != self.classes:
            raise UserError(
                f"part {part.part!r} has the domains {', '.join(part.classes)}; the model was "
                f"trained on {', '.join(self.classes)}"
            )

    def prepare(self, values: Values) -> Arrays:
        to = values.get("to", self.classes[1])
        image = pixels.decode_within(values["image"], self.settings.longest)[0]
        return {"image": image, "to": np.array(self.classes.index(to))}

    def example(self, record: Record, chance: np.random.Generator | None) -> Arrays:
        """Both pictures, each cut for itself; of true pairs, where they are learnt from, alike.

        Without chance also whether each is one that had not been yet.
        """
        found: Arrays = {}
        for name in DOMAINS:
            if not (found and self.settings.supervised):
                cut = self._cut(chance)
            try:
                found[name] = cut.of(record[name])
            except pixels.Rejected as error:
                raise UserError(f"{record['ids'][name]}: {error}; mend or remove it") from None
            if chance is None:
                found[f"new_{name}"] = np.array(record["new"][name])
        return found

    def sample(self, record: Record, number: int) -> Record:
        """One way and the other in turn."""
        own = number % 2
        id, image = record["ids"][DOMAINS[own]], record[DOMAINS[own]]
        return {"id": id, "image": image, "to": self.classes[1 - own]}

    def _cut(self, chance: np.random.Generator | None) -> Cut:
        """A crop, perhaps mirrored; or the whole."""
        settings = self.settings
        if chance is None:
            return Cut(settings.crop, settings.crop)
        top, left = (int(chance.integers(settings.load - settings.crop + 1)) for _ in range(2))
        mirrored = settings.mirror and chance.random() < 0.5
        return Cut(settings.load, settings.crop, top, left, mirrored)

    def learner(self, initial: bool = True) -> TranslationLearner:
        maps = self.settings.maps
        mapped = maps and DOMAINS[self.classes.index(maps)]
        return TranslationLearner(self.settings, mapped, initial)

    def summarize(self, sums: Mapping[str, Tensor]) -> dict[str, float]:
        """What `TranslationLearner.evaluate` and `benchmark` sum up, by the domains' names."""
        found: dict[str, float] = {}
        for domain, name in zip(DOMAINS, self.classes, strict=True):
            own = {k.removesuffix(f"_{domain}"): v for k, v in sums.items() if k.endswith(domain)}
            found |= {f"{key}_{name}": one for key, one in self._summed(own).items()}
        return found

    def _summed(self, sums: Mapping[str, Tensor]) -> dict[str, float]:
        """Of a domain."""
        means = {key: sums[key] for key in ("cycle", "apart", "ssim") if key in sums}
        return {k: float(v / sums["count"]) for k, v in means.items()} | scores(self.settings, sums)
