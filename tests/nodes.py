"""A Ray of several nodes on this machine, some of which get lost: in a process of its own."""

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import psutil
import pytest


@dataclass
class Nodes:
    """A head without CPUs, where drivers run, and nodes of one CPU."""

    server: subprocess.Popen[str]
    address: str = ""

    def order(self, *words: object) -> None:
        """Have it carry out `nodes COUNT`, or `remove PID`: the node on which a process runs."""
        assert self.server.stdin is not None
        self.server.stdin.write(" ".join(map(str, words)) + "\n")
        self.server.stdin.flush()
        assert self.read() == "done"

    def process(self, kind: str) -> psutil.Process:
        """A process of an actor's class."""
        for child in psutil.Process(self.server.pid).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                if child.name().startswith(f"ray::{kind}"):
                    return child
        raise AssertionError(f"no {kind} runs")

    def read(self) -> str:
        assert self.server.stdout is not None
        return self.server.stdout.readline().strip()


_CLUSTER = """
import sys
import psutil
from ray.cluster_utils import Cluster

memory = {"object_store_memory": 100 * 2**20}
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, **memory})
found = {}

def nodes(count):
    while len(found) < count:
        node = cluster.add_node(num_cpus=1, **memory)
        found[node.all_processes["raylet"][0].process.pid] = node
    while len(found) > count:
        cluster.remove_node(found.popitem()[1])
    cluster.wait_for_nodes()

def remove(worker):
    raylets = found.keys() & {process.pid for process in psutil.Process(worker).parents()}
    cluster.remove_node(found.pop(raylets.pop()), allow_graceful=False)

print(cluster.address, flush=True)
for line in sys.stdin:
    order, number = line.split()
    {"nodes": nodes, "remove": remove}[order](int(number))
    print("done", flush=True)
cluster.shutdown()
"""


@contextmanager
def start() -> Iterator[Nodes]:
    """Start the head; `order` brings nodes."""
    server = subprocess.Popen(
        [sys.executable, "-c", _CLUSTER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert server.stdin is not None
    found = Nodes(server)
    try:
        found.address = found.read()
        yield found
    finally:
        server.stdin.close()
        if server.wait(timeout=180):
            pytest.fail("the nodes did not end well")
