"""Translation of a large picture strip by strip: seconds, memory, and what strips change.

    python tests/benchmarks/bench_strips.py [--model URI] [--width N] [--job]

A photograph enlarged to 4,000 x 3,000 goes through the step of `imgray predict` (decode, translate,
PNG, digest) in a process of its own: seconds of each, the memory of the process before and its
most; with --job also through the job itself, where the most of the worker counts. Then, of a part
that goes through whole: the largest difference between strips and whole, of 255; and of the large
picture the mean difference of neighbouring rows where strips of any layer meet, against all other
rows. Without --model the networks are cyclegan's with weights drawn so that pictures have contrast.

Cost: in proportion to the pixels, and to the square of the width.
"""

from __future__ import annotations

import io
import multiprocessing
import resource
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import common
import numpy as np
import psutil
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import nn

from imgray.artifacts.folder import Folder
from imgray.artifacts.manifest import Manifest, publish
from imgray.engine.predict import PredictStep
from imgray.engine.train import read_recipe
from imgray.features.memory import keep_freed
from imgray.synthesis import strips, translator
from imgray.training.models import load_model, save_model
from imgray.training.task import task_of

SIZE = 4000, 3000
PART = 1200, 900
"""What goes through whole for comparison."""
MB = 1e6
CONTRAST = 0.05
"""Standard deviation of drawn weights: the published 0.02 gives grey pictures."""


def drawn(width: int, folder: Path) -> str:
    """A model of cyclegan's networks at a width, its weights drawn."""
    recipe = read_recipe("cyclegan", [f"settings.width={width}", "settings.judge_width=4"])
    learner = task_of(recipe, ("a", "b")).learner()
    torch.manual_seed(0)
    for net in learner.modules.values():
        for module in net.modules():
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
                nn.init.normal_(module.weight, std=CONTRAST)
    states = {name: net.state_dict() for name, net in learner.modules.items()}
    output = Folder(str(folder))
    files, about = save_model(output, recipe, ("a", "b"), states, [])
    publish(output, Manifest(kind="model", config={}, about=about, files=files))
    return output.uri


def step(model: str, picture: Path, output: Path) -> dict[str, float]:
    """Seconds and MB of the step of `imgray predict`, in this process."""
    torch.set_num_threads(1)
    keep_freed()  # as workers do
    made = PredictStep(model, Folder(str(output)), longest=max(SIZE))
    times, before = [time.perf_counter()], psutil.Process().memory_info().rss
    prepared = [made.prepare({"image": picture.read_bytes()})]
    times.append(time.perf_counter())
    spent = time.process_time()
    found = made.run(prepared)
    spent = time.process_time() - spent
    times.append(time.perf_counter())
    made.rows([picture.name], prepared, found)
    times.append(time.perf_counter())
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    seconds = dict(zip(("decode", "translate", "encode"), np.diff(times).tolist(), strict=True))
    seconds["translate, of the processor"] = spent
    return seconds | {"MB before": before / MB, "MB at most": most / MB}


def job(model: str, images: Path, output: Path) -> tuple[float, float]:
    """Seconds of `imgray predict` with one worker, and the most MB of its worker."""
    flags = ["--model", model, "--images", images, "--output", output, "--longest", max(SIZE)]
    began, most = time.monotonic(), 0.0
    process = common.start("predict", *map(str, [*flags, "--workers", 1, "--overwrite"]))
    while process.poll() is None:
        most = max([most, *_peaks(process.pid)])
        time.sleep(0.2)
    assert process.returncode == 0
    return time.monotonic() - began, most / MB


def _peaks(pid: int) -> Iterator[float]:
    """The most bytes that each worker of Ray below a process has had."""
    try:
        for one in psutil.Process(pid).children(recursive=True):
            if one.name().startswith("ray::"):
                status = Path(f"/proc/{one.pid}/status").read_text()
                yield 1024.0 * int(status.partition("VmHWM:")[2].split()[0])
    except (psutil.Error, OSError, IndexError):
        return


def translated(model: str, picture: NDArray[np.uint8], whole: int) -> NDArray[np.uint8]:
    """A picture translated by strips where it has more than so many values."""
    translator.WHOLE = whole
    loaded = load_model(model)
    [found] = loaded.predict([{"image": picture, "to": np.array(1)}], "cpu")
    assert found.picture is not None
    return found.picture


def borders(model: str, picture: NDArray[np.uint8]) -> dict[str, float]:
    """Mean differences of neighbouring rows where strips meet, and elsewhere."""
    height, rows = len(picture), set()
    cut = strips._strips

    def noting(total: int, values: int) -> Iterator[tuple[int, int]]:
        for start, stop in cut(total, values):
            rows.add(start * height // total)
            yield start, stop

    strips._strips = noting
    found = translated(model, picture, 0).astype(np.int16)
    strips._strips = cut
    steps = np.abs(np.diff(found, axis=0)).mean(axis=(1, 2))
    at = np.array(sorted(rows - {0})) - 1
    inside = np.delete(steps, at)
    return {
        "borders": len(at), "mean step at borders": steps[at].mean(), "inside": inside.mean(),
        "largest at borders": steps[at].max(), "largest inside": inside.max(),
    }  # fmt: skip


def main() -> None:
    options = common.parser(__doc__, 1)
    options.add_argument("--model", help="folder of a model artifact (default: drawn weights)")
    options.add_argument("--width", type=int, default=16, help="of drawn networks")
    options.add_argument("--job", action="store_true", help="also the job, with Ray")
    given = options.parse_args()
    with common.work_folder(given.work) as work:
        model = given.model or drawn(given.width, work / f"model-{given.width}")
        (work / "images").mkdir(exist_ok=True)
        picture = work / "images" / "large.jpg"
        with Image.open(common.photographs(given.data, 1)[0]) as small:
            small.convert("RGB").resize(SIZE, Image.Resampling.BICUBIC).save(picture, quality=92)
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            rows: Any = pool.apply(step, (model, picture, work / "step")).items()
        common.table([f"{SIZE[0]:,} x {SIZE[1]:,}", "step"], list(rows))
        if given.job:
            seconds, most = job(model, picture.parent, work / "job")
            print(f"job: {seconds:.1f} s with Ray's start, worker at most {most:,.0f} MB")
        torch.set_num_threads(1)
        large = np.asarray(Image.open(io.BytesIO(picture.read_bytes())))
        part = np.ascontiguousarray(large[: PART[1], : PART[0]])
        whole, by_strips = (translated(model, part, most).astype(int) for most in (2**62, 0))
        print(f"contrast of {PART}: {whole.std():.1f}")
        print(f"largest difference of strips and whole: {np.abs(whole - by_strips).max()} of 255")
        common.table(["rows", ""], list(borders(model, large).items()))


if __name__ == "__main__":
    main()
