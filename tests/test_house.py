"""The plan of the package: imports point down, in no circle; the themes know no Ray and no URI.

`python tests/test_house.py` prints the rooms, from the top, with the rooms that each imports.
"""

import ast
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FLOORS = (
    {"__main__", "library"},
    {"serving"},
    {"engine"},
    {"classification", "matching", "synthesis"},
    {"training"},
    {"features", "drawing"},
    {"data", "cli"},
    {"artifacts", "retrieval"},
    {"config"},
    {"errors"},
)
"""From the top. A room imports from lower floors only, not from its own."""
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
THEMES = ("classification", "retrieval", "matching", "synthesis")
FOREIGN = {"ray", "fsspec", "s3fs", "boto3", "botocore", "imgray.artifacts"}
"""What a theme must not import: clusters, stores, and the room that opens URIs."""


def modules() -> dict[str, Path]:
    """The package's modules by dotted name."""
    paths = sorted((ROOT / "imgray").rglob("*.py"))
    names = {path: ".".join(path.relative_to(ROOT).with_suffix("").parts) for path in paths}
    return {name.removesuffix(".__init__"): path for path, name in names.items()}


def imports(path: Path, known: set[str]) -> set[str]:
    """Dotted names that a module imports anywhere in it, our own down to the module."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            ours = inner & known
            found |= ours | ({node.module} if ours != inner else set())
    return found


def edges() -> dict[str, set[str]]:
    """The package's own modules that each of them imports; the root is but its `__version__`."""
    known = modules()
    found = {name: imports(path, set(known)) & set(known) for name, path in known.items()}
    return {name: others - {"imgray", name} for name, others in found.items() if name != "imgray"}


def room(module: str) -> str:
    """The folder of a module below the package, or the module where it lies in none."""
    return module.split(".")[1]


def arrows() -> dict[str, set[str]]:
    """The rooms that each room imports."""
    found: dict[str, set[str]] = defaultdict(set)
    for module, others in edges().items():
        found[room(module)] |= {room(other) for other in others} - {room(module)}
    return dict(found)


def circle(graph: dict[str, set[str]]) -> list[str]:
    """A circle of a graph, its first node again at the end; empty where there is none."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def upward() -> Iterator[str]:
    """Arrows that do not point to a lower floor."""
    for above, others in arrows().items():
        for other in others:
            if FLOOR[above] >= FLOOR[other]:
                yield f"{above} imports {other}"


def test_every_module_lies_in_a_room_of_the_plan() -> None:
    assert {room(module) for module in modules() if module != "imgray"} <= set(FLOOR)


def test_rooms_import_only_from_floors_below() -> None:
    assert list(upward()) == []


def test_neither_rooms_nor_modules_form_a_circle() -> None:
    assert circle(arrows()) == []
    assert circle(edges()) == []


@pytest.mark.parametrize("theme", THEMES)
def test_a_theme_opens_no_uri_and_knows_no_cluster(theme: str) -> None:
    known = modules()
    for name, path in known.items():
        if name != "imgray" and room(name) == theme:
            for other in imports(path, set(known)):
                assert not any(f"{other}.".startswith(f"{bad}.") for bad in FOREIGN), (name, other)


def test_the_science_loads_without_ray() -> None:
    themes = [name for name in modules() if name != "imgray" and room(name) in THEMES]
    lines = [f"import {name}" for name in themes] + [
        "import sys",
        "assert 'ray' not in sys.modules",
    ]
    subprocess.run([sys.executable, "-c", "\n".join(lines)], check=True, cwd=ROOT, timeout=300)


def test_nothing_connects_to_ray_when_it_is_imported() -> None:
    for name, path in modules().items():
        for node in ast.parse(path.read_text()).body:
            calls = [] if isinstance(node, ast.FunctionDef | ast.ClassDef) else ast.walk(node)
            starts = [c for c in calls if isinstance(c, ast.Call) and "ray.init" in ast.unparse(c)]
            assert not starts, name


def test_circles_are_found() -> None:
    assert circle({"a": {"b"}, "b": {"c"}, "c": set()}) == []
    assert set(circle({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}})) == {"a", "b", "c"}


def main() -> None:
    """Print the plan, and what the tests count."""
    rooms = arrows()
    for name in sorted(rooms, key=lambda name: (FLOOR.get(name, -1), name)):
        print(f"{name:16} {' '.join(sorted(rooms[name]))}")
    loose = [name for name in modules() if name.count(".") == 1 and not _is_folder(name)]
    print(
        f"{len(rooms)} rooms, {sum(map(len, rooms.values()))} arrows, {len(loose)} loose modules, "
        f"circles: {'none' if not circle(rooms) else ' -> '.join(circle(rooms))}"
    )


def _is_folder(module: str) -> bool:
    return modules()[module].name == "__init__.py"


if __name__ == "__main__":
    main()
