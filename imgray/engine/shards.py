"""Open the shards of a published index: without Ray, and without torch, which is slow to load."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
from safetensors.numpy import load as load_safetensors

from imgray.artifacts.folder import Folder
from imgray.artifacts.manifest import Manifest, local_file, opening, read_file
from imgray.retrieval.codebook import Codebooks
from imgray.retrieval.deepindex import DeepIndex, Shard

CODEBOOKS, FREQUENCY = "codebooks.safetensors", "frequency.safetensors"


def open_shards(
    folder: Folder, manifest: Manifest, only: Collection[int] | None = None
) -> DeepIndex:
    """Load an index, or some shards of it, every file verified against the manifest before use."""
    with opening(folder):
        return _opened(folder, manifest, only)


def _opened(folder: Folder, manifest: Manifest, only: Collection[int] | None) -> DeepIndex:
    codebooks = Codebooks.from_bytes(read_file(folder, manifest.file(CODEBOOKS)))
    stored = load_safetensors(read_file(folder, manifest.file(FREQUENCY)))
    frequency = np.zeros(codebooks.settings.lists, np.int64)
    frequency[stored["lists"]] = stored["counts"]
    shards, offset = [], 0
    for number, entry in enumerate(manifest.named("shard-", ".faiss")):
        if only is not None and number not in only:
            offset += entry.rows
            continue
        table = manifest.file(entry.name.replace(".faiss", ".parquet"))
        shards.append(Shard(local_file(folder, entry), local_file(folder, table), offset))
        offset += entry.rows
    return DeepIndex(codebooks, frequency, manifest.counts["images"], shards)
