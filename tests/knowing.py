"""In place of a trained matching model: a joint embedding that knows which picture a text means.

`imgray.training.joint.load_joint` is replaced by `load`, in this process.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from zlib import crc32

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load as load_safetensors
from safetensors.numpy import save

from imgray.artifacts.folder import Folder
from imgray.artifacts.manifest import Manifest, entry_of, publish, read_file, read_manifest
from imgray.data.fields import Text
from imgray.features.columns import FeatureInfo, Vectors
from imgray.retrieval.codebook import unit

Floats = NDArray[np.float32]
WEIGHTS, LEFT = "model.safetensors", "carried/image/extractors/one.safetensors"
DIM = 12


def write(uri: str, columns: dict[str, FeatureInfo], pictures: Vectors, seed: int = 0) -> Manifest:
    """Publish a model of these columns whose texts mean these pictures, by their number."""
    folder = Folder(uri)
    folder.remove("")
    width = sum(info.regions * info.dim for info in columns.values())
    matrix = np.random.default_rng(seed).normal(size=(width, DIM)).astype(np.float32)
    meant = _mapped(pictures, list(columns), matrix)
    contents = {
        WEIGHTS: save({"matrix": matrix, "meant": meant}),
        LEFT: b"a network",
        "carried/text/words.json": b"{}",
    }
    for name, data in contents.items():
        folder.write(name, data)
    described = {name: info.model_dump() for name, info in columns.items()}
    return publish(
        folder,
        Manifest(
            kind="model",
            config={"seed": seed},
            about={"columns": described, "fingerprint": f"print {seed}"},
            files=[entry_of(name, data) for name, data in contents.items()],
        ),
    )


def _mapped(vectors: Vectors, names: Sequence[str], matrix: Floats) -> Floats:
    flat = [vectors[name].reshape(len(vectors[name]), -1) for name in names]
    return unit(np.concatenate(flat, axis=1) @ matrix)


@dataclass(frozen=True)
class Words:
    """As `imgray.training.joint.Joint`."""

    columns: dict[str, FeatureInfo]
    matrix: Floats
    meant: Floats
    fingerprint: str
    dim: int = DIM

    def to(self, device: str) -> "Words":
        return self

    def pictures(self, vectors: Vectors) -> Floats:
        return _mapped(vectors, list(self.columns), self.matrix)

    def texts(self, texts: Sequence[str]) -> Floats:
        """`NUMBER and more words` is near the picture of that number, and beside all pictures."""
        found = []
        for text in texts:
            number = int(Text().value(text).split()[0])
            noise = np.random.default_rng(crc32(text.encode())).normal(size=DIM) / DIM**0.5
            found.append(self.meant[number] + 0.3 * noise + 0.3)
        return unit(np.array(found))


def load(uri: str) -> Words:
    folder = Folder(uri)
    manifest = read_manifest(folder, "model")
    columns = {n: FeatureInfo.model_validate(i) for n, i in manifest.about["columns"].items()}
    tensors = load_safetensors(read_file(folder, manifest.file(WEIGHTS)))
    return Words(columns, tensors["matrix"], tensors["meant"], manifest.about["fingerprint"])
