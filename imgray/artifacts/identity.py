"""The settings that determine an output, so told that a later run knows them again."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

from imgray.artifacts.folder import Folder

Identity = dict[str, Any]
"""The settings that determine the content of an output, by name."""
Migrate = Callable[[Identity], Identity]
"""Brings settings that an earlier run has stored to the form that today's are stored in."""

KEYWORDS = frozenset({"auto", "none"})
"""What may stand in the place of a URI."""


def settled(settings: Mapping[str, Any], uris: Collection[str]) -> Identity:
    """Settings whose URIs are absolute: from any working folder they mean the same place.

    Args:
        settings: by name.
        uris: names of the settings that hold URIs: one, a list of `NAME=URI`, or a dictionary by
            URI. The words `auto` and `none` stay, as does what is not set.
    """
    return {key: _absolute(value) if key in uris else value for key, value in settings.items()}


def _absolute(value: Any) -> Any:
    if isinstance(value, list):
        pairs = [item.partition("=") for item in value]
        return [f"{name}={_absolute(uri)}" for name, _, uri in pairs]
    if isinstance(value, dict):
        return {_absolute(uri): item for uri, item in value.items()}
    return value if value is None or value in KEYWORDS else Folder(value).absolute
