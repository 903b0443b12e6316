"""The life of an output until it is published: begun, gone on with, begun anew, given up."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Collection, Iterator
from dataclasses import replace
from typing import Any

from imgray.artifacts.folder import TEMPORARY, Folder
from imgray.artifacts.identity import Identity, Migrate
from imgray.artifacts.manifest import (
    CLAIMS,
    CLEARING,
    LEASES,
    NAME,
    RUN,
    WORK,
    Kind,
    Manifest,
    forget_work,
    read_manifest,
)
from imgray.artifacts.owner import Owned, owning
from imgray.errors import UserError

BEGUN = "run"
"""In the stored settings, the run that began the output."""


@contextlib.contextmanager
def begun(
    folder: Folder,
    kind: Kind,
    config: Identity,
    overwrite: bool = False,
    migrate: Migrate = dict,
    free: Collection[str] = (),
    patience: float = 0.0,
    retry: bool = False,
) -> Iterator[Manifest | Owned]:
    """Start or continue an artifact, whose stored settings are compared after `migrate`.

    Within the block nobody else writes there. Those settings named in `free` may differ from the
    ones that an unfinished run began with; `patience` is how many seconds to wait for another run.
    With `retry`, what has rejected records counts as unfinished, though it stays visible.

    Gives the manifest where the artifact is already finished with these settings, else the folder
    to write to. Raises `UserError` when it holds an artifact, finished or not, of other settings,
    or something else, or while another run works there.
    """
    found = None if overwrite else _finished(folder, kind, config, migrate)
    if (manifest := _done(found, retry)) is not None:
        _tidy(folder)
        yield manifest
        return
    _refuse_foreign(folder, overwrite)
    if not overwrite and folder.exists(RUN) and not folder.exists(CLEARING):
        _refuse_begun(folder, config, migrate, free)  # before this run shows in the output
    with owning(folder, patience) as owned:
        found = None if overwrite else _finished(folder, kind, config, migrate)
        yield _done(found, retry) or _begun(owned, config, overwrite, migrate, free)
    _tidy(folder)


def _finished(folder: Folder, kind: Kind, config: Identity, migrate: Migrate) -> Manifest | None:
    if not folder.exists(NAME):
        return None
    manifest = read_manifest(folder, kind)
    _refuse_other(folder, migrate(manifest.config), config)
    return manifest


def _done(found: Manifest | None, retry: bool) -> Manifest | None:
    return None if found and retry and found.counts.get("rejected") else found


def _begun(
    owned: Owned, config: Identity, overwrite: bool, migrate: Migrate, free: Collection[str]
) -> Owned:
    if overwrite or owned.exists(CLEARING):
        clear(owned)
    if not owned.exists(RUN):
        note = config | {BEGUN: owned.claim.run}
        owned.write(RUN, json.dumps(note, indent=1).encode())
    return replace(owned, begun=_refuse_begun(owned, config, migrate, free))


def _refuse_begun(folder: Folder, config: Identity, migrate: Migrate, free: Collection[str]) -> str:
    """The run that began an output. Raises `UserError` where it did with other settings."""
    started = read_object(folder, RUN)
    run = str(started.pop(BEGUN, ""))
    _refuse_other(folder, migrate(started) | {key: config.get(key) for key in free}, config)
    return run


def _tidy(folder: Folder) -> None:
    """Remove the notes that a run has left of what is finished, unless another works there."""
    if folder.exists(WORK):
        with contextlib.suppress(UserError), owning(folder) as owned:
            if owned.exists(NAME):
                forget_work(owned)


def _others(folder: Folder) -> bool:
    """Whether there are files beside those that say who owns the folder, and unended ones."""
    own = (f"{CLAIMS}/", f"{LEASES}/")
    return any(
        not name.startswith(own) and not name.rpartition("/")[2].startswith(TEMPORARY)
        for name in folder.sizes()
    )


def _refuse_foreign(folder: Folder, overwrite: bool) -> None:
    known = folder.exists(RUN) or folder.exists(CLEARING) or _is_manifest(folder)
    if not known and _others(folder):
        raise UserError(
            f"{folder.uri}: not an imgray artifact, so --overwrite leaves it alone"
            if overwrite
            else f"{folder.uri}: the folder is not empty and holds no imgray artifact; "
            "choose another"
        )


def clear(owned: Owned) -> None:
    """Remove all but who owns it, what makes it visible first. Raises `UserError`.

    A mark says until the end that what is left is ours.
    """
    owned.check()
    owned.write(CLEARING, b"")
    for name in (NAME, RUN):
        owned.remove(name)
    kept = (CLEARING, f"{CLAIMS}/", f"{LEASES}/")
    if not owned.is_s3:
        for name in owned.tops():
            if name != WORK:
                owned.remove(name)
    owned.remove_many([name for name in owned.sizes() if not name.startswith(kept)])
    forget_work(owned)


def stored_config(folder: Folder, kind: Kind) -> Identity:
    """The settings of the artifact, finished or begun, that a folder holds; {} where it has none.

    Raises `UserError` where it holds one of another kind, or a damaged one.
    """
    if folder.exists(NAME):
        return read_manifest(folder, kind).config
    found = read_object(folder, RUN) if folder.exists(RUN) else {}
    return {key: value for key, value in found.items() if key != BEGUN}


def read_object(folder: Folder, name: str) -> dict[str, Any]:
    """A JSON object that an unfinished run has kept. Raises `UserError` where it is damaged."""
    try:
        found = json.loads(folder.read(name))
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise UserError(f"{folder.uri}/{name}: damaged; start anew with --overwrite")
    return found


def _is_manifest(folder: Folder) -> bool:
    """Whether a folder's `manifest.json` is one of ours, perhaps damaged or of another version.

    Applications of the web and browser extensions have files of this name too.
    """
    if not folder.exists(NAME):
        return False
    data = folder.read(NAME)
    return all(f'"{word}":'.encode() in data for word in ("kind", "format", "imgray"))


@contextlib.contextmanager
def nothing_left_before(folder: Owned, *notes: str) -> Iterator[None]:
    """Have a refusal before the first of `notes` exists, files or folders, leave nothing behind.

    The corrected command, which has other settings, then begins anew without `--overwrite`.
    """
    try:
        yield
    except UserError:
        with contextlib.suppress(UserError):
            if not any(map(folder.sizes, (*notes, NAME))):
                clear(folder)
        raise


def _refuse_other(folder: Folder, old: Identity, new: Identity) -> None:
    keys = sorted(key for key in old.keys() | new.keys() if old.get(key) != new.get(key))
    if keys:
        changes = ", ".join(f"{key}: {old.get(key)!r} there, {new.get(key)!r} now" for key in keys)
        raise UserError(
            f"{folder.uri} holds an artifact of other settings ({changes}); "
            "choose another --output, or say --overwrite"
        )
