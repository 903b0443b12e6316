"""The way of every job that makes an artifact: begin it, continue it, or find it finished."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

from imgray.artifacts.folder import Folder
from imgray.artifacts.identity import Identity, Migrate, settled
from imgray.artifacts.manifest import NAME, Kind, Manifest, publish
from imgray.artifacts.output import begun, nothing_left_before
from imgray.artifacts.owner import Lost, Owned
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
    work: Callable[[Owned], Manifest],
    *,
    sources: Collection[str],
    notes: Sequence[str],
    overwrite: bool = False,
    migrate: Migrate = dict,
    free: Collection[str] = (),
    wait: float = 0.0,
    retry: bool = False,
) -> Manifest:
    """Make an artifact, go on with one that was interrupted, or find that it is finished.

    Args:
        output: where it lies, or is to lie.
        kind: of the artifact.
        identity: the settings that determine its content.
        work: writes the data files that are not there yet to the output, which this run owns, and
            gives the manifest to publish.
        sources: URIs that the work reads, none of which may lie in `output`.
        notes: files or folders in `output` of which the first finished part of the work leaves one.
            What is refused before leaves nothing behind, so that the corrected command need not
            overwrite.
        overwrite: remove what an earlier run has left.
        migrate: of the settings that an earlier run has stored, before they are compared.
        free: settings that a run which goes on may have changed, as no file depends on them that
            is not made again.
        wait: seconds for which another run that works on the output is waited for.
        retry: go on with a finished artifact too, where records were rejected.

    Raises:
        UserError: `output` holds something else, another run works there, or the work cannot be
            done.
    """
    for uri in sources:
        _refuse_inside(output, Folder(uri))
    with begun(output, kind, identity, overwrite, migrate, free, wait, retry) as found:
        if isinstance(found, Manifest):
            say(f"{output.uri}: already {MADE[kind]}, nothing to do")
            return found
        if not found.exclusive:
            say(f"{output.uri}: its store cannot keep two runs apart; let this be the only one")
        with nothing_left_before(found, *notes):
            manifest = work(found)
        return _published(found, manifest)


def _published(output: Owned, manifest: Manifest) -> Manifest:
    output.check()
    anew = not output.exists(NAME)
    sealed = publish(output, manifest)
    try:
        output.check()
    except Lost:  # between its look and its write another run took over
        place = Folder(output.absolute)
        if anew and place.find(NAME) == sealed.to_bytes():
            place.remove(NAME)
        raise
    return sealed


def migrated(config: type[JobConfig], stored: Identity) -> Identity:
    """Settings of an earlier run as they are stored today: later ones added, URIs absolute."""
    return settled(config.defaults() | stored, config.uris)


def _refuse_inside(output: Folder, source: Folder) -> None:
    """Refuse to write over what is read. Raises `UserError`."""
    if f"{source.absolute}/".startswith(f"{output.absolute.rstrip('/')}/"):
        raise UserError(
            f"--output {output.uri}: {source.uri}, which is read, lies there; choose another folder"
        )
