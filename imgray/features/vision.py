"""The package torchvision, at a tenth of what its import takes."""

import importlib
import sys
from types import ModuleType
from typing import Any

COMPILER = "torch._dynamo.utils"


def torchvision() -> ModuleType:
    """The package torchvision, to be imported by this only.

    `torchvision.ops.roi_align` imports torch's compiler to ask one question of it, which no network
    of this package asks: 1 to 2.5 s of every process that has a network. While torchvision is
    imported, a module with that question alone stands for the compiler, and loads it when asked.
    """
    if not {COMPILER, "torchvision"} & sys.modules.keys():
        stand_in = ModuleType(COMPILER)
        stand_in.is_compile_supported = _is_compile_supported  # type: ignore[attr-defined]
        sys.modules[COMPILER] = stand_in
        try:
            importlib.import_module("torchvision")
        finally:
            del sys.modules[COMPILER]
    return importlib.import_module("torchvision")


def _is_compile_supported(device: Any) -> bool:
    from torch._dynamo.utils import is_compile_supported

    return bool(is_compile_supported(device))
