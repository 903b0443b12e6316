"""How `pytest -n 2` divides the tests: those around Ray in one process, all others beside them.

What starts Ray waits for most of its time, and what stays running is there once. Modules are told
by what they name: a fixture that stays, or a module that starts programs. Clusters of two kinds at
once were tried: two cores are then too few, and all takes longer.
"""

import ast
from functools import cache
from pathlib import Path

import pytest
from xdist.scheduler import LoadScopeScheduling

TESTS = Path(__file__).parent
AROUND_RAY = "around Ray"
FIXTURES = {
    "ray_cluster", "address", "nodes", "shared_head", "running", "served", "artifacts", "demo",
    "printed", "notebooks", "page_service", "page", "start",
}  # fmt: skip
MODULES = {"ray", "running", "service"}


@cache
def around_ray(module: str) -> bool:
    """Whether a file of tests needs Ray, or other programs."""
    nodes = list(ast.walk(ast.parse((TESTS / Path(module).name).read_text())))
    names = {a.arg for n in nodes if isinstance(n, ast.FunctionDef) for a in n.args.args}
    names |= {n.value for n in nodes if isinstance(n, ast.Constant) if n.value == "ray_cluster"}
    imported = {n.module for n in nodes if isinstance(n, ast.ImportFrom)}
    imported |= {a.name for n in nodes if isinstance(n, ast.Import) for a in n.names}
    return bool(FIXTURES & names or MODULES & imported)


def fixtures_of(item: pytest.Item) -> list[str]:
    """The fixtures of a test, by name."""
    return getattr(item, "fixturenames", [])


class Divided(LoadScopeScheduling):
    """A scope is what one process runs in one go: all around Ray, or any other module."""

    def _split_scope(self, nodeid: str) -> str:
        module = nodeid.partition("::")[0]
        return AROUND_RAY if around_ray(module) else module
