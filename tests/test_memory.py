"""Workers keep what they free: another map of a size that was freed faults in no page."""

import subprocess
import sys

import pytest

PROGRAM = """
import resource, threading
import torch
from imgray.features.memory import keep_freed

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(25 * 2**20)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def run():
    for _ in range(20):  # what lies between two maps has to come to rest
        faults()
    found.append(sum(faults() for _ in range(5)))

found = []
run()
keep_freed()
run()
thread = threading.Thread(target=run)
thread.start()
thread.join()
print(*found)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="of glibc")
def test_freed_memory_is_used_again_by_every_thread() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True)
    before, *kept = map(int, done.stdout.split())
    assert before > 100
    assert len(kept) == 2
    assert max(kept) < 100
