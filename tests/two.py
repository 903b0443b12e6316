"""Two workers of torch without Ray: both do what a test says, in processes of their own."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from imgray.drawing import plots

WORLD = 2
FORKED = ["two", "imgray.engine.train", "imgray.training.loop"]
"""What a process has loaded from which the workers are forked, so that they need not do it."""
Do = Callable[[int, Path], Any]
"""What a worker does, by its rank and a folder for both."""


def both(work: Mapping[str, Do], folder: Path) -> dict[str, list[Any]]:
    """Do things one after another in two processes: by name what each worker gives, by rank."""
    mp.set_forkserver_preload(FORKED)
    mp.start_processes(_work, (work, folder), nprocs=WORLD, start_method="forkserver")
    parts = [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(WORLD)]
    return {name: [part[name] for part in parts] for name in work}


def _work(rank: int, work: Mapping[str, Do], folder: Path) -> None:
    torch.set_num_threads(1)
    plots.curves = lambda lines: b""
    store = f"file://{folder}/store"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=WORLD)
    found = {name: do(rank, folder / name) for name, do in work.items()}
    torch.save(found, folder / f"{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()
