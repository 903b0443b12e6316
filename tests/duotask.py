"""Two networks against each other, an average of one, and a pool: what the loop must bear."""

from collections.abc import Mapping

import numpy as np
import torch
import torch.nn.functional as F
from tinytask import TinySettings, TinyTask
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_avg_fn

from imgray.data.fields import Picture
from imgray.training.task import At, Batch, Learner, Prediction

DECAY = 0.9


class DuoSettings(TinySettings):
    pool: int = 0
    """Made points that the critic may be shown again; none are kept where it is 0."""
    norm: bool = False
    """Whether the generator has batch normalisation."""
    every: int = 3
    """Steps from one report of the penalty to the next."""


class DuoTask(TinyTask):
    Settings = DuoSettings
    settings: DuoSettings
    outputs = {"picture": Picture()}

    def learner(self, initial: bool = True) -> "DuoLearner":  # type: ignore[override]
        return DuoLearner(self.settings)

    def summarize(self, sums: Mapping[str, Tensor]) -> dict[str, float]:
        return {"distance": float(sums["distance"] / sums["count"])}


class DuoLearner(Learner):
    def __init__(self, settings: DuoSettings) -> None:
        middle = nn.BatchNorm1d(8) if settings.norm else nn.Tanh()
        self.generator = nn.Sequential(nn.Linear(2, 8), middle, nn.Linear(8, 2))
        self.critic = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 1))
        self.average = AveragedModel(self.generator, avg_fn=get_ema_avg_fn(DECAY))
        self.modules = {
            "generator": self.generator, "critic": self.critic, "average": self.average,
        }  # fmt: skip
        self.optimizers = {
            "generator": torch.optim.Adam(self.generator.parameters(), lr=0.01),
            "critic": torch.optim.SGD(self.critic.parameters(), lr=0.1, momentum=0.9),
        }
        self.settings, self.pool = settings, torch.zeros(0, 2)

    def step(self, batch: Batch, at: At) -> dict[str, Tensor]:
        real = batch["point"]
        made = self.generator(real.flip(1))
        shown = self.pooled(made.detach())
        unlike = F.softplus(-self.critic(real)).mean() + F.softplus(self.critic(shown)).mean()
        self.descend("critic", unlike)
        like = F.softplus(-self.critic(made)).mean()
        self.descend("generator", like)
        self.average.update_parameters(self.generator)
        penalty = {} if at.step % self.settings.every else {"penalty": made.square().mean()}
        return {"critic": unlike, "generator": like, **penalty}

    def pooled(self, made: Tensor) -> Tensor:
        """Made points, half of them changed for earlier ones once the pool is full."""
        free = max(0, self.settings.pool - len(self.pool))
        self.pool = torch.cat([self.pool, made[:free]])
        old = made.clone()
        for place in range(free, len(made)):
            if self.settings.pool and torch.rand(()) < 0.5:
                other = int(torch.randint(len(self.pool), ()))
                old[place], self.pool[other] = self.pool[other].clone(), made[place]
        return old

    def state(self) -> dict[str, Tensor]:
        return {"pool": self.pool}

    def load(self, state: Mapping[str, Tensor]) -> None:
        self.pool = state["pool"]

    def evaluate(self, batch: Batch) -> dict[str, Tensor]:
        made = self.average(batch["point"].flip(1))
        distance = (made - batch["point"]).norm(dim=1).sum()
        return {"distance": distance, "count": torch.tensor(len(made))}

    def predict(self, batch: Batch) -> list[Prediction]:
        """A square of the colour of the made point."""
        shares = self.average(batch["point"].flip(1)).sigmoid().cpu().numpy()
        squares = (np.tile(shares[:, None, None, :1], (1, 8, 8, 3)) * 255).astype(np.uint8)
        return [Prediction({"label": ""}, square) for square in squares]
