"""The headers of tars, against Python's `tarfile`; damaged and hostile ones."""

import io
import random
import tarfile
import time
import tracemalloc
from pathlib import Path

import pytest
from tarred import add, by_tarfile, packed, random_tar, scanned

from imgray.artifacts.folder import Folder
from imgray.artifacts.walk import Skipped
from imgray.data import members as module
from imgray.data.members import (
    BEHIND,
    CUT,
    DAMAGED,
    FOLDER,
    GAP,
    HEADER,
    LINK,
    NO_TAR,
    SPARSE,
    Member,
)
from imgray.errors import UserError

GOOD = [("a.jpg", b"a" * 700), ("b.jpg", b"")]


def _places(found: list[Member]) -> list[tuple[str, int, int]]:
    return [(member.name, member.offset, member.size) for member in found]


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("step", [512, 700, 2**16])
def test_members_are_those_of_tarfile(
    seed: int, step: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "NEAR", step)
    data = random_tar(seed)
    found, skipped = scanned(tmp_path, data)
    assert _places(found) == by_tarfile(data)
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        every = tar.getmembers()
    assert len(found) + sum(skipped.values()) == len(every)
    assert skipped.get(FOLDER, 0) == sum(info.isdir() for info in every)
    assert skipped.get(LINK, 0) == sum(info.issym() or info.islnk() for info in every)
    assert not {CUT, DAMAGED, BEHIND, NO_TAR} & skipped.keys()


@pytest.mark.parametrize("seed", [1, 3])
def test_a_tar_that_was_cut_anywhere_loses_what_was_cut(seed: int, tmp_path: Path) -> None:
    data = random_tar(seed)
    whole = by_tarfile(data)
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        tar.getmembers()
        end = tar.offset  # where the blocks of zeros begin
    for cut in [*range(512, min(len(data), 60_000), 512), end - 1, end, end + 512, len(data) - 7]:
        found, skipped = scanned(tmp_path, data[:cut])
        assert _places(found) == [one for one in whole if one[1] + one[2] <= cut], cut
        assert (skipped.get(CUT, 0) + skipped.get(NO_TAR, 0) == 1) == (cut < end + 512), cut


@pytest.mark.parametrize("seed", range(6))
def test_garbage_in_the_place_of_a_header_loses_that_member_alone(
    seed: int, tmp_path: Path
) -> None:
    rng = random.Random(seed)
    data = bytearray(packed([(f"{n}.jpg", rng.randbytes(2000)) for n in range(20)]))
    whole = by_tarfile(bytes(data))
    lost = sorted(rng.sample(range(0, 19, 2), 3))
    for number in lost:
        start = whole[number][1] - 512
        data[start : start + 512] = rng.randbytes(512)
    found, skipped = scanned(tmp_path, bytes(data))
    assert _places(found) == [one for n, one in enumerate(whole) if n not in lost]
    assert skipped == {DAMAGED: 3}


def _header(name: str, size: int, kind: bytes = b"0") -> bytes:
    """A header with its checksum, whatever the size is."""
    info = tarfile.TarInfo(name)
    info.type = kind
    data = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    field = size.to_bytes(11, "big", signed=True)
    data[124:136] = (b"\xff" if size < 0 else b"\x80") + field
    data[148:156] = b" " * 8
    data[148:156] = b"%06o\0 " % sum(data)
    return bytes(data)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 512)


def _with_records(records: bytes, kind: bytes = b"x") -> bytes:
    return _header("pax", len(records), kind) + _padded(records)


def _record(key: str, value: str) -> bytes:
    rest = f" {key}={value}\n".encode()
    length = len(rest) + len(str(len(rest)))
    length = len(rest) + len(str(length))
    return str(length).encode() + rest


SPARSE_10 = b"".join(
    [
        _record("GNU.sparse.major", "1"),
        _record("GNU.sparse.minor", "0"),
        _record("GNU.sparse.name", "s"),
    ]
)
HOSTILE = {
    "negative": _header("x.jpg", -512),
    "very negative": _header("x.jpg", -(2**80)),
    "a long name of 10 GB": _header("x", 10**10, b"L"),
    "records of 10 GB": _header("x", 10**10, b"x"),
    "records of negative size": _header("x", -1, b"x"),
    "keywords without end": _with_records(b"2 " * 100_000 + b"="),
    "digits without end": _with_records(_record("a", "1" * 100_000)),
    "a size in records": _with_records(_record("size", "-5")) + _header("x.jpg", 0),
    "a size for all": _with_records(_record("size", "7"), b"g") + _header("x.jpg", 0),
    "records within records": _with_records(_record("a", "b")) * 400,
    "global records within": b"".join(
        _with_records(_record(f"k{n}", "v" * 200_000), b"g") + _header(f"{n}", 0) for n in range(60)
    ),
    "global keywords": b"".join(
        _with_records(b"".join(_record(f"k{n}-{m}", "") for m in range(4000)), b"g")
        for n in range(4)
    ),
    "a sparse map without end": _with_records(SPARSE_10)
    + _header("s", 2**20)
    + b"1000000000\n"
    + b"1\n" * 600_000,
    "a sparse map of nothing": _with_records(SPARSE_10) + _header("s", 512) + b"x" * 512,
}


NAMELESS = {
    "a long name of 10 GB", "records of 10 GB",
    "keywords without end", "digits without end", "records within records",
}  # fmt: skip
"""After these a member may have another name than its own header says."""


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_header_costs_neither_memory_nor_what_follows(kind: str, tmp_path: Path) -> None:
    bad, good = _padded(HOSTILE[kind]), packed(GOOD)
    whole = good[: 512 * 4] + bad + good
    before = time.process_time()
    scanned(tmp_path, whole)
    assert time.process_time() - before < 20
    tracemalloc.start()
    found, _ = scanned(tmp_path, whole)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    names = [member.name for member in found]
    if kind == "a size for all":  # it stands for all that follows
        names += names[:2]
    assert names[:2] == ["a.jpg", "b.jpg"]
    assert names[-2:] == ["b.jpg", "b.jpg"] if kind in NAMELESS else ["a.jpg", "b.jpg"]
    assert peak < 30 * 2**20


@pytest.mark.parametrize("kind", [b"x", b"g", b"L", b"K"])
def test_what_belongs_to_a_header_is_read_to_a_limit(kind: bytes, tmp_path: Path) -> None:
    with open(tmp_path / "x.tar", "wb") as file:
        file.write(packed(GOOD)[: 512 * 4] + _header("x", 10**8, kind))
        file.truncate(10**8)
    skipped = Skipped()
    tracemalloc.start()
    found = list(module.members(Folder(str(tmp_path)), "x.tar", 10**8, skipped))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert [member.name for member in found] == ["a.jpg", "b.jpg"]
    assert skipped.counts == {CUT: 1}
    assert peak < 10 * 2**20


def test_a_member_beyond_the_end_ends_the_tar(tmp_path: Path) -> None:
    """What it holds may be a tar itself, whose members are not ours."""
    good, inner = packed(GOOD), packed([("inner.jpg", b"inner")])
    for size in (10**6, 2**62, 2**80):
        found, skipped = scanned(tmp_path, good[: 512 * 4] + _header("big.jpg", size) + inner)
        assert [member.name for member in found] == ["a.jpg", "b.jpg"]
        assert skipped == {CUT: 1}


def test_what_is_no_tar_is_counted(tmp_path: Path) -> None:
    for data in (b"", b"x", b"x" * 512, random.Random(0).randbytes(10**5)):
        assert scanned(tmp_path, data) == ([], {NO_TAR: 1})
    assert scanned(tmp_path, packed([])) == ([], {})


def test_what_lies_behind_the_end_is_counted(tmp_path: Path) -> None:
    found, skipped = scanned(tmp_path, packed(GOOD) + b"no header" * 1000)
    assert [member.name for member in found] == ["a.jpg", "b.jpg"]
    assert skipped == {BEHIND: 1}


def test_zeros_end_a_tar_only_where_nothing_follows(tmp_path: Path) -> None:
    """Tars behind each other are read, and a hole loses what was in it."""
    several = packed(GOOD) + packed([("c.jpg", b"c")]) + bytes(10**6)
    found, skipped = scanned(tmp_path, several)
    assert [member.name for member in found] == ["a.jpg", "b.jpg", "c.jpg"]
    assert skipped == {GAP: 1}
    whole = packed([(f"{n}.jpg", bytes([n]) * 600) for n in range(1, 100)])
    for start, end in ((10, 11), (10, 40)):
        data = bytearray(whole)
        data[start * 1536 : end * 1536 - 1024] = bytes((end - start) * 1536 - 1024)
        found, skipped = scanned(tmp_path, bytes(data))
        left = [n for n in range(1, 100) if not start < n <= end]
        assert [member.name for member in found] == [f"{n}.jpg" for n in left]
        assert skipped == {GAP: 1}


def test_a_cut_member_behind_zeros_is_counted(tmp_path: Path) -> None:
    data = packed(GOOD)[: 512 * 4] + bytes(2048) + _header("c.jpg", 10**6) + bytes(4096)
    found, skipped = scanned(tmp_path, data)
    assert [member.name for member in found] == ["a.jpg", "b.jpg"]
    assert skipped == {BEHIND: 1}


def test_headers_made_to_cost_time_end_a_tar(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every block is one, of as many records as there may be, that are its followers."""
    block = bytearray(_header("512 a=", HEADER // 2, b"x"))
    block[511], block[148:156] = ord("\n"), b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    checked: list[int] = []
    check = module._check_records
    monkeypatch.setattr(
        module, "_check_records", lambda data: checked.append(len(data)) or check(data)
    )
    monkeypatch.setattr(module, "WASTED", 2**20)
    found, skipped = scanned(tmp_path, packed(GOOD)[: 512 * 4] + bytes(block) * 4000)
    assert [member.name for member in found] == ["a.jpg", "b.jpg"]
    assert skipped == {CUT: 1}
    assert HEADER < sum(checked) < 2**20 + 2 * HEADER


def test_a_damaged_header_hides_what_its_member_holds(tmp_path: Path) -> None:
    """A tar, whole or cut: its members are not ours. Nor is what follows lost."""
    inner = packed([("1.jpg", b"inner"), ("2.jpg", b"inner" * 1000)])
    files = [("0.jpg", b"0"), ("1.tar", inner), ("2.jpg", b"2"), ("3.jpg", b"3")]
    for held in (inner, inner[:1536]):
        data = bytearray(packed([*files[:1], ("1.tar", held), *files[2:]]))
        data[1024:1054] = b"\xff" * 30
        found, skipped = scanned(tmp_path, bytes(data))
        assert [member.name for member in found] == ["0.jpg", "2.jpg", "3.jpg"]
        assert skipped == {DAMAGED: 1}


@pytest.mark.parametrize("digit", range(124, 135))
def test_a_wrong_size_hides_no_sound_member(digit: int, tmp_path: Path) -> None:
    """Wherever it points to: among them to headers, and to zeros that are a member's."""
    files = [(f"{n}.npy", bytes(n % 7 * 512)) for n in range(300)]
    whole = packed(files)
    places = by_tarfile(whole)
    for number in (1, 7, 150):
        for bit in range(3):
            data = bytearray(whole)
            data[places[number][1] - 512 + digit] ^= 1 << bit
            found, skipped = scanned(tmp_path, bytes(data))
            assert _places(found) == places[:number] + places[number + 1 :]
            assert skipped == {DAMAGED: 1}


def test_a_tar_of_damage_is_read_about_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = random.Random(0)
    data = bytearray(packed([(f"{n}.jpg", bytes(2000)) for n in range(2000)]))
    for start in range(0, len(data) - 10_240, 2560):
        if rng.random() < 0.7:
            data[start + 148 : start + 156] = b"0000001\0"
    asked: list[int] = []
    read = Folder.read
    monkeypatch.setattr(
        Folder, "read", lambda self, *given: asked.append(len(found := read(self, *given))) or found
    )
    found, skipped = scanned(tmp_path, bytes(data))
    assert 500 < len(found) < 700
    assert {DAMAGED} <= skipped.keys() <= {DAMAGED, CUT}
    assert sum(asked) < 1.1 * len(data)


def test_a_member_whose_long_name_is_lost_is_lost(tmp_path: Path) -> None:
    """It would be another record, or one member of another."""
    long = [("n" * 120 + f"{n}.jpg", b"n") for n in range(3)]
    for format in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        data = packed([*GOOD, *long, ("c.jpg", b"c")], format)
        for place in range(0, len(data), 512):
            if data[place + 156 : place + 157] in (b"L", b"x"):
                for garbage in (slice(place, place + 30), slice(place + 140, place + 160)):
                    bad = bytearray(data)
                    bad[garbage] = b"\xff" * (garbage.stop - garbage.start)
                    found, skipped = scanned(tmp_path, bytes(bad))
                    assert len(found) == 5
                    assert {member.name for member in found} < {
                        n for n, _ in [*GOOD, *long, ("c.jpg", b"")]
                    }
                    assert skipped == {DAMAGED: 1}


def test_a_tar_that_has_shrunk_is_another(tmp_path: Path) -> None:
    (tmp_path / "x.tar").write_bytes(packed(GOOD)[:1024])
    with pytest.raises(UserError, match=r"x\.tar: it was changed"):
        list(module.members(Folder(str(tmp_path)), "x.tar", 10_240, Skipped()))


def test_sparse_files_are_counted(tmp_path: Path) -> None:
    target = io.BytesIO(packed(GOOD)[: 512 * 4])
    target.seek(0, io.SEEK_END)
    target.write(_header("s.jpg", 512, b"S") + bytes(512) + packed(GOOD[:1]))
    found, skipped = scanned(tmp_path, target.getvalue())
    assert [member.name for member in found] == ["a.jpg", "b.jpg", "a.jpg"]
    assert skipped == {SPARSE: 1}


def test_names_that_are_not_utf_8_are_counted(tmp_path: Path) -> None:
    target = io.BytesIO()
    with tarfile.open(
        fileobj=target, mode="w", format=tarfile.GNU_FORMAT, encoding="latin-1"
    ) as tar:
        add(tar, "ü.jpg", b"u")
        add(tar, "u.jpg", b"u")
    found, skipped = scanned(tmp_path, target.getvalue())
    assert [member.name for member in found] == ["u.jpg"]
    assert skipped == {"with a name that is not UTF-8": 1}


@pytest.mark.parametrize("mode", ["w:gz", "w:bz2", "w:xz"])
def test_a_compressed_tar_is_refused_by_its_content(mode: str, tmp_path: Path) -> None:
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode=mode) as tar:  # type: ignore[call-overload]
        add(tar, "a.jpg", random.Random(0).randbytes(5000))
    with pytest.raises(UserError, match=r"x\.tar: a compressed tar cannot be read in parts"):
        scanned(tmp_path, target.getvalue())
