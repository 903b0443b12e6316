"""The joint part of an index: its pictures in a space that they share with texts.

The space is that of a trained model, or of the dual encoder that made the features. The index
carries what reads texts, so that it answers words with no other artifact.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from imgray.artifacts.folder import Folder
from imgray.artifacts.manifest import (
    NAME,
    FileEntry,
    Manifest,
    entry_of,
    read_file,
    read_manifest,
)
from imgray.data.fields import Text
from imgray.data.layout import Layout
from imgray.data.pixels import Rejected
from imgray.data.tables import open_table
from imgray.engine.rows import Source
from imgray.engine.settings import IndexConfig
from imgray.engine.shards import PLACES
from imgray.errors import UserError
from imgray.features.columns import Vectors, columns_of
from imgray.features.extractor import ExtractorConfig, whole_pictures
from imgray.retrieval.codebook import CodebookSettings, Floats
from imgray.retrieval.modalities import TEXT

if TYPE_CHECKING:
    from imgray.features.spaces import Space

JOINT = "joint"
"""The name of the only feature of the joint part."""
MODEL = f"{PLACES[TEXT]}model"
STAYS = "carried/image/"
"""What of a model its index leaves behind: networks for pictures, whose features are stored."""
CHUNK = 1024


@dataclass(frozen=True)
class Embedding:
    """A model's joint embedding, loaded in the process that uses it.

    uri, digest: of the model's artifact.
    """

    uri: str
    digest: str

    def __call__(self, vectors: Vectors) -> Floats:
        """The pictures' embeddings (B, D) from their stored features (B, R, C) by name."""
        return embed_pictures(_loaded(self.uri, self.digest), vectors)

    def texts(self, texts: Sequence[str | None]) -> tuple[Floats, NDArray[np.int64]]:
        """`embed_readable`."""
        return embed_readable(_loaded(self.uri, self.digest), texts)

    def rows(self, source: Source, rows: NDArray[np.int64]) -> Floats:
        """The embeddings (n, D) of a few rows, given in rising order."""
        starts = range(0, len(rows), CHUNK)
        return np.concatenate([self(source.pick(rows[a : a + CHUNK])[1]) for a in starts])


@lru_cache(maxsize=1)
def _loaded(uri: str, digest: str) -> Space:
    """A model, of which another may have been at the same place before."""
    return _load(uri)


def _load(uri: str) -> Space:
    """A model, or a dual encoder. Either loads torch."""
    if read_manifest(Folder(uri)).kind == "features":
        from imgray.features.spaces import load_space

        return load_space(uri)
    from imgray.training.joint import load_joint

    return load_joint(uri)


@dataclass(frozen=True)
class JointPart:
    """What a build needs to know of its joint part.

    source: the rows of the features artifact, of the columns that the model takes.
    about: what the manifest of the index says of the part.
    files: the model's, in the index.
    texts: by which its recall is measured.
    """

    embedding: Embedding
    source: Source
    settings: CodebookSettings
    about: dict[str, Any]
    files: list[FileEntry]
    texts: list[str]


def joint_part(
    config: IndexConfig, features: Manifest, output: Folder, codewords: int
) -> JointPart | None:
    """Copy the model of `--joint` into an index, and see what the part will be; None without it.

    Raises:
        UserError: no model with a joint embedding, or of other features than these.
    """
    if config.joint is None:
        return None
    model = read_manifest(Folder(config.joint))
    names = _names(config.joint, model)
    drawn = _draw_texts(config) if config.text_queries else []
    files = _copy(Folder(config.joint), model, names, output)
    embedding = Embedding(f"{output.absolute}/{MODEL}", model.digest)
    joint = _loaded(embedding.uri, embedding.digest)
    _check_columns(joint, features, config)
    texts = _readable(joint, drawn, config) if drawn else []
    about = {
        "model": Folder(config.joint).absolute,
        "fingerprint": joint.fingerprint,
        "dim": joint.dim,
    }
    source = Source(Folder(config.features), features, list(joint.columns), [])
    settings = joint_settings(config, codewords, joint.dim)
    return JointPart(embedding, source, settings, about, files, texts)


def embedding_of(folder: Folder, manifest: Manifest) -> Embedding:
    """The joint embedding that a published index carries. Raises `UserError`."""
    entry = manifest.file(f"{MODEL}/{NAME}")
    read_file(folder, entry)  # verified, it digests the files beside it
    return Embedding(f"{folder.absolute}/{MODEL}", entry.sha256)


def load_words(folder: Folder, manifest: Manifest) -> Space:
    """The model of `embedding_of`, of whose files each is verified now. Raises `UserError`."""
    return _load(embedding_of(folder, manifest).uri)


def sample_rows(
    part: JointPart, config: IndexConfig, held_out: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Rows of the pictures on which the joint part's codebook is trained, rising.

    Raises `UserError` where they are too few for its words.
    """
    random = np.random.default_rng([config.seed, 1])
    drawn = part.source.sample(config.sample + len(held_out), random)
    rows = drawn[~np.isin(drawn, held_out)][: config.sample]
    rows = rows if len(rows) else held_out
    if len(rows) < part.settings.lists:
        raise UserError(
            f"--joint-codewords {part.settings.lists}: the sample has only {len(rows)} images; "
            "ask for fewer words, or index more images"
        )
    return np.sort(rows)


def _names(uri: str, model: Manifest) -> list[str]:
    """The files of a model, or of a dual encoder, that its index carries. Raises `UserError`."""
    if model.kind == "features":
        from imgray.features.spaces import space_files

        return space_files(uri, model)
    if model.kind != "model":
        raise UserError(
            f"--joint {uri}: an artifact of kind {model.kind!r}; expected a model that matches "
            "images and texts, or features of images by a dual encoder"
        )
    return [entry.name for entry in model.files if not entry.name.startswith(STAYS)]


def _copy(source: Folder, model: Manifest, names: Sequence[str], output: Folder) -> list[FileEntry]:
    entries = [_write(output, name, read_file(source, model.file(name))) for name in names]
    return [*entries, _write(output, NAME, model.to_bytes())]


def _write(output: Folder, name: str, data: bytes) -> FileEntry:
    entry = entry_of(f"{MODEL}/{name}", data)
    output.write(entry.name, data)
    return entry


def _check_columns(joint: Space, features: Manifest, config: IndexConfig) -> None:
    """Refuse a model of other features than those of the pictures.

    One of whole pictures also takes the first region of a pyramid.
    """
    have = columns_of(features)
    extractor = ExtractorConfig.model_validate(features.about["extractor"])
    for name, info in joint.columns.items():
        if name not in have:
            raise UserError(
                f"--joint {config.joint}: the model takes the feature {name}, and "
                f"{config.features} has {', '.join(have)}: extract {name} with them"
            )
        whole = info.regions == 1 and info.fingerprint == whole_pictures(extractor, name)
        if have[name] != info and not whole:
            raise UserError(
                f"--joint {config.joint}: {name} has fingerprint {info.fingerprint[:12]} there and "
                f"{have[name].fingerprint[:12]} in {config.features}: train on these features"
            )


def joint_settings(config: IndexConfig, codewords: int, dim: int) -> CodebookSettings:
    """How the joint part describes and compares images; `codewords` are the default."""
    words = config.joint_codewords or codewords
    return CodebookSettings(
        features=(JOINT,),
        codewords=(words,),
        levels=(1,),
        probes=(min(words, config.joint_probes or default_probes(words)),),
        dim=dim,
        code="SQ8",
        bandwidth=config.bandwidth,
        signature=(),
        signature_dim=0,
        signature_power=0,
        seed=config.seed,
    )


def default_probes(words: int) -> int:
    """Lists that a query visits: all of 128, half of 512, a quarter of 2048.

    Texts need more than pictures, as their nearest pictures are spread over more lists: of real
    embeddings a tenth to a fifth of these for a recall@10 of .95.
    """
    return min(words, math.isqrt(128 * words))


def _draw_texts(config: IndexConfig) -> list[str | None]:
    """Twice as many texts as are needed of the table that `--text-queries` names, at random."""
    uri, _, column = str(config.text_queries).partition("#")
    table = open_table(uri, {"text": Text()}, Layout({"text": column} if column else {}))
    texts = table.words("text")
    if texts is None or not len(texts):
        raise UserError(f"--text-queries {uri}: no rows")
    random = np.random.default_rng([config.seed, 2])
    rows = random.permutation(len(texts))[: 2 * config.queries]
    drawn: list[str | None] = texts.take(rows).to_pylist()
    return drawn


def _readable(joint: Space, drawn: Sequence[str | None], config: IndexConfig) -> list[str]:
    """Those that the model reads, as many as are needed. Raises `UserError` if there is none."""
    places = embed_readable(joint, drawn)[1][: config.queries]
    if not len(places):
        raise UserError(f"--text-queries {config.text_queries}: the model can read none of them")
    return [str(drawn[place]) for place in places]


def embed_pictures(joint: Space, vectors: Vectors) -> Floats:
    """The pictures' embeddings (B, D) from their features (B, R, C) by name.

    Of more regions than the model takes the first count, which are the whole picture.
    """
    cut = {name: vectors[name][:, : info.regions] for name, info in joint.columns.items()}
    return joint.pictures(cut)


def embed_texts(joint: Space, texts: Sequence[str]) -> Floats:
    """The texts' embeddings (B, D). Raises `UserError` for one that cannot be read."""
    try:
        return joint.texts(texts)
    except Rejected as error:
        raise UserError(f"text: {error}") from None


def embed_each(joint: Space, texts: Sequence[str | None]) -> list[Floats | Rejected]:
    """The embedding (D,) of each text, or why it cannot be read."""
    try:
        return list(joint.texts([Text().value(text) for text in texts]))
    except Rejected as fault:
        if len(texts) == 1:
            return [fault]
    half = len(texts) // 2
    return [*embed_each(joint, texts[:half]), *embed_each(joint, texts[half:])]


def embed_readable(joint: Space, texts: Sequence[str | None]) -> tuple[Floats, NDArray[np.int64]]:
    """The embeddings (n, D) of the texts that can be read, and their places (n,)."""
    found = {n: e for n, e in enumerate(embed_each(joint, texts)) if not isinstance(e, Rejected)}
    vectors = np.array(list(found.values()), np.float32).reshape(-1, joint.dim)
    return vectors, np.array(list(found), np.int64)


def as_vectors(embeddings: Floats) -> Vectors:
    """Embeddings (B, D) as what the joint part takes."""
    return {JOINT: embeddings[:, None]}
