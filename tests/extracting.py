"""Small extractions in this process: their settings, what they leave, and events in the middle."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from conftest import TinyNet

from imgray.artifacts.folder import Folder
from imgray.engine import worker
from imgray.engine.receipts import Receipt
from imgray.engine.settings import ExtractConfig


def settings(
    net: TinyNet, images: Path | str, output: Folder | Path, **changes: Any
) -> ExtractConfig:
    """Of an extraction by a small network, in shards of a dozen."""
    given: dict[str, Any] = {
        "images": str(images), "output": output.uri if isinstance(output, Folder) else str(output),
        "extractor": [net.name], "weights": [net.weights], "size": net.size, "shard_size": 12,
    }  # fmt: skip
    return ExtractConfig(**given | changes)


def rows(config: ExtractConfig) -> dict[str, dict[str, Any]]:
    """By id, in their order, the rows of all parts that lie on disk."""
    paths = sorted(Path(config.output).glob("part-*.parquet"))
    every = [row for path in paths for row in pq.read_table(path).to_pylist()]
    found = {row.pop("id"): row for row in every}
    assert len(found) == len(every)
    return found


def after(patch: pytest.MonkeyPatch, shards: int, event: Callable[[], Any]) -> None:
    """Have something happen when a job has done some shards."""
    keep, done = worker.keep, []

    def kept(output: Folder, files: Any, receipt: Receipt, again: bool = False) -> None:
        keep(output, files, receipt, again)
        done.append(receipt)
        if len(done) == shards:
            event()

    patch.setattr(worker, "keep", kept)
