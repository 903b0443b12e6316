"""What a recipe says: a task and everything else that determines a run but the data themselves."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any, ClassVar, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from imgray.config import Precision, parse_yaml, validate
from imgray.data.datasets import Dataset, Truth
from imgray.data.fields import Input
from imgray.data.layout import Stored
from imgray.data.sources import Source
from imgray.errors import UserError


class Settings(BaseModel):
    """Base of what a recipe may say to its task. Unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    uris: ClassVar[frozenset[str]] = frozenset()
    """Settings that name places."""
    models: ClassVar[frozenset[str]] = frozenset()
    """Those of them whose model a run takes tensors from: it is known by their fingerprints."""


def one_of(names: Collection[str]) -> AfterValidator:
    """A setting that is one of these names, such as the keys of a table."""

    def known(name: str) -> str:
        if name not in names:
            raise ValueError(f"no {name!r}; choose among {', '.join(names)}")
        return name

    return AfterValidator(known)


class Schedule(Settings):
    """How learning rates change over a run, as a factor on each optimizer's own."""

    kind: Literal["constant", "step", "cosine", "linear"] = "constant"
    every: int = Field(default=0, ge=0, description="steps between two drops, for `step`")
    at: tuple[int, ...] = Field(default=(), description="steps of single drops, for `step`")
    drop: float = Field(default=0.1, gt=0, description="factor of a drop, for `step`")
    hold: float = Field(default=0.5, ge=0, le=1, description="share before a `linear` fall")
    warmup: int = Field(default=0, ge=0, description="steps of linear rise at the start")

    @model_validator(mode="after")
    def _complete(self) -> Schedule:
        if self.kind == "step" and bool(self.every) == bool(self.at):
            raise ValueError("a step schedule needs either schedule.every or schedule.at")
        return self

    def factor(self, step: int, steps: int) -> float:
        """The factor at a step of a run of so many steps."""
        if step < self.warmup:
            return (step + 1) / self.warmup
        share = (step - self.warmup) / max(1, steps - self.warmup)
        if self.kind == "step":
            drops = step // self.every if self.every else sum(step >= at for at in self.at)
            return self.drop**drops
        if self.kind == "cosine":
            return 0.5 * (1 + math.cos(math.pi * share))
        if self.kind == "linear":
            return min(1.0, (1 - share) / max(1e-12, 1 - self.hold))
        return 1.0


class OptimizerSettings(Settings):
    """How one optimizer goes down; what is not set is as for all."""

    schedule: Schedule = Schedule()
    clip: float | None = Field(default=None, gt=0)


FORMATS: dict[str, Truth] = {
    "folders": "folders",
    "parquet": "columns",
    "masks": "masks",
    "edges": "boundaries",
}
"""What recipes, models and runs of before call the layout: `format`, or `form`."""


class DataSettings(Settings):
    """Which parts of the data set at `--data` are read, and how they are laid out."""

    stored: Stored | None = Field(
        default=None, description="files, table or tar (default: by what lies at --data)"
    )
    truth: Truth | None = Field(
        default=None,
        description="where the truth of files is: folders, masks or boundaries; that of a table is "
        "in its columns, that of tars in their members",
    )
    train: str = Field(default="train", description="the part to train on")
    hold_out: float | None = Field(
        default=None, gt=0, lt=1, description="share of that part to validate on instead"
    )
    validate_on: str | None = Field(
        default_factory=lambda data: None if data.get("hold_out") else "val",
        alias="validate",
        description="the part to validate on",
    )

    @model_validator(mode="before")
    @classmethod
    def _of_before(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        earlier = {key: values[key] for key in ("format", "form") if key in values}
        for key, format in earlier.items():
            if "truth" in values:
                raise ValueError(f"{key} is truth now: give truth alone")
            if not isinstance(format, str) or format not in FORMATS:
                raise ValueError(f"no {key} {format!r}; give truth instead")
            values = {**values, "truth": FORMATS[format]}
        return {key: value for key, value in values.items() if key not in earlier}

    @model_validator(mode="after")
    def _consistent(self) -> DataSettings:
        if (self.validate_on is None) == (self.hold_out is None):
            raise ValueError("give either validate or hold_out")
        if self.stored == "files" and self.truth in (None, "columns"):
            raise ValueError("of files, truth is one of folders, masks, boundaries")
        return self

    def training(self, source: Source, fields: Mapping[str, Input] | None = None) -> Dataset:
        """Open what is trained on; of a table or tars the fields are read. `UserError`."""
        if self.hold_out is None:
            return self.part(source, self.train, fields)
        return source.held(self._whole(source, fields), self.hold_out, held=False)

    def validation(self, source: Source, fields: Mapping[str, Input] | None = None) -> Dataset:
        """Open what is validated on; of a table or tars the fields are read. `UserError`."""
        if self.validate_on is not None:
            return self.part(source, self.validate_on, fields)
        assert self.hold_out is not None
        return source.held(self._whole(source, fields), self.hold_out, held=True)

    def part(self, source: Source, part: str, fields: Mapping[str, Input] | None = None) -> Dataset:
        """Open any part. Raises `UserError`."""
        return source.part(part, fields, self.truth, self.stored)

    def _whole(self, source: Source, fields: Mapping[str, Input] | None) -> Dataset:
        return source.part(self.train, fields, self.truth, self.stored, whole=True)


class Recipe(Settings):
    """Everything that determines a trained model but the data themselves."""

    task: str = Field(description="the task's class, as package.module:Class")
    settings: dict[str, Any] = Field(default={}, description="of the task")
    data: DataSettings
    batch_size: int = Field(ge=1, le=2**20, description="examples per step, over all workers")
    steps: int | None = Field(default=None, ge=1, le=10**12)
    epochs: float | None = Field(default=None, gt=0, le=10**6)
    schedule: Schedule = Schedule()
    clip: float | None = Field(default=None, gt=0, description="largest norm of a gradient")
    optimizers: dict[str, OptimizerSettings] = Field(
        default={}, description="schedule and clip of single optimizers, by name"
    )
    precision: Precision = "float32"
    seed: int = Field(default=0, ge=0, lt=2**63)
    evaluate_every: float = Field(default=1.0, gt=0, description="epochs between evaluations")
    start: str | dict[str, str] | None = Field(
        default=None, description="model artifact to take weights from, or one for each network"
    )
    checkpoint_every: int = Field(default=200, ge=1, description="steps a lost worker may cost")
    log_every: int = Field(default=20, ge=1, description="steps per line of the curves")

    @model_validator(mode="after")
    def _one_length(self) -> Recipe:
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("give either steps or epochs")
        return self

    @model_validator(mode="after")
    def _complete(self) -> Recipe:
        """Single optimizers have in full what applies to them."""
        for name, own in self.optimizers.items():
            common = {key: getattr(self, key) for key in ("schedule", "clip")}
            unset = common.keys() - own.model_fields_set
            self.optimizers[name] = own.model_copy(update={key: common[key] for key in unset})
        return self

    @property
    def starts(self) -> dict[str, str]:
        """URIs to take weights from, by network; of all networks at once under an empty name."""
        return {"": self.start} if isinstance(self.start, str) else self.start or {}

    def optimizer(self, name: str) -> OptimizerSettings:
        """How an optimizer goes down."""
        common = OptimizerSettings(schedule=self.schedule, clip=self.clip)
        return self.optimizers.get(name, common)

    def length(self, examples: int) -> int:
        """Steps of the whole run."""
        if self.steps is not None:
            return self.steps
        assert self.epochs is not None
        return max(1, round(self.epochs * examples / self.batch_size))


def with_changes(values: dict[str, Any], changes: Sequence[str], where: str) -> Recipe:
    """A recipe from its values, as YAML has them, and `KEY=VALUE` changes. Raises `UserError`.

    `where` says what the values are of, for a message.
    """
    for change in changes:
        key, equals, text = change.partition("=")
        if not (key and equals):
            raise UserError(f"--set {change}: expected KEY=VALUE")
        place = values
        *parents, last = key.split(".")
        for parent in parents:
            place = place.setdefault(parent, {})
            if not isinstance(place, dict):
                raise UserError(f"--set {change}: {parent} holds no settings")
        place[last] = parse_yaml(text, f"--set {change}")
    return validate(Recipe, values, where)
