"""The way of every job that makes an artifact: begin it, continue it, or find it finished."""

from __future__ import annotations

from collections.abc import Callable, Collection

from imgray.artifacts.folder import Folder
from imgray.artifacts.identity import Identity, Migrate, settled
from imgray.artifacts.manifest import Kind, Manifest, begin, nothing_left_before, publish
from imgray.config import JobConfig
from imgray.engine.progress import say
from imgray.errors import UserError

MADE: dict[Kind, str] = {
    "features": "extracted",
    "index": "built",
    "model": "trained",
    "predictions": "predicted",
}
"""What a person is told of an artifact that was finished before."""


def produce(
    output: Folder,
    kind: Kind,
    identity: Identity,
    work: Callable[[], Manifest],
    *,
    sources: Collection[str],
    note: str,
    overwrite: bool = False,
    migrate: Migrate = dict,
    free: Collection[str] = (),
) -> Manifest:
    """Make an artifact, go on with one that was interrupted, or find that it is finished.

    Args:
        output: where it lies, or is to lie.
        kind: of the artifact.
        identity: the settings that determine its content.
        work: writes the data files that are not there yet, and gives the manifest to publish.
        sources: URIs that the work reads, none of which may lie in `output`.
        note: the file in `output` that the first finished part of the work leaves. What is refused
            before leaves nothing behind, so that the corrected command need not overwrite.
        overwrite: remove what an earlier run has left.
        migrate: of the settings that an earlier run has stored, before they are compared.
        free: settings that a run which goes on may have changed, as no file depends on them that
            is not made again.

    Raises:
        UserError: `output` holds something else, or the work cannot be done.
    """
    for uri in sources:
        _refuse_inside(output, Folder(uri))
    finished = begin(output, kind, identity, overwrite, migrate, free)
    if finished is not None:
        say(f"{output.uri}: already {MADE[kind]}, nothing to do")
        return finished
    with nothing_left_before(output, note):
        manifest = work()
    return publish(output, manifest)


def migrated(config: type[JobConfig], stored: Identity) -> Identity:
    """Settings of an earlier run as they are stored today: later ones added, URIs absolute."""
    return settled(config.defaults() | stored, config.uris)


def _refuse_inside(output: Folder, source: Folder) -> None:
    """Refuse to write over what is read. Raises `UserError`."""
    if f"{source.absolute}/".startswith(f"{output.absolute.rstrip('/')}/"):
        raise UserError(
            f"--output {output.uri}: {source.uri}, which is read, lies there; choose another folder"
        )
