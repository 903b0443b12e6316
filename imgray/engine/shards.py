"""Open the shards of a published index: without Ray, and without torch, which is slow to load."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
from safetensors.numpy import load as load_safetensors

from imgray.artifacts.folder import Folder
from imgray.artifacts.manifest import Manifest, local_file, opening, read_file
from imgray.errors import UserError
from imgray.retrieval.codebook import Codebooks
from imgray.retrieval.deepindex import DeepIndex, Images, Shard
from imgray.retrieval.modalities import IMAGE, MODALITIES, TEXT

PLACES = {IMAGE: "", TEXT: "joint/"}
"""Where the part of an index lies that answers a modality. The ids lie in the first part."""
CODEBOOKS, FREQUENCY = "codebooks.safetensors", "frequency.safetensors"


def open_shards(
    folder: Folder, manifest: Manifest, only: Collection[int] | None = None
) -> DeepIndex:
    """The part that answers pictures, as `open_parts`."""
    return open_parts(folder, manifest, only, [IMAGE])[IMAGE]


def open_parts(
    folder: Folder,
    manifest: Manifest,
    only: Collection[int] | None = None,
    modalities: Sequence[str] = MODALITIES,
) -> dict[str, DeepIndex]:
    """Load an index, or some shards of it, every file verified against the manifest before use.

    Args:
        folder: where it lies.
        manifest: of it.
        only: numbers of the shards; by default all.
        modalities: those that are to be answered; one that the index lacks is left out.

    Returns:
        By modality the part that answers it; the parts share their ids.
    """
    with opening(folder):
        images: dict[str, Images] = {}
        return {
            modality: _opened(folder, manifest, only, PLACES[modality], images)
            for modality in modalities
            if answers(manifest, modality)
        }


def answers(manifest: Manifest, modality: str) -> bool:
    """Whether an index has the part that answers a modality."""
    return modality == IMAGE or "joint" in manifest.about


def check_answers_words(folder: Folder, manifest: Manifest) -> None:
    """Raises `UserError` for an index that does not."""
    if not answers(manifest, TEXT):
        raise UserError(
            f"{folder.uri}: this index knows pictures alone, no words; make one with imgray index "
            "--joint MODEL, a model trained to match images and texts"
        )


def _opened(
    folder: Folder,
    manifest: Manifest,
    only: Collection[int] | None,
    place: str,
    images: dict[str, Images],
) -> DeepIndex:
    codebooks = Codebooks.from_bytes(read_file(folder, manifest.file(place + CODEBOOKS)))
    stored = load_safetensors(read_file(folder, manifest.file(place + FREQUENCY)))
    frequency = np.zeros(codebooks.settings.lists, np.int64)
    frequency[stored["lists"]] = stored["counts"]
    shards, offset = [], 0
    for number, entry in enumerate(manifest.named(f"{place}shard-", ".faiss")):
        if only is None or number in only:
            name = entry.name.removeprefix(place).replace(".faiss", ".parquet")
            if name not in images:
                images[name] = Images(local_file(folder, manifest.file(name)))
            shards.append(Shard(local_file(folder, entry), images[name], offset))
        offset += entry.rows
    return DeepIndex(codebooks, frequency, manifest.counts["images"], shards)
