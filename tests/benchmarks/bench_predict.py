"""Batch prediction: images/s of `jobs/predict.py` and of a plain torch loop, and a kill half way.

    python tests/benchmarks/bench_predict.py --model URI [--images N] [--longest N]

The loop is two processes of one thread that each read, decode and run half of the images, and write
what the model paints, without Ray, shards, digests or retries. imgray runs two workers. Then the
same job is killed by SIGKILL when half of its parts are there, and started again: rows and pictures
must be those of the undisturbed run, every image once.

Cost at ten times the images: ten times the steady seconds, the same start-up.
"""

import multiprocessing
import time
from functools import partial
from pathlib import Path

import common
import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image

from imgray.engine.settings import VerifyConfig
from imgray.engine.verify import verify
from imgray.training.loop import to_device
from imgray.training.models import load_model
from imgray.training.task import set_longest

PROCESSES, SHARD, BATCH = 2, 64, 16


def flags(model: str, images: Path, output: Path, longest: int | None) -> list[str]:
    found = [
        "--model", model, "--images", images, "--output", output,
        "--shard-size", SHARD, "--batch-size", BATCH, "--workers", PROCESSES,
        *(["--longest", longest] if longest else []),
    ]  # fmt: skip
    return [str(one) for one in found]


def plain(model: str, paths: list[Path], output: Path, longest: int | None) -> float:
    """Images/s of the loop, the slower half counting."""
    output.mkdir(parents=True, exist_ok=True)
    with multiprocessing.get_context("spawn").Pool(PROCESSES) as pool:
        jobs = [(model, paths[n::PROCESSES], output, longest) for n in range(PROCESSES)]
        seconds = pool.starmap(_loop, jobs, chunksize=1)
    return len(paths) / max(seconds)


@torch.inference_mode()
def _loop(model: str, paths: list[Path], output: Path, longest: int | None) -> float:
    torch.set_num_threads(1)
    found = load_model(model)
    if longest:
        set_longest(found.task, longest)
    together = BATCH if found.task.one_shape else 1
    began = time.time()
    for first in range(0, len(paths), together):
        chosen = paths[first : first + together]
        prepared = [found.task.prepare({"image": path.read_bytes()}) for path in chosen]
        arrays = {name: np.stack([one[name] for one in prepared]) for name in prepared[0]}
        batch = to_device(arrays, "cpu")
        for path, one in zip(chosen, found.learner.predict(batch), strict=True):
            if one.picture is not None:
                Image.fromarray(one.picture).save(output / f"{path.stem}.png")
    return time.time() - began


def killed(given: list[str], output: Path, parts: int) -> None:
    """Kill the job when so many of its parts are there, and run it again."""
    process = common.start("predict", *given)
    tree = psutil.Process(process.pid)
    while len(list(output.glob("part-*.parquet"))) < parts:
        assert process.poll() is None
        time.sleep(0.02)
    below = tree.children(recursive=True)
    process.kill()
    assert not (output / "manifest.json").exists()
    psutil.wait_procs(below, timeout=90)
    common.run("predict", *given)


def rows(output: Path) -> pa.Table:
    parts = [pq.read_table(part) for part in output.glob("part-*.parquet")]
    return pa.concat_tables(parts).sort_by("id")


def main() -> None:
    options = common.parser(__doc__, 2000)
    options.add_argument("--model", required=True, help="folder of a model artifact")
    options.add_argument("--longest", type=int, help="longer images are scaled down, in both")
    options = options.parse_args()
    with common.work_folder(options.work) as work:
        paths = common.photographs(options.data, options.images)
        images = common.copy_images(paths, work / "images")
        loop = partial(plain, options.model, sorted(images.iterdir()), work / "plain")
        rates = [loop(options.longest)]
        whole, again = (
            flags(options.model, images, work / name, options.longest)
            for name in ("whole", "killed")
        )
        common.run("predict", *whole)
        ours = common.steady(work / "whole", PROCESSES).rate
        rates.append(loop(options.longest))
        mean = float(np.mean(rates))
        common.table(
            ["", "images/s", "ratio"],
            [["plain loop, before and after", mean, "1"], ["imgray", ours, f"{ours / mean:.2f}"]],
        )
        parts = len(list((work / "whole").glob("part-*.parquet")))
        killed(again, work / "killed", parts // 2)
        made, wanted = rows(work / "killed"), rows(work / "whole")
        print(f"{len(made):,} rows after the kill, as undisturbed: {made.equals(wanted)}")
        print(verify(VerifyConfig(artifacts=[str(work / "whole"), str(work / "killed")])))


if __name__ == "__main__":
    main()
