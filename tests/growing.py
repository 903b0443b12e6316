"""A job over a folder that is listed in small pieces: a step that reads, and what comes of it."""

import io
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import inprocess
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from imgray.artifacts.folder import Folder
from imgray.artifacts.manifest import Manifest, read_file, read_manifest
from imgray.artifacts.owner import Owned
from imgray.data.collections import Files
from imgray.data.fields import Values
from imgray.data.pixels import Rejected
from imgray.engine import growing, listing, pieces
from imgray.engine.cluster import Pool
from imgray.engine.collection import process_collection
from imgray.engine.frozen import BEGUN
from imgray.engine.pieces import PIECES, Pieces
from imgray.engine.producer import produce
from imgray.engine.worker import Rejections
from imgray.errors import UserError

PIECE, SHARD = 4, 3
NAMES = [f"{'abc'[n % 3]}{'/deep' * (n % 2)}/{n:02d}.jpg" for n in range(30)]


class Reading:
    """A step whose rows have the content of the files; one that says `bad` is set aside."""

    schema = pa.schema([("id", pa.string()), ("content", pa.string())])

    def prepare(self, values: Values) -> str:
        content: str = values["image"].decode()
        if content == "bad":
            raise Rejected("it is bad")
        return content

    def run(self, batch: Sequence[str]) -> Sequence[str]:
        return batch

    def rows(
        self, ids: Sequence[str], batch: Sequence[str], found: Sequence[str]
    ) -> tuple[pa.Table, Rejections]:
        return pa.table([list(ids), list(found)], schema=self.schema), []


def write_files(folder: Path, names: Sequence[str]) -> Path:
    """Files whose content is their name."""
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    return folder


def make(
    images: Path | Folder,
    output: Folder,
    workers: int = 1,
    wait: float = 0,
    inventory: Any = None,
    **how: Any,
) -> Manifest:
    """Produce an artifact of what a folder has."""
    folder = images if isinstance(images, Folder) else Folder(str(images))
    collection = Files(folder, "image", inventory=inventory)
    retry = how.get("retry", False)

    def work(owned: Owned) -> Manifest:
        given = {"batch_size": 2, "shard_size": SHARD} | how
        outcome = process_collection(
            "read", collection, owned, Reading, Pool(workers, 1, 0), **given
        )
        counts = outcome.model_dump(exclude={"files"})
        return Manifest(kind="features", config={}, counts=counts, files=outcome.files)

    return produce(output, "features", {}, work, sources=[], notes=BEGUN, wait=wait, retry=retry)


def ids(output: Folder, prefix: str) -> list[str]:
    """Those in files of an artifact whose names begin so, in their order."""
    files = read_manifest(output, "features").named(prefix)
    tables = [pq.read_table(io.BytesIO(read_file(output, file))) for file in files]
    return [id for table in tables for id in table["id"].to_pylist()]


def check(output: Folder) -> list[str]:
    """Assert that all that is listed is done or rejected once, and no other file there: the ids."""
    manifest = read_manifest(output, "features")
    listed = ids(output, "listing.parquet")
    assert all(a < b for a, b in pairwise(listed))
    assert sorted(ids(output, "part-") + ids(output, "rejected/")) == listed
    assert sorted(output.sizes()) == sorted(["manifest.json", *(f.name for f in manifest.files)])
    counts = manifest.counts
    assert counts["done"] + counts["rejected"] == counts["listed"] == len(listed)
    return listed


@pytest.fixture
def in_small_pieces(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(pieces, "GROUP", PIECE)
    monkeypatch.setattr(listing, "GROUP", PIECE)
    monkeypatch.setattr(growing, "GRACE", 0.0)
    with inprocess.jobs():
        yield


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return write_files(tmp_path / "images", NAMES)


@pytest.fixture
def output(tmp_path: Path) -> Folder:
    return Folder(str(tmp_path / "out"))


def pieces_in(output: Folder) -> dict[str, bytes]:
    """The pieces, by name, as they lie there."""
    names = [name for name in output.sizes(PIECES) if name.endswith(".parquet")]
    return {name: output.read(name) for name in names}


def refuse(error: BaseException) -> Any:
    raise error


def stop_after(patch: pytest.MonkeyPatch, pieces: int, error: BaseException) -> None:
    """Have the listing end with an error before it keeps another piece."""
    add = Pieces.add

    def stopping(self: Pieces, *given: Any) -> None:
        if self.known.pieces == pieces:
            raise error
        add(self, *given)

    patch.setattr(Pieces, "add", stopping)


def make_until(pieces: int, *given: Any, **how: Any) -> None:
    """`make`, while its listing keeps so many pieces, and then its store is away."""
    with pytest.MonkeyPatch.context() as patch:
        stop_after(patch, pieces, UserError("away"))
        with pytest.raises(UserError, match="away"):
            make(*given, **how)
