"""The features of a picture or a text: prepare it once, run every network, lay out columns.

Extraction, training, queries and serving all go through `Extractor`, so one picture or text has one
vector.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, SerializerFunctionWrapHandler, model_serializer

from imgray.artifacts.folder import Folder
from imgray.artifacts.manifest import FileEntry, Manifest, entry_of, opening, read_file, sha256
from imgray.data import pixels
from imgray.data.fields import Input, Picture, Text
from imgray.features.backbones import Backbone, BackboneConfig, regions_of
from imgray.features.bags import BagEncoder
from imgray.features.columns import SIZE, FeatureInfo, Vectors
from imgray.features.openclip import OpenClipEncoder
from imgray.features.sentences import SentenceEncoder
from imgray.features.texts import LAYER, TextEncoder, TextNet, cleaned
from imgray.features.weights import dump, restore

PYRAMID = (1, 2, 3)
ENCODERS: Mapping[str, type[TextEncoder]] = {
    "sentence-transformers": SentenceEncoder,
    "open_clip": OpenClipEncoder,
    "imgray": BagEncoder,
}
"""Of a text encoder's library, what runs it."""


class ExtractorConfig(BaseModel):
    """What determines the features of pictures or texts, apart from the networks' tensors.

    nets, texts: by the name that the user gave. With `nets` the features are of pictures, and
    `texts` are the text towers of those among them that are dual encoders; without, of texts.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    nets: dict[str, BackboneConfig] = {}
    texts: dict[str, TextNet] = {}
    grids: tuple[int, ...] = (1,)
    crop_regions: bool = False
    max_pixels: int = pixels.MAX_PIXELS

    @model_serializer(mode="wrap")
    def _known_before(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without texts, as versions that know none of them read it."""
        found: dict[str, Any] = dump(self)
        return found if self.texts else {k: v for k, v in found.items() if k != "texts"}


@dataclass(frozen=True)
class Prepared:
    """A decoded image: its size as displayed and, per input size, uint8 (R or 1, s, s, 3)."""

    width: int
    height: int
    inputs: dict[int, NDArray[np.uint8]]


class Extractor(ABC):
    """Networks that see the same picture or text.

    Attributes:
        config: what they are.
        texts: the text encoders among them, by name.
        input, inputs: the input that it takes, by name, and what that is.
        names: of the features, `NET.LAYER`, in order.
    """

    input: ClassVar[str]
    inputs: ClassVar[Mapping[str, Input]]

    def __init__(self, config: ExtractorConfig, texts: Mapping[str, TextEncoder]) -> None:
        self.config, self.texts = config, texts

    @property
    @abstractmethod
    def names(self) -> list[str]: ...

    @abstractmethod
    def to(self, device: str) -> Extractor:
        """Move all networks to a device."""

    @abstractmethod
    def prepare(self, value: Any) -> Any:
        """Decode a value of the input. Raises `Rejected`."""

    @abstractmethod
    def run(self, batch: Sequence[Any]) -> Vectors:
        """Features of prepared values: for every name float32 (B, R, C), of unit length."""

    @abstractmethod
    def fingerprint(self, net: str) -> str:
        """Digest of a network and its settings; equal digests, equal vectors."""

    def describe(self) -> dict[str, FeatureInfo]:
        """The columns that this extractor makes, found by a pass over an empty value."""
        return {
            name: FeatureInfo(
                regions=value.shape[1],
                dim=value.shape[2],
                fingerprint=self.fingerprint(name.partition(".")[0]),
            )
            for name, value in self.run([self._blank()]).items()
        }

    @abstractmethod
    def _blank(self) -> Any: ...


class PictureExtractor(Extractor):
    """Networks that see the same decoded pixels.

    Args:
        texts: the text towers of those that are dual encoders.
    """

    input, inputs = "image", {"image": Picture()}

    def __init__(
        self,
        config: ExtractorConfig,
        nets: Mapping[str, Backbone],
        texts: Mapping[str, TextEncoder] | None = None,
    ) -> None:
        super().__init__(config, texts or {})
        self.nets = nets
        self.sizes = {net.config.size for net in nets.values()}

    @property
    def names(self) -> list[str]:
        return [f"{net}.{layer}" for net, b in self.nets.items() for layer in b.config.layers]

    def to(self, device: str) -> PictureExtractor:
        for net in self.nets.values():
            net.to(device)
        return self

    def prepare(self, value: bytes) -> Prepared:
        """Decode an image and bring it to the networks' input sizes. Raises `pixels.Rejected`."""
        image, (width, height) = pixels.decode_sized(
            value, self._shortest(), self.config.max_pixels
        )
        if self.config.crop_regions:
            inputs = {s: regions_of(image, s, self.config.grids) for s in self.sizes}
        else:
            inputs = {s: pixels.resize(image, s)[None] for s in self.sizes}
        return Prepared(width, height, inputs)

    def _shortest(self) -> int:
        """The smallest side, in pixels, that the finest cut needs of a decoded image."""
        return max(self.sizes) * (max(self.config.grids) if self.config.crop_regions else 1)

    def run(self, batch: Sequence[Prepared]) -> Vectors:
        vectors: Vectors = {}
        for name, net in self.nets.items():
            size = net.config.size
            images = torch.from_numpy(np.concatenate([item.inputs[size] for item in batch]))
            grids = (1,) if self.config.crop_regions else self.config.grids
            for layer, output in net(images, grids).items():
                found = output.float().cpu().numpy()
                vectors[f"{name}.{layer}"] = found.reshape(len(batch), -1, found.shape[-1])
        return vectors

    def _blank(self) -> Prepared:
        return Prepared(
            1, 1, {s: np.zeros((self._inputs(), s, s, 3), np.uint8) for s in self.sizes}
        )

    def fingerprint(self, net: str) -> str:
        return picture_print(self.config, self.nets[net].config.fingerprint)

    def _inputs(self) -> int:
        return sum(g * g for g in self.config.grids) if self.config.crop_regions else 1


def picture_print(config: ExtractorConfig, net: str) -> str:
    """Digest of a network's fingerprint and of how its regions are cut."""
    settings = config.model_dump_json(include={"grids", "crop_regions"})
    return sha256(f"{net} {settings}".encode())


def whole_pictures(config: ExtractorConfig, name: str) -> str | None:
    """The fingerprint that a feature would have without regions.

    The first region of a pyramid has its vectors, up to rounding. None where it has not: regions
    that are cut from the picture are scaled by themselves.
    """
    if config.crop_regions or config.grids[:1] != (1,):
        return None
    one = config.model_copy(update={"grids": (1,)})
    return picture_print(one, config.nets[name.partition(".")[0]].fingerprint)


@dataclass(frozen=True)
class PreparedText:
    """A text as `cleaned` gives it, and whether it is searched with, rather than stored."""

    text: str
    query: bool = False


class TextExtractor(Extractor):
    """Encoders of the same text, each of which gives one vector: R is 1."""

    input, inputs = "text", {"text": Text()}

    @property
    def names(self) -> list[str]:
        return [f"{name}.{LAYER}" for name in self.texts]

    def to(self, device: str) -> TextExtractor:
        for encoder in self.texts.values():
            encoder.to(device)
        return self

    def prepare(self, value: Any, query: bool = False) -> PreparedText:
        """Bring a text to its form. Raises `Rejected`."""
        text = cleaned(value)
        for name, encoder in self.texts.items():
            if reason := encoder.refusal(text):
                raise pixels.Rejected(f"{name}: {reason}")
        return PreparedText(text, query)

    def run(self, batch: Sequence[PreparedText]) -> Vectors:
        return {
            f"{name}.{LAYER}": self._encode(encoder, batch) for name, encoder in self.texts.items()
        }

    def _encode(self, encoder: TextEncoder, batch: Sequence[PreparedText]) -> NDArray[np.float32]:
        found: dict[int, NDArray[np.float32]] = {}
        for query in (False, True):
            places = [place for place, one in enumerate(batch) if one.query is query]
            texts = [batch[place].text for place in places]
            found |= zip(places, encoder.encode(texts, query) if texts else (), strict=True)
        return np.stack([found[place] for place in range(len(batch))])[:, None]

    def fingerprint(self, net: str) -> str:
        return self.config.texts[net].fingerprint

    def _blank(self) -> PreparedText:
        return PreparedText("a")


def weights_file(net: str) -> str:
    """Where the tensors of a network lie inside a features or index artifact."""
    return f"{_under(net)}.safetensors"


def _under(net: str) -> str:
    """Where the files of a text encoder lie inside an artifact."""
    return f"extractors/{net.replace('/', '-')}"


def extractor_files(config: ExtractorConfig) -> list[str]:
    """The files of an artifact that hold its extractor."""
    texts = [f"{_under(name)}/{e.name}" for name, text in config.texts.items() for e in text.files]
    return [weights_file(name) for name in config.nets] + texts


def save_extractor(extractor: Extractor, folder: Folder) -> list[FileEntry]:
    """Write every network's files into an artifact; returns their manifest entries."""
    entries = []
    for name, data in _contents(extractor):
        folder.write(name, data)
        entries.append(entry_of(name, data))
    return entries


def _contents(extractor: Extractor) -> Iterator[tuple[str, bytes]]:
    if isinstance(extractor, PictureExtractor):
        yield from ((weights_file(name), dump(net)) for name, net in extractor.nets.items())
    for name, encoder in extractor.texts.items():
        for entry in encoder.config.files:
            yield f"{_under(name)}/{entry.name}", encoder.read(entry)


def load_extractor(folder: Folder, manifest: Manifest) -> Extractor:
    """The extractor that made an artifact, from the verified files inside it."""
    with opening(folder):
        config = ExtractorConfig.model_validate(manifest.about["extractor"])
        return open_extractor(config, folder, lambda name: read_file(folder, manifest.file(name)))


def load_texts(folder: Folder, manifest: Manifest) -> TextExtractor:
    """The text encoders of an artifact: those that made it, or the text towers of its networks."""
    with opening(folder):
        config = ExtractorConfig.model_validate(manifest.about["extractor"])
        return TextExtractor(config, _texts(config, folder))


def open_extractor(
    config: ExtractorConfig, folder: Folder, read: Callable[[str], bytes]
) -> Extractor:
    """An extractor whose files lie in a folder, its tensors to be read so; fingerprints hold."""
    texts = _texts(config, folder)
    if not config.nets:
        return TextExtractor(config, texts)
    nets = {name: restore(net, read(weights_file(name))) for name, net in config.nets.items()}
    return PictureExtractor(config, nets, texts)


def _texts(config: ExtractorConfig, folder: Folder) -> dict[str, TextEncoder]:
    root = folder.absolute.rstrip("/")
    return {
        name: ENCODERS[net.library](net, Folder(f"{root}/{_under(name)}"))
        for name, net in config.texts.items()
    }


def to_table(
    ids: Sequence[str], batch: Sequence[Any], vectors: Vectors, columns: pa.Schema
) -> pa.Table:
    """Rows of the features artifact, at the stored precision."""
    arrays: dict[str, pa.Array] = {"id": pa.array(ids, pa.string())}
    for name in columns.names:
        if name in SIZE:
            arrays[name] = pa.array([getattr(item, name) for item in batch], pa.int32())
        elif name != "id":
            values = vectors[name].reshape(len(ids), -1).astype(np.float16)
            flat = pa.array(values.ravel(), pa.float16())
            arrays[name] = pa.FixedSizeListArray.from_arrays(flat, values.shape[1])
    return pa.table(list(arrays.values()), schema=columns)
