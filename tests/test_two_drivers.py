"""Two jobs on one output at random moments: what is published is wholly one's, every image once."""

import io
import multiprocessing
import os
import random
import time
from pathlib import Path
from typing import Any

import inprocess
import numpy as np
import pyarrow.parquet as pq
import pytest
from conftest import TinyNet
from extracting import settings
from stores import reconnect

from imgray.artifacts.folder import Folder
from imgray.artifacts.manifest import read_file, read_manifest
from imgray.engine import worker
from imgray.engine.extract import extract
from imgray.engine.settings import ExtractConfig
from imgray.errors import UserError

SIZES = 64, 96
DONE, REFUSED = 0, 2
fork = multiprocessing.get_context("fork")
Rows = dict[str, np.ndarray]


def _rows(output: Folder) -> Rows:
    """The vectors by id, each there once, in parts of which the manifest lists all."""
    manifest, found = read_manifest(output, "features"), {}
    listed = manifest.named("part-")
    assert {name for name in output.files() if name.startswith("part-")} == {f.name for f in listed}
    for file in listed:
        data = read_file(output, file)
        for row in pq.read_table(io.BytesIO(data)).to_pylist():
            assert found.setdefault(row["id"], row) is row, row["id"]
    (column,) = manifest.about["features"]
    return {id: np.array(row[column]) for id, row in found.items()}


@pytest.fixture(scope="module")
def expected(
    photos: Path, tiny_net: TinyNet, tmp_path_factory: pytest.TempPathFactory
) -> dict[int, Rows]:
    """What one driver alone makes, by size."""
    found = {}
    for size in SIZES:
        output = tmp_path_factory.mktemp("alone") / "out"
        with inprocess.jobs():
            extract(settings(tiny_net, photos, output, size=size, shard_size=6))
        found[size] = _rows(Folder(str(output)))
    return found


def _driver(config: ExtractConfig, seed: int, begins: float) -> None:
    """A job that dawdles before and after it has written a shard; it ends as a job does."""
    reconnect()
    chance, keep = random.Random(seed), worker.keep

    def kept(*given: Any, **named: Any) -> None:
        time.sleep(chance.uniform(0, 0.3))
        keep(*given, **named)
        time.sleep(chance.uniform(0, 0.3))

    worker.keep = kept  # type: ignore[assignment]
    time.sleep(begins)
    with inprocess.jobs():
        try:
            extract(config)
        except UserError:
            os._exit(REFUSED)
    os._exit(DONE)


@pytest.mark.sweep
@pytest.mark.chaos
@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("other", [False, True], ids=["same", "other settings"])
def test_an_artifact_is_wholly_one_drivers(
    folder: Folder,
    photos: Path,
    tiny_net: TinyNet,
    expected: dict[int, Rows],
    other: bool,
    seed: int,
) -> None:
    """The second overwrites where its settings are others, as who is impatient does."""
    first = settings(tiny_net, photos, folder, size=SIZES[0], shard_size=6)
    second = settings(tiny_net, photos, folder, size=SIZES[other], shard_size=6)
    second = second.model_copy(update={"overwrite": other})
    chance = random.Random(seed)
    drivers = [
        fork.Process(target=_driver, args=(config, seed, begins))
        for config, begins in ((first, 0.0), (second, chance.choice([0, chance.uniform(0, 3)])))
    ]
    for driver in drivers:
        driver.start()
    for driver in drivers:
        driver.join(120)
    codes = [driver.exitcode for driver in drivers]
    assert set(codes) <= {DONE, REFUSED}
    assert DONE in codes
    size = read_manifest(folder, "features").config["size"]
    assert size == (second if codes[1] == DONE else first).size
    found = _rows(folder)
    assert found.keys() == expected[size].keys()
    for id, vector in found.items():
        np.testing.assert_allclose(vector, expected[size][id], atol=1e-3)
