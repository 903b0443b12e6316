"""What the routes answer: one model each, which also documents the route."""

import base64
import io
from collections.abc import Mapping
from typing import Any, Self

from fastapi.responses import JSONResponse
from numpy.typing import NDArray
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field

from imgray.data import pixels
from imgray.data.fields import DIGITS, ClassMap, Output
from imgray.engine.joint import JOINT
from imgray.engine.report import Report
from imgray.features.columns import FeatureInfo
from imgray.serving.guard import ErrorAnswer, Refusal
from imgray.serving.models import Served
from imgray.serving.predictor import Answer
from imgray.serving.search import Described, JointInfo, SearchAnswer
from imgray.training.task import longest_of


class BatchAnswer(BaseModel):
    """An answer for each picture, or what was wrong with it, in their order."""

    version: str
    answers: list[SearchAnswer | ErrorAnswer]


class FeatureAnswer(FeatureInfo):
    """A feature of one picture: `regions` rows of `dim` numbers."""

    vectors: list[list[float]]


class EmbedAnswer(BaseModel):
    """The features of a picture by name, or the one of a text, which is `joint`."""

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

    @classmethod
    def of_text(cls, index: Described, vector: NDArray[Any]) -> Self:
        """From the joint embedding (D,) of a text."""
        assert index.joint is not None
        joint = FeatureAnswer(regions=1, **index.joint.model_dump(), vectors=[vector.tolist()])
        return cls(version=index.version.digest, features={JOINT: joint})


class IndexAnswer(BaseModel):
    """An index version: what is in it, what made it, and how well it finds."""

    uri: str
    version: str = Field(description="digest of the artifact's manifest")
    images: int
    shards: int
    features: dict[str, FeatureInfo]
    joint: JointInfo | None = Field(description="without it only pictures are searched with")
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
            joint=index.joint,
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


class FieldAnswer(BaseModel):
    """What an input or an output is; more, by its type, such as `labels`, `dim` or `longest`."""

    model_config = ConfigDict(extra="allow")

    type: str


class InputAnswer(FieldAnswer):
    """What an input is."""

    required: bool


class ModelAnswer(BaseModel):
    """A model that is served: what it takes and gives, by name."""

    name: str
    kind: str
    uri: str
    fingerprint: str
    classes: list[str]
    longest: int | None = Field(
        default=None, description="pixels to which it scales longer pictures down, if it does"
    )
    inputs: dict[str, InputAnswer]
    outputs: dict[str, FieldAnswer]

    @classmethod
    def of(cls, model: Served) -> Self:
        """The model as a client may know it."""
        task = model.task
        inputs = {
            name: InputAnswer(type=one.type, required=not one.optional, **one.details())
            for name, one in model.inputs.items()
        }
        outputs = {
            name: FieldAnswer(type=one.type, **one.details()) for name, one in task.outputs.items()
        }
        return cls(
            name=model.name,
            kind=task.kind,
            uri=model.uri,
            fingerprint=model.fingerprint,
            classes=list(task.classes),
            longest=longest_of(task),
            inputs=inputs,
            outputs=outputs,
        )


class ModelsAnswer(BaseModel):
    """The models that are served."""

    models: list[ModelAnswer]


def told(model: Served, answer: Answer) -> JSONResponse:
    """The outputs of a model by name; one for which an optional input lacks is left out.

    Raises:
        Refusal: a number among them is not finite.
    """
    outputs = {
        name: _painted(one, model, answer) if one.painted else one.answer(name, answer.row)
        for name, one in model.task.outputs.items()
        if one.painted or not answer.row.keys().isdisjoint(c.name for c in one.columns(name))
    }
    found = {"model": model.name, "fingerprint": model.fingerprint, "outputs": outputs}
    try:
        return JSONResponse(found)
    except ValueError:
        text = "what the model makes of this is not finite; are numbers in it too large?"
        raise Refusal(422, text) from None


def _painted(one: Output, model: Served, answer: Answer) -> dict[str, Any]:
    """The size of a picture, of a class map its legend, and itself if it was asked for."""
    assert answer.size is not None
    found: dict[str, Any] = dict(zip(("width", "height"), answer.size, strict=True))
    if isinstance(one, ClassMap):
        colours = list(_colours(model).items())
        labels = [colours[place] for place in answer.labels if place < len(colours)]
        found["labels"] = [{"name": name, "color": color} for name, color in labels]
    return found | ({"data": _data_uri(answer.encoded)} if answer.encoded is not None else {})


def _colours(model: Served) -> dict[str, str]:
    """The classes of what a model paints, in the order of their values, with their colours."""
    maps = (one for one in model.task.outputs.values() if isinstance(one, ClassMap))
    palette = model.task.palette
    assert palette is not None
    return {n: "#" + bytes(c).hex() for n, c in zip(next(maps).labels, palette, strict=True)}


def _data_uri(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


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
        classes = [ScoredClass(name=name, score=round(score, DIGITS)) for name, score in words]
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
        return cls(
            model=model.name,
            fingerprint=model.fingerprint,
            width=width,
            height=height,
            picture=_data_uri(answer.encoded) if answer.encoded is not None else None,
            **cls.fields_of(model, answer),
        )

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
        colours, words = _colours(model), model.task.words(answer.row)
        return {
            "classes": [
                ClassShare(name=name, share=round(share, DIGITS), color=colours[name])
                for name, share in words
            ]
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
