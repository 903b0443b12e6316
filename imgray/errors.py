"""The errors that a user meets: each names the thing, the place and the way out."""


class UserError(Exception):
    """Input, settings or surroundings that the user can mend; shown as one line, exit code 2."""


LONGEST = 1000


def brief(text: str) -> str:
    """A text as one line of a terminal: signs that steer it are escaped, its middle is left out."""
    line = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text[: 2 * LONGEST])
    return line if len(line) <= LONGEST else f"{line[: LONGEST // 2]} ... {line[-LONGEST // 2 :]}"


class TooManyRejected(UserError):
    """A finished job set aside more images than `--max-rejected` allows; exit code 3."""


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
