"""What the routes answer, and what they know of a model."""

import base64
import io
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from PIL import Image

from imgray import pixels
from imgray.manifest import read_manifest
from imgray.models import fingerprint_of, load_task
from imgray.serving.predictor import Answer
from imgray.serving.search import Described
from imgray.storage import Folder
from imgray.training import Task


@dataclass(frozen=True)
class Served:
    """A model as a client may know it."""

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

    def describe(self) -> dict[str, Any]:
        """The model in `/v1/models`."""
        return {
            "name": self.name,
            "kind": self.task.kind,
            "uri": self.uri,
            "fingerprint": self.fingerprint,
            "classes": list(self.task.classes),
        }


def about(index: Described) -> dict[str, Any]:
    """An index version: what is in it, what made it, and how well it finds."""
    manifest = index.manifest
    return {
        "uri": index.version.uri,
        "version": index.version.digest,
        "images": manifest.counts["images"],
        "shards": index.shards,
        "features": {name: info.model_dump() for name, info in index.columns.items()},
        "collection": manifest.about["images"],
        "recall": index.report.recall,
        "report": index.report.model_dump(mode="json"),
    }


def named(model: Served) -> dict[str, str]:
    """Which model has answered."""
    return {"model": model.name, "fingerprint": model.fingerprint}


def painting(task: Task, answer: Answer) -> dict[str, Any]:
    """A painted picture: its size, what is in it, and itself as a data URI if it was asked for."""
    assert answer.size is not None
    width, height = answer.size
    found = {"width": width, "height": height, **_summary(task, answer.row)}
    if answer.png is not None:
        found["picture"] = f"data:image/png;base64,{base64.b64encode(answer.png).decode()}"
    return found


def _summary(task: Task, row: Mapping[str, Any]) -> dict[str, Any]:
    """A painted picture in numbers: its classes with their colours, or the row as it is."""
    if not task.classes or task.palette is None:
        return dict(row)
    colours = {
        name: "#" + bytes(colour).hex()
        for name, colour in zip(task.classes, task.palette, strict=True)
    }
    words = task.words(row)
    return {"classes": [{"name": n, "share": round(s, 6), "color": colours[n]} for n, s in words]}


def thumbnail(data: bytes, size: int) -> bytes:
    """A picture as JPEG, its longer side at most `size` pixels."""
    picture: Image.Image = pixels.decode(data, size)
    picture.thumbnail((size, size))
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=88)
    return buffer.getvalue()
