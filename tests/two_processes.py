"""How `pytest -n 2` divides the tests: those around Ray in one process, all others beside them.

What starts Ray waits for most of its time, and what stays running is there once. Modules are told
by what they name: a fixture that stays, or a module that starts programs. What submits to a head
node comes last of the others, when they no longer want a core.
"""

import ast
from functools import cache
from pathlib import Path

import pytest
from xdist.scheduler import LoadScopeScheduling

TESTS = Path(__file__).parent
AROUND_RAY, ON_A_HEAD = "around Ray", "on a head node"
HEAD = "shared_head"
FIXTURES = {
    "ray_cluster", "address", "nodes", "running", "served", "artifacts", "demo",
    "printed", "notebooks", "page_service", "page", "start",
}  # fmt: skip
MODULES = {"ray", "running", "service"}


@cache
def scope(module: str) -> str:
    """What runs in one process in one go: a file of tests, or what all share that need the same."""
    nodes = list(ast.walk(ast.parse((TESTS / Path(module).name).read_text())))
    names = {a.arg for n in nodes if isinstance(n, ast.FunctionDef) for a in n.args.args}
    names |= {n.value for n in nodes if isinstance(n, ast.Constant) if n.value == "ray_cluster"}
    imported = {n.module for n in nodes if isinstance(n, ast.ImportFrom)}
    imported |= {a.name for n in nodes if isinstance(n, ast.Import) for a in n.names}
    if HEAD in names:
        return ON_A_HEAD
    return AROUND_RAY if FIXTURES & names or MODULES & imported else module


def fixtures_of(item: pytest.Item) -> list[str]:
    """The fixtures of a test, by name."""
    return getattr(item, "fixturenames", [])


class Divided(LoadScopeScheduling):
    """One scope goes to the process that asks for it first, in the order of the tests."""

    def _split_scope(self, nodeid: str) -> str:
        return scope(nodeid.partition("::")[0])
