"""The package torchvision, at a tenth of what its import takes."""

import importlib
import sys
from types import ModuleType
from typing import Any

COMPILER = "torch._dynamo.utils"


def torchvision() -> ModuleType:
    """The package torchvision.

    `torchvision.ops.roi_align` imports torch's compiler to ask one question of it, which no network
    of this package asks: 1 to 2.5 s of every process whose networks are torchvision's alone, as
    those of workers and replicas are. While torchvision is imported, a module with that question
    stands for the compiler; whoever asks it for more is given the compiler itself.
    """
    if not {"torch._dynamo", COMPILER, "torchvision"} & sys.modules.keys():
        stand_in = _StandIn(COMPILER)
        sys.modules[COMPILER] = stand_in
        try:
            importlib.import_module("torchvision")
        finally:
            stand_in.leave()
    return importlib.import_module("torchvision")


class _StandIn(ModuleType):
    def is_compile_supported(self, device: Any) -> bool:
        self.leave()
        return bool(importlib.import_module(COMPILER).is_compile_supported(device))

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # what imports ask of every module
            raise AttributeError(name)
        self.leave()
        return getattr(importlib.import_module(COMPILER), name)

    def leave(self) -> None:
        if sys.modules.get(COMPILER) is self:
            del sys.modules[COMPILER]
