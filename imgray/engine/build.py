"""The tasks of an index build: learn the codebooks of a part, and make a shard of every part.

Each leaves a note when it is done, and is not done again by the run that goes on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import ray
from numpy.typing import NDArray
from pydantic import BaseModel
from safetensors.numpy import load as load_safetensors
from safetensors.numpy import save as save_safetensors

from imgray.artifacts.folder import Folder
from imgray.artifacts.manifest import WORK, FileEntry, entry_of, entry_of_file, read_file, scratch
from imgray.engine.joint import Embedding, as_vectors
from imgray.engine.progress import Progress
from imgray.engine.rows import Source
from imgray.engine.shards import CODEBOOKS, FREQUENCY
from imgray.features.columns import Vectors
from imgray.retrieval.codebook import Codebooks, CodebookSettings, fit, fit_unprojected
from imgray.retrieval.deepindex import ShardBuilder

FITTED = f"{WORK}/codebooks.json"
"""The note that the codebooks of the first part are done."""


@dataclass(frozen=True)
class Part:
    """A part of an index: every image by its features, or by a joint embedding of them.

    place: what the names of its files begin with; the first part has none, and holds the ids.
    """

    place: str
    codebooks: FileEntry
    embedding: Embedding | None = None

    def takes(self, vectors: Vectors) -> Vectors:
        """What of images goes into it, from their stored features."""
        return as_vectors(self.embedding(vectors)) if self.embedding else vectors


class Receipt(BaseModel):
    """A finished shard of a part, with the file of its lists' document frequencies."""

    shard: int
    first: int
    images: int
    files: list[FileEntry]
    frequency: FileEntry


def fit_part(
    source: Source,
    output: Folder,
    settings: CodebookSettings,
    sample: NDArray[np.int64],
    place: str = "",
    embedding: Embedding | None = None,
) -> Part:
    """Train the codebooks of a part on a sample; those of an interrupted run are kept.

    Only how many lists are visited may have changed since: what was trained stays as it is in the
    work, and the published file is made from it anew.
    """
    note = f"{WORK}/{place}codebooks.json"
    if output.exists(note):
        kept = read_file(output, FileEntry.model_validate_json(output.read(note)))
    elif embedding:
        kept = fit_unprojected(embedding.rows(source, sample), settings).to_bytes()
    else:
        kept = fit(source.pick(sample)[1], settings).to_bytes()
    trained = _kept(output, f"{WORK}/{place}{CODEBOOKS}", kept)
    _kept(output, note, trained.model_dump_json().encode())
    data = _visiting(kept, settings.probes)
    return Part(place, _kept(output, place + CODEBOOKS, data), embedding)


def _kept(output: Folder, name: str, data: bytes) -> FileEntry:
    """Write a file that is not there already."""
    entry = entry_of(name, data)
    if not output.exists(name) or output.sha256(name) != entry.sha256:
        output.write(name, data)
    return entry


def _visiting(codebooks: bytes, probes: tuple[int, ...]) -> bytes:
    """The same codebooks, by which so many lists are visited."""
    found = Codebooks.from_bytes(codebooks)
    if found.settings.probes == probes:
        return codebooks
    return replace(found, settings=found.settings.model_copy(update={"probes": probes})).to_bytes()


def build_shards(
    task: Any, source: Source, output: Folder, parts: Sequence[Part], cuts: list[tuple[int, int]]
) -> list[list[Receipt]]:
    """Make all shards, each in a task: by part its receipts, in the shards' order."""
    progress = Progress("index", source.rows)
    shared = ray.put(source)
    waiting = [
        task.remote(shared, output, parts, number, first, last)
        for number, (first, last) in enumerate(cuts)
    ]
    found: list[list[Receipt]] = []
    while waiting:
        done, waiting = ray.wait(waiting)
        found += ray.get(done)
        progress.add(found[-1][0].images)
    found.sort(key=lambda receipts: receipts[0].shard)
    return [list(receipts) for receipts in zip(*found, strict=True)]


def build_shard(
    source: Source, output: Folder, parts: Sequence[Part], number: int, first: int, last: int
) -> list[Receipt]:
    """Make a shard of each part, in one pass over its rows; what is done already is kept."""
    lacking = [part for part in parts if not output.exists(_note(part, number))]
    builders = [ShardBuilder(Codebooks.from_bytes(read_file(output, p.codebooks))) for p in lacking]
    for ids, vectors in source.read(first, last) if lacking else ():
        for part, builder in zip(lacking, builders, strict=True):
            builder.add(ids, part.takes(vectors))
    for part, builder in zip(lacking, builders, strict=True):
        _finish(output, part, builder, number, first)
    return [Receipt.model_validate_json(output.read(_note(part, number))) for part in parts]


def sum_frequencies(
    output: Folder, receipts: Sequence[Receipt], lists: int, place: str
) -> FileEntry:
    """Write the document frequencies of a part's lists, counted over all shards."""
    total = np.zeros(lists, np.int64)
    for receipt in receipts:
        found = load_safetensors(read_file(output, receipt.frequency))
        np.add.at(total, found["lists"], found["counts"])
    used = np.flatnonzero(total)
    data = save_safetensors({"lists": used, "counts": total[used]})
    output.write(place + FREQUENCY, data)
    return entry_of(place + FREQUENCY, data)


def _note(part: Part, number: int) -> str:
    return f"{WORK}/{part.place}shard-{number:05d}.json"


def _finish(output: Folder, part: Part, builder: ShardBuilder, number: int, first: int) -> None:
    name, images = f"{part.place}shard-{number:05d}", len(builder.ids)
    with scratch() as folder:
        builder.write(folder / "faiss")
        files = [_publish(output, folder / "faiss", f"{name}.faiss", images)]
        if not part.place:
            builder.write_images(folder / "parquet")
            files.append(_publish(output, folder / "parquet", f"{name}.parquet", images))
    lists, counts = builder.document_frequency()
    data = save_safetensors({"lists": lists, "counts": counts})
    frequency = entry_of(f"{WORK}/{name}.safetensors", data)
    output.write(frequency.name, data)
    receipt = Receipt(shard=number, first=first, images=images, files=files, frequency=frequency)
    output.write(_note(part, number), receipt.model_dump_json().encode())


def _publish(output: Folder, path: Path, name: str, rows: int) -> FileEntry:
    entry = entry_of_file(path, rows).model_copy(update={"name": name})
    output.upload(path, name)
    return entry
