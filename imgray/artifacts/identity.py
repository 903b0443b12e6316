"""The settings that determine an output, so told that a later run knows them again."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

from imgray.artifacts.folder import Folder

Identity = dict[str, Any]
"""The settings that determine the content of an output, by name."""
Migrate = Callable[[Identity], Identity]
"""Brings settings that an earlier run has stored to the form that today's are stored in."""

KEYWORDS = {"weights": frozenset({"auto", "none"}), "kid_weights": frozenset({"auto"})}
"""What may stand in the place of a URI, by setting."""


def settled(settings: Mapping[str, Any], uris: Collection[str]) -> Identity:
    """Settings whose URIs are absolute: from any working folder they mean the same place.

    Args:
        settings: by name.
        uris: names of the settings that hold URIs: one, a list of them or of `NAME=URI`, or a
            dictionary by URI. What is not set stays, and so do `KEYWORDS`.
    """
    return {
        key: _absolute(value, KEYWORDS.get(key, frozenset())) if key in uris else value
        for key, value in settings.items()
    }


def places(settings: Mapping[str, Any], uris: Collection[str]) -> dict[str, str]:
    """The URIs by setting, of settings that hold one each; `KEYWORDS` and what is not set left out.

    Args:
        settings: by name.
        uris: names of the settings that hold a URI.
    """
    found = {key: settings[key] for key in sorted(uris) if settings.get(key) is not None}
    return {key: uri for key, uri in found.items() if uri not in KEYWORDS.get(key, ())}


def _absolute(value: Any, keywords: Collection[str]) -> Any:
    if isinstance(value, list):
        found = []
        for item in value:
            name, equals, uri = item.partition("=")
            named = equals and "/" not in name
            found.append(f"{name}={_absolute(uri, keywords)}" if named else Folder(item).absolute)
        return found
    if isinstance(value, dict):
        return {_absolute(uri, keywords): item for uri, item in value.items()}
    return value if value is None or value in keywords else Folder(value).absolute
