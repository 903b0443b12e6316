"""The tiny task, slowed down, that notes which worker does which step, and when."""

import json
import os
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from tinytask import TinyLearner, TinySettings, TinyTask
from torch import Tensor

from imgray.training.task import At, Batch


class SlowSettings(TinySettings):
    pause: float = 0.1
    """Seconds that a step takes."""
    notes: Path
    """Folder of the notes, which all workers reach."""


class SlowTask(TinyTask):
    Settings = SlowSettings
    settings: SlowSettings

    def learner(self, initial: bool = True) -> "SlowLearner":
        return SlowLearner(self.settings, self.classes)


class SlowLearner(TinyLearner):
    """Its network counts the steps that have made it what it is."""

    settings: SlowSettings

    def __init__(self, settings: SlowSettings, classes: tuple[str, ...]) -> None:
        super().__init__(settings, classes)
        self.count = torch.zeros((), dtype=torch.int64)
        self.modules["net"].register_buffer("steps", self.count)

    def step(self, batch: Batch, at: At) -> dict[str, Tensor]:
        time.sleep(self.settings.pause)
        found = super().step(batch, at)
        self.count += 1
        note = Note(
            time.time(), int(self.count), dist.get_rank(), dist.get_world_size(), os.getpid()
        )
        with open(self.settings.notes / f"{note.pid}.jsonl", "a") as file:
            file.write(json.dumps(vars(note)) + "\n")
        return found


@dataclass(frozen=True)
class Note:
    """A step that a worker has done."""

    time: float
    step: int
    rank: int
    world: int
    pid: int


def read_notes(folder: Path) -> list[Note]:
    """What all workers have noted so far, in order of time."""
    lines = [line for path in folder.glob("*.jsonl") for line in path.read_text().splitlines(True)]
    notes = [Note(**json.loads(line)) for line in lines if line.endswith("\n")]
    return sorted(notes, key=lambda note: note.time)
