"""How `pytest -n 2` divides the tests: those around Ray in one process, all others beside them.

What starts Ray waits for most of its time, and what stays running is there once. Modules are told
by what they name: a fixture that stays, or a module that starts programs. Those with a cluster of
their own need not be where the shared one is.
"""

import ast
from functools import cache
from pathlib import Path

from xdist.scheduler import LoadScopeScheduling

TESTS = Path(__file__).parent
SHARED, OWN = "around Ray", "clusters of their own"
CLUSTERS = {"nodes", "shared_head"}
"""Fixtures that start a cluster of their own."""
FIXTURES = {"ray_cluster", "address", "running", "served", "artifacts", "demo", "start"}
MODULES = {"ray", "running", "service"}


@cache
def needs(module: str) -> str | None:
    """What a file of tests needs: the shared Ray or other programs, a cluster, or neither."""
    nodes = list(ast.walk(ast.parse((TESTS / Path(module).name).read_text())))
    names = {a.arg for n in nodes if isinstance(n, ast.FunctionDef) for a in n.args.args}
    names |= {n.value for n in nodes if isinstance(n, ast.Constant) if n.value == "ray_cluster"}
    imported = {n.module for n in nodes if isinstance(n, ast.ImportFrom)}
    imported |= {a.name for n in nodes if isinstance(n, ast.Import) for a in n.names}
    if CLUSTERS & names:
        return OWN
    return SHARED if FIXTURES & names or MODULES & imported else None


class Divided(LoadScopeScheduling):
    """A scope is what one process runs in one go: all around Ray, or any other module."""

    def _split_scope(self, nodeid: str) -> str:
        module = nodeid.partition("::")[0]
        return needs(module) or module
