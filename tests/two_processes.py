"""How `pytest -n 2` divides the tests: those around Ray in one process, all others beside them.

What starts Ray waits for most of its time, and what stays running is there once. Modules are told
by what they name: a fixture that stays, or a module that starts programs.
"""

import ast
from functools import cache
from pathlib import Path

from xdist.scheduler import LoadScopeScheduling

TESTS = Path(__file__).parent
FIXTURES = {
    "ray_cluster", "address", "nodes", "shared_head", "running", "served", "artifacts", "demo",
    "start",
}  # fmt: skip
MODULES = {"ray", "running", "service", "head", "nodes"}
AROUND_RAY = "around Ray"


@cache
def around_ray(module: str) -> bool:
    """Whether a file of tests needs Ray, or other programs."""
    nodes = list(ast.walk(ast.parse((TESTS / Path(module).name).read_text())))
    arguments = {
        argument.arg
        for node in nodes
        if isinstance(node, ast.FunctionDef)
        for argument in node.args.args
    }
    words = {n.value for n in nodes if isinstance(n, ast.Constant) and isinstance(n.value, str)}
    imported = {n.module for n in nodes if isinstance(n, ast.ImportFrom)}
    imported |= {a.name for n in nodes if isinstance(n, ast.Import) for a in n.names}
    return bool(FIXTURES & arguments or "ray_cluster" in words or MODULES & imported)


class Divided(LoadScopeScheduling):
    """A scope is what one process runs in one go: all around Ray, or any other module."""

    def _split_scope(self, nodeid: str) -> str:
        module = nodeid.partition("::")[0]
        return AROUND_RAY if around_ray(module) else module
