"""Translation, slowed down to be killed, whose workers leave what a model does not hold."""

from pathlib import Path

import torch.distributed as dist
from slowed import Slow
from torch import Tensor

from imgray.synthesis.settings import TranslationSettings
from imgray.synthesis.translation import Translation
from imgray.training.checkpoints import pack
from imgray.training.task import At, Batch, Learner


class SlowSettings(TranslationSettings):
    pause: float = 0.0
    """Seconds that a step waits."""
    left: Path
    """Folder to which each worker writes the states of its optimizers and pools after all steps."""


class SlowTranslation(Slow, Translation):
    Settings = SlowSettings
    settings: SlowSettings

    def learner(self, initial: bool = True) -> Learner:
        found = super().learner(initial)
        step = found.step

        def leaving(batch: Batch, at: At) -> dict[str, Tensor]:
            losses = step(batch, at)
            if at.step == at.steps - 1:
                self._leave(found)
            return losses

        found.step = leaving  # type: ignore[method-assign]
        return found

    def _leave(self, learner: Learner) -> None:
        optimizers = {name: one.state_dict() for name, one in learner.optimizers.items()}
        rank = dist.get_rank() if dist.is_initialized() else 0
        self.settings.left.mkdir(exist_ok=True)
        found = pack({"optimizers": optimizers, "pools": learner.state()})
        (self.settings.left / f"{rank}.safetensors").write_bytes(found)
