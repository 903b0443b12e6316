"""Dual encoders: a picture tower and a text tower whose vectors lie in one space.

Their folders are those of several libraries, which all give a `Library`. A picture tower is a
network like others, whose layer `high` is the pooled and projected vector.
"""

from __future__ import annotations

from typing import Protocol

from imgray.artifacts.folder import Folder
from imgray.config import Precision
from imgray.errors import UserError
from imgray.features import openclip, towers
from imgray.features.backbones import Backbone
from imgray.features.openclip_folder import CONFIG, WEIGHTS
from imgray.features.texts import LAYER, TextEncoder
from imgray.features.weights import Request


class Library(Protocol):
    """What reads the folders that a library writes; both raise `UserError`."""

    def picture_tower(self, place: Folder, what: str, precision: Precision) -> Backbone:
        """The picture tower of a folder, which errors name as `what`."""

    def text_tower(self, place: Folder, precision: Precision) -> TextEncoder:
        """The text tower of a folder, in the same space."""


def library_of(place: Folder) -> Library | None:
    """What reads the dual encoder in a folder; None where there is none. Raises `UserError`.

    Where several libraries' settings and tensors are, that is transformers.
    """
    kind = towers.dual_type(place)
    if place.exists(CONFIG) and not (kind and _has_others(place)):
        return openclip
    return towers if kind else None


def picture_tower(
    request: Request, size: int | None = None, precision: Precision = "float32"
) -> Backbone:
    """The picture tower of the dual encoder in a folder, `request.weights`, ready to extract.

    Raises:
        UserError: it cannot be read, or another layer or size is asked of it than it has.
    """
    flag, place = f"--weights {request.net}={request.weights}", Folder(request.weights)
    if request.layers != (LAYER,):
        raise UserError(f"{flag}: a dual encoder has the layer {LAYER} alone")
    library = library_of(place)
    if library is None:
        raise UserError(f"{flag}: no dual encoder here; check the URI")
    found = library.picture_tower(place, flag, precision)
    own = found.config.size
    if size not in (None, own):
        raise UserError(f"{flag}: takes {own} x {own} pixels; leave out --size {size}")
    return found


def _has_others(place: Folder) -> bool:
    """Whether there are tensors that are not open_clip's."""
    return any(name.endswith(".safetensors") and name != WEIGHTS for name in place.sizes())
