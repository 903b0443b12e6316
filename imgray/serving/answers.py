"""What the routes answer: one model each, which also documents the route."""

import base64
import io
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from numpy.typing import NDArray
from PIL import Image
from pydantic import BaseModel, Field

from imgray.artifacts.folder import Folder
from imgray.artifacts.manifest import read_manifest
from imgray.data import pixels
from imgray.engine.report import Report
from imgray.features.columns import FeatureInfo
from imgray.serving.guard import ErrorAnswer
from imgray.serving.predictor import Answer
from imgray.serving.search import Described, SearchAnswer
from imgray.training.models import fingerprint_of, load_task
from imgray.training.task import Task


class BatchAnswer(BaseModel):
    """An answer for each picture, or what was wrong with it, in their order."""

    version: str
    answers: list[SearchAnswer | ErrorAnswer]


class FeatureAnswer(FeatureInfo):
    """A feature of one picture: `regions` rows of `dim` numbers."""

    vectors: list[list[float]]


class EmbedAnswer(BaseModel):
    """The features of a picture by name."""

    version: str
    features: dict[str, FeatureAnswer]

    @classmethod
    def of(cls, index: Described, vectors: Mapping[str, NDArray[Any]]) -> Self:
        """From features as the encoder gives them."""
        features = {
            name: FeatureAnswer(**info.model_dump(), vectors=vectors[name].tolist())
            for name, info in index.columns.items()
        }
        return cls(version=index.version.digest, features=features)


class IndexAnswer(BaseModel):
    """An index version: what is in it, what made it, and how well it finds."""

    uri: str
    version: str = Field(description="digest of the artifact's manifest")
    images: int
    shards: int
    features: dict[str, FeatureInfo]
    collection: str = Field(description="where the indexed images lie")
    report: Report

    @classmethod
    def of(cls, index: Described, **more: Any) -> Self:
        """From what the artifact says of itself."""
        return cls(
            uri=index.version.uri,
            version=index.version.digest,
            images=index.manifest.counts["images"],
            shards=index.shards,
            features=dict(index.columns),
            collection=index.manifest.about["images"],
            report=index.report,
            **more,
        )


class SwapAnswer(IndexAnswer):
    """The index after a swap."""

    before: str = Field(description="the version that answered until now")


class IdsAnswer(BaseModel):
    """Some ids of the collection, in its order, and how many there are in all."""

    version: str
    images: int
    ids: list[str]


class ModelAnswer(BaseModel):
    """A model that is served."""

    name: str
    kind: str
    uri: str
    fingerprint: str
    classes: list[str]


class ModelsAnswer(BaseModel):
    """The models that are served."""

    models: list[ModelAnswer]


@dataclass(frozen=True)
class Served:
    """A model as the service knows it."""

    name: str
    uri: str
    task: Task
    fingerprint: str

    @classmethod
    def of(cls, name: str, uri: str) -> Self:
        """Read from the artifact, without its tensors."""
        folder = Folder(uri)
        manifest = read_manifest(folder, "model")
        return cls(name, uri, load_task(folder, manifest)[1], fingerprint_of(manifest))

    def describe(self) -> ModelAnswer:
        """The model as a client may know it."""
        return ModelAnswer(
            name=self.name,
            kind=self.task.kind,
            uri=self.uri,
            fingerprint=self.fingerprint,
            classes=list(self.task.classes),
        )


class Predicted(BaseModel):
    """Which model has answered."""

    model: str
    fingerprint: str


class ScoredClass(BaseModel):
    """A class, and how probable it is."""

    name: str
    score: float


class ClassifyAnswer(Predicted):
    """The most probable classes of a picture, best first."""

    classes: list[ScoredClass]

    @classmethod
    def of(cls, model: Served, answer: Answer, top: int) -> Self:
        """From a row of predictions."""
        words = model.task.words(answer.row)[:top]
        classes = [ScoredClass(name=name, score=round(score, 6)) for name, score in words]
        return cls(model=model.name, fingerprint=model.fingerprint, classes=classes)


class Painted(Predicted):
    """A picture that a model has painted: its size in pixels, and itself if it was asked for."""

    width: int
    height: int
    picture: str | None = Field(default=None, description="the PNG as a data URI")

    @classmethod
    def of(cls, model: Served, answer: Answer) -> Self:
        """From a row of predictions and its picture."""
        assert answer.size is not None
        width, height = answer.size
        found = {
            "model": model.name,
            "fingerprint": model.fingerprint,
            **cls.fields_of(model, answer),
        }
        if answer.png is not None:
            found["picture"] = f"data:image/png;base64,{base64.b64encode(answer.png).decode()}"
        return cls(width=width, height=height, **found)

    @staticmethod
    def fields_of(model: Served, answer: Answer) -> dict[str, Any]:
        """What one kind of model says beside the picture."""
        return dict(answer.row)


class ClassShare(BaseModel):
    """A class, its share of the pixels, and its colour in the mask."""

    name: str
    share: float
    color: str


class SegmentAnswer(Painted):
    """The classes of a picture's pixels, the largest share first."""

    classes: list[ClassShare]

    @staticmethod
    def fields_of(model: Served, answer: Answer) -> dict[str, Any]:
        task = model.task
        assert task.palette is not None
        pairs = zip(task.classes, task.palette, strict=True)
        colours = {name: "#" + bytes(colour).hex() for name, colour in pairs}
        words = task.words(answer.row)
        return {
            "classes": [ClassShare(name=n, share=round(s, 6), color=colours[n]) for n, s in words]
        }


class EdgesAnswer(Painted):
    """The edges of a picture."""

    edge_share: float = Field(description="share of the pixels that are more likely edges than not")


class HealthAnswer(BaseModel):
    """This replica lives."""

    status: str = "ok"


class ReadyAnswer(BaseModel):
    """Whether every part answers, and which do not."""

    ready: bool
    waiting: list[str]


def thumbnail(data: bytes, size: int) -> bytes:
    """A picture as JPEG, its longer side at most `size` pixels."""
    picture: Image.Image = pixels.decode(data, size)
    picture.thumbnail((size, size))
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=88)
    return buffer.getvalue()
