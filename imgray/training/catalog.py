"""The recipes that come along, by name."""

from __future__ import annotations

from pathlib import Path

from imgray.errors import UserError, suggestion

FOLDER = Path(__file__).parents[1] / "recipes"


def find(recipe: str) -> Path:
    """The file of a recipe, by its path or, of one that comes along, by its name.

    Raises `UserError` for a name that no recipe has.
    """
    if "/" in recipe or recipe.endswith((".yaml", ".yml")):
        return Path(recipe)
    names = _names()
    if recipe in names:
        return FOLDER / f"{recipe}.yaml"
    hint = suggestion(recipe, names)
    raise UserError(
        f"--recipe {recipe}: no such recipe; {hint}`imgray train --list` names them all, "
        "a file has a / or .yaml in its name"
    )


def listing() -> str:
    """All recipes by name, each with the first line of the comment that heads it."""
    names = _names()
    width = max(map(len, names))
    return "\n".join(f"{name:{width}}  {_summary(FOLDER / f'{name}.yaml')}" for name in names)


def _names() -> list[str]:
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def _summary(path: Path) -> str:
    with open(path, encoding="utf-8") as file:
        return file.readline().lstrip("# ").rstrip()
