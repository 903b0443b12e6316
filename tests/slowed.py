"""Tasks slowed down, so that they can be killed in the middle."""

import time
from typing import Any

from torch import Tensor

from imgray.training.task import At, Batch, Learner


class Slow:
    """Before the class of a task, whose setting `pause` says how many seconds a step waits."""

    settings: Any

    def learner(self, initial: bool = True) -> Learner:
        found: Learner = super().learner(initial)  # type: ignore[misc]
        step = found.step

        def slow(batch: Batch, at: At) -> dict[str, Tensor]:
            time.sleep(self.settings.pause)
            return step(batch, at)

        found.step = slow  # type: ignore[method-assign]
        return found
