"""The errors that a user meets: each names the thing, the place and the way out."""

import difflib
import tempfile
from collections.abc import Collection


class UserError(Exception):
    """Input, settings or surroundings that the user can mend; shown as one line, exit code 2."""


CHANGED = "it was changed after the job began; run it again with --overwrite"
LINE = 1000
"""Letters of a message at most."""


class Missing(UserError):
    """There is no such file, though the folder that should hold it is there and holds others."""


class NoRoom(UserError):
    """There is no room for temporary files, or no folder for them."""


def no_room(error: OSError) -> NoRoom:
    """What a failed write to a temporary file is to a user."""
    place = tempfile.tempdir or "a folder for temporary files"
    reason = error.strerror or error
    return NoRoom(f"cannot write to {place}: {reason}; set TMPDIR to a folder with room")


class TooManyRejected(UserError):
    """A finished job set aside more images than `--max-rejected` allows; exit code 3."""


def brief(text: str, most: int = 100) -> str:
    """A text of others in a line of ours: no longer than `most`, and what no one sees escaped."""
    cut = text if len(text) <= most else f"{text[:most]}…"
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in cut)


def suggestion(asked: str, names: Collection[str]) -> str:
    """`did you mean NAME? `, of the names that are close to what was asked for; else nothing."""
    close = difflib.get_close_matches(asked, names, cutoff=0.75)
    return f"did you mean {' or '.join(map(repr, close))}? " if close else ""


def cause_of(error: BaseException) -> UserError | None:
    """Find the `UserError` behind an exception that Ray has wrapped, however deeply."""
    seen: set[int] = set()
    pending: list[BaseException | None] = [error]
    while pending:
        current = pending.pop()
        if current is None or id(current) in seen:
            continue
        seen.add(id(current))
        if type(current).__module__ == __name__ and isinstance(current, UserError):
            return current
        pending += [current.__cause__, current.__context__, getattr(current, "cause", None)]
    return None
