"""Tars for tests, and what is in them by Python's own `tarfile`."""

import io
import random
import re
import tarfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from imgray.artifacts.folder import Folder
from imgray.artifacts.walk import Skipped
from imgray.data.members import Member, members

WEBDATASET = re.compile(r"^((?:.*/|)[^.]+)[.]([^/]*)$")
"""How WebDataset splits a name: `base_plus_ext` of webdataset.tariterators."""
OTHERS = (tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE)


def add(tar: tarfile.TarFile, name: str, data: bytes = b"", **fields: Any) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for key, value in fields.items():
        setattr(info, key, value)
    tar.addfile(info, io.BytesIO(data))


def packed(files: Iterable[tuple[str, bytes]], format: int = tarfile.GNU_FORMAT) -> bytes:
    """A tar of files."""
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w", format=format) as tar:
        for name, data in files:
            add(tar, name, data)
    return target.getvalue()


def random_tar(seed: int) -> bytes:
    """Files and other things, with names of all sorts; keys in order, some of many members."""
    rng = random.Random(seed)
    target = io.BytesIO()
    format = rng.choice([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
    with tarfile.open(fileobj=target, mode="w", format=format) as tar:
        for number in range(rng.randint(1, 30)):
            folder = rng.choice(["", "./", "a/", "deep/" * 60, "b.c/", "ünï/", "x" * 150 + "/"])
            key = f"{folder}{number}{rng.choice(['', 'n' * 90, '雪', ' '])}"
            for extension in rng.sample(["jpg", "TXT", "seg.png", "json", "tar", "cls"], 3):
                size = rng.choice([0, 1, 511, 512, 513, rng.randint(0, 5000)])
                data = rng.randbytes(size) if extension != "tar" else packed([("in.jpg", b"in")])
                pax = {"comment": "c" * rng.choice([1, 3000])} if rng.random() < 0.2 else {}
                add(tar, f"{key}.{extension}", data, pax_headers=pax)
            other = rng.choice(
                [None, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, b"3", b"6"]
            )
            if other:
                add(tar, f"{key}.{rng.choice(['jpg', 'x'])}", type=other, linkname="y" * 200)
            if rng.random() < 0.3:
                add(
                    tar,
                    rng.choice([f"README{number}", f".hidden{number}.jpg", f".git{number}/a.jpg"]),
                )
    return target.getvalue()


def by_tarfile(data: bytes) -> list[tuple[str, int, int]]:
    """The name, offset and size of the files that are not hidden."""
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        found = [(i.name.removeprefix("./"), i.offset_data, i.size) for i in tar if i.isreg()]
    return [one for one in found if not re.search(r"(^|/)\.", one[0])]


def scanned(folder: Path, data: bytes) -> tuple[list[Member], dict[str, int]]:
    """The members of a tar, and what was passed over."""
    skipped = Skipped()
    (folder / "x.tar").write_bytes(data)
    found = list(members(Folder(str(folder)), "x.tar", len(data), skipped))
    return found, dict(skipped.counts)
