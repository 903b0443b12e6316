import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from imgray.artifacts import manifest as m
from imgray.artifacts.folder import Folder
from imgray.artifacts.manifest import (
    Manifest,
    entry_of,
    local_file,
    publish,
    read_file,
    read_manifest,
)
from imgray.artifacts.output import begun
from imgray.errors import UserError

CONFIG = {"net": "tiny", "size": 64, "note": "größe"}


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(str(tmp_path / "artifact"))


def begin(*given: Any, **flags: Any) -> Manifest | None:
    """Begin an output and leave it: the manifest where it is finished."""
    with begun(*given, **flags) as found:
        return found if isinstance(found, Manifest) else None


def _publish(folder: Folder, config: dict[str, Any] = CONFIG) -> Manifest:
    with begun(folder, "features", config) as output:
        assert not isinstance(output, Manifest)
        output.write("part-00000.parquet", b"content")
        return publish(
            output,
            Manifest(
                kind="features",
                config=config,
                made_from={"photos": "0" * 64},
                counts={"listed": 3, "done": 2},
                about={"features": {"a.high": {"dim": 4, "rate": 0.25}}},
                files=[entry_of("part-00000.parquet", b"content", 2)],
            ),
        )


def _manifest_path(folder: Folder) -> Path:
    return Path(folder.path(m.NAME))


def test_a_published_manifest_is_read_back(folder: Folder) -> None:
    sealed = _publish(folder)
    assert read_manifest(folder, "features") == sealed
    assert sorted(folder.sizes()) == ["manifest.json", "part-00000.parquet"]
    assert sealed.file("part-00000.parquet").rows == 2
    assert sealed.named("part-", ".parquet") == sealed.files
    assert sealed.named("rejected/") == []
    with pytest.raises(UserError, match="lists no other"):
        sealed.file("other")


def test_the_digest_covers_every_field(folder: Folder) -> None:
    sealed = _publish(folder)
    changes: dict[str, Any] = {
        "config": {"net": "other"},
        "imgray": "9",
        "counts": {"listed": 4},
        "made_from": {},
        "about": {},
        "files": [],
        "kind": "index",
        "format": 2,
    }
    assert changes.keys() == Manifest.model_fields.keys() - {"digest"}
    digests = {sealed.model_copy(update={k: v}).sealed().digest for k, v in changes.items()}
    assert len(digests | {sealed.digest}) == len(changes) + 1


def test_flipped_bits_and_truncations_of_a_manifest_are_noticed(folder: Folder) -> None:
    _publish(folder)
    path, rng = _manifest_path(folder), np.random.default_rng(0)
    whole = path.read_bytes()
    damaged = [whole[:cut] for cut in rng.choice(len(whole), 30, replace=False)]
    for place in rng.choice(8 * len(whole), 100, replace=False):
        flipped = bytearray(whole)
        flipped[place // 8] ^= 1 << (place % 8)
        damaged.append(bytes(flipped))
    for data in [*damaged, b"", b"[]", b"null", whole + b"\n", whole + whole]:
        path.write_bytes(data)
        with pytest.raises(UserError, match=r"manifest\.json: damaged.*make the artifact again"):
            read_manifest(folder, "features")
    path.write_bytes(whole)
    read_manifest(folder, "features")


def test_a_hand_edited_manifest_is_noticed(folder: Folder) -> None:
    _publish(folder)
    path = _manifest_path(folder)
    raw = json.loads(path.read_bytes())
    raw["counts"]["done"] = 3
    path.write_bytes(json.dumps(raw, indent=1).encode())
    with pytest.raises(UserError, match="damaged"):
        read_manifest(folder, "features")


def test_another_format_is_named_when_its_digest_holds(folder: Folder) -> None:
    content = json.loads(_publish(folder).to_bytes()) | {"format": 7, "imgray": "8.1", "new": [1]}
    del content["digest"]
    content["digest"] = m.sha256(json.dumps(content).encode())
    _manifest_path(folder).write_text(json.dumps(content, indent=1))
    with pytest.raises(UserError, match=r"format 7, made by imgray 8\.1; this .* reads format 1"):
        read_manifest(folder, "features")


def test_missing_unfinished_and_other_artifacts_are_told_apart(folder: Folder) -> None:
    with pytest.raises(UserError, match=r"no index artifact here .*check the URI"):
        read_manifest(folder, "index")
    begin(folder, "features", CONFIG)
    with pytest.raises(UserError, match="has not finished; run it again"):
        read_manifest(folder, "features")
    _publish(folder)
    with pytest.raises(UserError, match="a features artifact, but index is needed"):
        read_manifest(folder, "index")


@pytest.mark.parametrize("content", [b"", b"conten", b"Content", b"content "])
def test_a_damaged_data_file_is_noticed(folder: Folder, content: bytes) -> None:
    entry = _publish(folder).files[0]
    assert read_file(folder, entry) == b"content"
    assert local_file(folder, entry).read_bytes() == b"content"
    folder.write(entry.name, content)
    for read in (read_file, local_file):
        with pytest.raises(UserError, match=r"part-00000\.parquet: its content differs"):
            read(folder, entry)


def test_a_removed_data_file_is_named(folder: Folder) -> None:
    entry = _publish(folder).files[0]
    folder.remove(entry.name)
    for read in (read_file, local_file):
        with pytest.raises(UserError, match=r"cannot read .*part-00000\.parquet"):
            read(folder, entry)


def test_a_file_in_s3_is_cached_under_its_digest(s3, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("IMGRAY_CACHE", str(tmp_path))
    folder = Folder(s3.uri("manifests/cache"))
    folder.write("x.faiss", b"one")
    old = entry_of("x.faiss", b"one")
    first = local_file(folder, old)
    assert first.read_bytes() == b"one"
    assert first.is_relative_to(tmp_path)
    assert first.suffix == ".faiss"
    folder.write("x.faiss", b"two")
    assert local_file(folder, old) == first
    assert local_file(folder, entry_of("x.faiss", b"two")).read_bytes() == b"two"
    first.write_bytes(b"eno")
    with pytest.raises(UserError, match="content differs"):
        local_file(folder, old)
    assert not first.exists()


def _assert_other_is_refused(folder: Folder) -> None:
    with pytest.raises(UserError) as error:
        begin(folder, "features", CONFIG | {"size": 65, "more": 1})
    assert "(more: None there, 1 now, size: 64 there, 65 now)" in str(error.value)
    assert "--overwrite" in str(error.value)


def test_begin_continues_finds_done_and_refuses(folder: Folder) -> None:
    assert begin(folder, "features", CONFIG) is None
    folder.write("part-00000.parquet", b"kept")
    assert begin(folder, "features", CONFIG) is None
    assert folder.read("part-00000.parquet") == b"kept"
    _assert_other_is_refused(folder)
    sealed = _publish(folder)
    _assert_other_is_refused(folder)
    assert begin(folder, "features", CONFIG) == sealed
    with pytest.raises(UserError, match="a features artifact, but index is needed"):
        begin(folder, "index", CONFIG)


def test_overwrite_starts_anew(folder: Folder) -> None:
    _publish(folder)
    assert begin(folder, "features", {"net": "other"}, overwrite=True) is None
    assert [name for name in folder.sizes() if "owners" not in name] == ["_work/run.json"]
    assert begin(folder, "features", CONFIG, overwrite=True) is None
    assert json.loads(folder.read("_work/run.json")).items() >= CONFIG.items()


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_of_something_else_is_left_alone(folder: Folder, overwrite: bool) -> None:
    folder.write("thesis.tex", b"precious")
    with pytest.raises(UserError, match=r"holds no imgray artifact|not an imgray artifact"):
        begin(folder, "features", CONFIG, overwrite)
    assert folder.read("thesis.tex") == b"precious"


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"\xff"])
def test_damaged_notes_of_a_run_are_named(folder: Folder, data: bytes) -> None:
    begin(folder, "features", CONFIG)
    folder.write("_work/run.json", data)
    with pytest.raises(UserError, match=r"_work/run\.json: damaged.*--overwrite"):
        begin(folder, "features", CONFIG)
    assert begin(folder, "features", CONFIG, overwrite=True) is None


def test_a_manifest_without_notes_of_work_remains_after_a_late_interruption(folder: Folder) -> None:
    """Killed between the manifest and the removal of the notes: finished, and tidied up later."""
    sealed = _publish(folder)
    folder.write("_work/run.json", json.dumps(CONFIG).encode())
    assert begin(folder, "features", CONFIG) == sealed
    assert not folder.sizes("_work")


@pytest.mark.parametrize("content", ['{"name": "an extension", "version": 2}', "[]", "\xff"])
def test_overwriting_spares_what_has_a_manifest_of_its_own(tmp_path: Path, content: str) -> None:
    (tmp_path / "manifest.json").write_text(content, "latin-1")
    (tmp_path / "main.js").write_text("work of years")
    with pytest.raises(UserError, match="not an imgray artifact"):
        begin(Folder(str(tmp_path)), "index", {}, overwrite=True)
    assert (tmp_path / "main.js").exists()


@pytest.mark.parametrize(
    "wrong",
    [
        {"sha256": "/etc/passwd"}, {"sha256": "../" * 20 + "x"}, {"sha256": ""}, {"size": -1},
        {"rows": -1}, {"name": "../outside"}, {"name": "/etc/passwd"}, {"name": "a//b"},
        {"name": "."}, {"name": ""},
    ],
)  # fmt: skip
def test_an_entry_names_a_file_of_the_artifact_and_a_digest(wrong: dict[str, Any]) -> None:
    good = {"name": "a/part..x", "size": 3, "sha256": "0a" * 32, "rows": 0}
    assert m.FileEntry.model_validate(good)
    with pytest.raises(ValidationError):
        m.FileEntry.model_validate(good | wrong)


def test_a_manifest_of_endless_brackets_is_damaged(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text("[" * 200_000)
    with pytest.raises(UserError, match="damaged"):
        m.read_manifest(Folder(str(tmp_path)), "index")
