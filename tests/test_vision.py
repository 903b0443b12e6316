"""torchvision without torch's compiler, in a process of its own: here all is loaded already."""

import subprocess
import sys

LEAN = """
import sys
import torch
from imgray.features.vision import torchvision

ops = torchvision().ops
net = torchvision().models.get_model("mobilenet_v2").eval()
with torch.inference_mode():
    assert net(torch.zeros(1, 3, 64, 64)).shape == (1, 1000)
assert not {"torch._dynamo", "torch._dynamo.utils", "sympy"} & sys.modules.keys()
"""

ASKED = """
from torchvision.ops.roi_align import is_compile_supported
from torch._dynamo.utils import is_compile_supported as asked

assert asked is not is_compile_supported
assert asked is sys.modules["torch._dynamo.utils"].is_compile_supported
assert all(is_compile_supported(device) == asked(device) for device in ("cpu", "cuda"))
boxes = torch.tensor([[0.0, 0.0, 0.0, 4.0, 4.0]])
pooled = ops.roi_align(torch.arange(16.0).reshape(1, 1, 4, 4), boxes, 1, aligned=True)
assert pooled.shape == (1, 1, 1, 1)
torch.optim.SGD(net.parameters(), 0.1).step()
"""


def test_the_compiler_is_loaded_by_those_who_ask_for_it() -> None:
    subprocess.run([sys.executable, "-c", LEAN + ASKED], check=True)


BOTH = """
import sys
import threading
import torch
from imgray.features import vision

failed = []

def train():
    try:
        torch.optim.SGD([torch.zeros(1, requires_grad=True)], 0.1).step()
    except BaseException as error:
        failed.append(error)

there = vision._StandIn(vision.COMPILER)
sys.modules[vision.COMPILER] = there
other = threading.Thread(target=train)
other.start()
other.join()
assert not failed, failed
assert vision.torchvision().ops.roi_align
"""


def test_who_asks_for_the_compiler_meanwhile_is_given_it() -> None:
    subprocess.run([sys.executable, "-c", BOTH], check=True)
