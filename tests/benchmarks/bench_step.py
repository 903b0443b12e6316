"""A step of translation: imgray's loop against one written by hand, of equal networks and data.

    python tests/benchmarks/bench_step.py [--steps N] [--precision bfloat16] [--jobs]

CycleGAN at 64 pixels and width 16 on facades. The hand-written loop is the published algorithm as
its users write it: two Adams, pools of 50, decoding in the loop; no curves, no checkpoints. Both
run in one process of one torch thread, there and back; seconds are those of the processor, which
other processes lengthen less than those of the clock. The last step, which evaluates and saves,
does not count. With --precision imgray's loop alone: its seconds, and whether all losses are
finite. With --jobs also `imgray train` with one and two workers, two pictures a step, by the clock.

Cost: in proportion to the steps.
"""

from __future__ import annotations

import argparse
import itertools
import math
import random
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import bench_train
import common
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from imgray.artifacts.folder import Folder
from imgray.engine.examples import open_examples
from imgray.engine.train import read_recipe
from imgray.synthesis.discriminator import PatchDiscriminator
from imgray.synthesis.generator import Generator
from imgray.training.loop import Line, Place, Run
from imgray.training.recipe import Recipe

RECIPE, FIRST = "cyclegan-64", 10
"""Steps before the first that counts."""


def recipe_of(steps: int, *changes: str) -> Recipe:
    budget = ["epochs=null", f"steps={steps}", "evaluate_every=1000000", "log_every=50"]
    return read_recipe(RECIPE, [*budget, "checkpoint_every=1000000", *changes])


class History:
    """A pool of earlier fakes."""

    def __init__(self) -> None:
        self.kept: list[Tensor] = []

    def __call__(self, fake: Tensor) -> Tensor:
        fake = fake.detach()
        if len(self.kept) < 50:
            self.kept.append(fake)
            return fake
        if random.random() < 0.5:
            return fake
        place = random.randrange(50)
        found, self.kept[place] = self.kept[place], fake
        return found


def cropped(path: Path) -> Tensor:
    """A picture at 72 pixels, a crop of 64 of it, perhaps mirrored."""
    whole = Image.open(path)
    whole.draft("RGB", (72, 72))
    found = np.asarray(whole.convert("RGB").resize((72, 72), Image.Resampling.BICUBIC))
    top, left = random.randrange(9), random.randrange(9)
    found = found[top : top + 64, left : left + 64][:, :: random.choice((1, -1))]
    return torch.from_numpy(found.copy()).permute(2, 0, 1)[None].float() / 127.5 - 1


def by_hand(data: Path, steps: int) -> Iterator[dict[str, Tensor]]:
    """The published algorithm; gives its losses at every step."""
    g, f = Generator(16, 6), Generator(16, 6)
    dx, dy = PatchDiscriminator(16), PatchDiscriminator(16)
    adam, rest = torch.optim.Adam, {"lr": 2e-4, "betas": (0.5, 0.999)}
    optimizer_g = adam(itertools.chain(g.parameters(), f.parameters()), **rest)
    optimizer_d = adam(itertools.chain(dx.parameters(), dy.parameters()), **rest)
    old_x, old_y = History(), History()
    xs, ys = (sorted(folder.iterdir()) for folder in sorted((data / "train").iterdir()))
    for step in range(steps):
        x, y = cropped(xs[step % len(xs)]), cropped(random.choice(ys))
        for parameter in (*dx.parameters(), *dy.parameters()):
            parameter.requires_grad_(False)
        fake_y, fake_x = g(x), f(y)
        real = ((dy(fake_y) - 1) ** 2).mean() + ((dx(fake_x) - 1) ** 2).mean()
        cycle = 10 * ((f(fake_y) - x).abs().mean() + (g(fake_x) - y).abs().mean())
        optimizer_g.zero_grad()
        (real + cycle).backward()
        optimizer_g.step()
        for parameter in (*dx.parameters(), *dy.parameters()):
            parameter.requires_grad_(True)
        optimizer_d.zero_grad()
        for judge, true, fake in ((dx, x, old_x(fake_x)), (dy, y, old_y(fake_y))):
            (((judge(true) - 1) ** 2).mean() + (judge(fake) ** 2).mean()).div(2).backward()
        optimizer_d.step()
        yield {"adversarial": real.detach(), "long": cycle.detach()}


def hand_written(data: Path, steps: int) -> float:
    """Seconds of a step."""
    torch.manual_seed(0)
    random.seed(0)
    times = [time.process_time() for _ in by_hand(data, steps)]
    return (times[-2] - times[FIRST]) / (steps - 2 - FIRST)


def looped(recipe: Recipe, data: Path) -> tuple[float, list[Line]]:
    """Seconds of a step of `Run`, and its curves."""
    times: list[float] = []
    place = Place(report=lambda *_: times.append(time.process_time()))
    with tempfile.TemporaryDirectory() as folder:
        run = Run(recipe, open_examples(recipe, str(data)), Folder(folder), place)
        run.fit()
    return (times[-2] - times[FIRST]) / (len(times) - 2 - FIRST), run.lines


def jobs(data: Path, steps: int) -> Iterator[list[object]]:
    """Rows of `imgray train` with one and two workers."""
    changes = ["batch_size=2", "epochs=null", f"steps={steps}", "evaluate_every=1000000"]
    changes += [f"checkpoint_every={steps // 6}", "log_every=50"]
    for workers in (1, 2):
        with tempfile.TemporaryDirectory() as folder:
            rate = bench_train.imgray(workers, changes, data, Path(folder) / "model", RECIPE)
        yield [f"imgray train, {workers} workers, by the clock", 1000 / rate.images]


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--steps", type=int, default=100)
    options.add_argument("--data", type=Path, default=common.DATA)
    options.add_argument("--precision", default="float32", choices=["float32", "bfloat16"])
    options.add_argument("--jobs", action="store_true")
    given = options.parse_args()
    torch.set_num_threads(1)
    data = given.data / "facades"
    recipe = recipe_of(given.steps, f"precision={given.precision}")
    ours, lines = looped(recipe, data)
    rows: list[list[object]] = []
    if given.precision == "float32":
        hand = [hand_written(data, given.steps) for _ in range(2)]
        ours = float(np.mean([ours, looped(recipe, data)[0]]))
        mean = float(np.mean(hand))
        rows += [["by hand", 1000 * mean], ["imgray's loop to it", f"{ours / mean:.3f}"]]
    values = [v for line in lines for v in line.values() if isinstance(v, float)]
    rows += [[f"imgray's loop, {given.precision}", 1000 * ours]]
    rows += [["losses are finite", str(all(map(math.isfinite, values)))]]
    if given.jobs:
        rows += jobs(data, given.steps)
    common.table(["a step of one picture of each domain", "ms"], rows)


if __name__ == "__main__":
    main()
