import io
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import timm
import torch
from conftest import TinyNet
from PIL import Image
from poison import write_poison
from safetensors.torch import load_file

import imgray.engine.extract as engine
from imgray.artifacts.folder import Folder
from imgray.artifacts.manifest import Manifest, read_file, read_manifest
from imgray.cli import run_job
from imgray.engine import producer
from imgray.engine.extract import ExtractResult, extract
from imgray.engine.settings import ExtractConfig
from imgray.errors import UserError
from imgray.features.columns import columns_of, from_table
from imgray.features.extractor import load_extractor

SHARD = 24


@pytest.fixture(scope="module")
def collection(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The photographs among the poison, in a folder whose name is a pattern."""
    folder = tmp_path_factory.mktemp("images") / "all [1]"
    shutil.copytree(photos, folder)
    write_poison(folder / "poison")
    (folder / "poison" / "broken-link.jpg").symlink_to("nowhere")
    (folder / "notes.txt").write_text("no image")
    (folder / ".hidden").mkdir()
    shutil.copy(next(photos.glob("*.png")), folder / ".hidden")
    return folder


@pytest.fixture(scope="module")
def expected(collection: Path) -> dict[str, str | None]:
    """Every image of the collection -> None, or a word of the reason for rejecting it."""
    names = [p.relative_to(collection) for p in collection.rglob("*") if p.is_file()]
    listed = {n.as_posix(): None for n in names if n.suffix != ".txt" and ".hidden" not in n.parts}
    poison = write_poison(collection / "poison") | {"broken-link.jpg": "missing"}
    return listed | {f"poison/{name}": reason for name, reason in poison.items()}


def _config(images: Path | str, output: Path | str, net: TinyNet, **changes: Any) -> ExtractConfig:
    settings: dict[str, Any] = {
        "images": str(images), "output": str(output),
        "extractor": [net.name, f"{net.name}.mid"], "weights": [net.weights], "size": net.size,
        "shard_size": SHARD, "workers": 2, "max_rejected": 1.0,
    }  # fmt: skip
    return ExtractConfig(**settings | changes)


Make = Callable[..., ExtractConfig]


@pytest.fixture
def make(collection: Path, tiny_net: TinyNet) -> Make:
    return lambda output, **changes: _config(
        changes.pop("images", collection), output, tiny_net, **changes
    )


class _Stopped(BaseException):
    """Stands for whatever ends a job between its last shard and its manifest."""


@pytest.fixture(scope="module")
def runs(
    ray_cluster: None, collection: Path, tiny_net: TinyNet, tmp_path_factory: Any
) -> tuple[Path, Path, ExtractResult]:
    """An extraction as it lies before its manifest, the same one finished, and its result."""
    folder = tmp_path_factory.mktemp("runs")
    config = _config(collection, folder / "out [1]", tiny_net)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(producer, "publish", _stop)
        with pytest.raises(_Stopped):
            extract(config)
    shutil.copytree(config.output, folder / "unfinished")
    return folder / "unfinished", Path(config.output), extract(config)


def _stop(*_: object) -> Manifest:
    raise _Stopped


@pytest.fixture
def unfinished(runs: tuple[Path, Path, ExtractResult], tmp_path: Path) -> Path:
    return Path(shutil.copytree(runs[0], tmp_path / "unfinished"))


@pytest.fixture
def finished(runs: tuple[Path, Path, ExtractResult], tmp_path: Path) -> Path:
    return Path(shutil.copytree(runs[1], tmp_path / "finished"))


def _rows(output: Path) -> dict[str, tuple[int, int, dict[str, np.ndarray]]]:
    """Id -> width, height and vectors, from the files that the manifest lists."""
    folder = Folder(str(output))
    manifest, found = read_manifest(folder, "features"), {}
    columns = columns_of(manifest)
    for entry in manifest.named("part-"):
        table = pq.read_table(io.BytesIO(read_file(folder, entry)))
        vectors = {name: from_table(table, name, info) for name, info in columns.items()}
        for i, row in enumerate(table.select(["id", "width", "height"]).to_pylist()):
            assert row["id"] not in found
            own = {name: value[i] for name, value in vectors.items()}
            found[row["id"]] = (row["width"], row["height"], own)
    return found


def _rejected(output: Path) -> dict[str, tuple[str, str]]:
    files = sorted((output / "rejected").glob("*.parquet"))
    rows = [row for file in files for row in pq.read_table(file).to_pylist()]
    found = {row["id"]: (row["stage"], row["reason"]) for row in rows}
    assert len(found) == len(rows)
    return found


def _files(output: Path, but: str = "manifest.json") -> dict[str, bytes]:
    found = [p for p in output.rglob("*") if p.is_file() and p.name != but]
    return {p.relative_to(output).as_posix(): p.read_bytes() for p in found}


def _times(output: Path) -> dict[str, int]:
    return {p.as_posix(): p.stat().st_mtime_ns for p in output.rglob("*") if p.is_file()}


def _plain(path: Path, net: TinyNet) -> dict[str, np.ndarray]:
    """The features of one photograph by its network alone."""
    model = timm.create_model(net.name).eval()
    model.load_state_dict(load_file(net.path))
    settings = timm.data.resolve_model_data_config(model)
    picture = Image.open(path).convert("RGB")
    square = picture.resize((net.size, net.size), Image.Resampling.BICUBIC, reducing_gap=3.0)
    scaled = (np.asarray(square) / 255 - settings["mean"]) / settings["std"]
    with torch.no_grad():
        maps = model.bn1(model.conv_stem(torch.from_numpy(scaled.transpose(2, 0, 1))[None].float()))
        for block in model.blocks[:4]:
            maps = block(maps)
        mid, maps = maps, model.blocks[4:](maps)
        high = model.bn2(model.conv_head(maps))
    pooled = {"high": high.mean((2, 3))[0].numpy(), "mid": mid.mean((2, 3))[0].numpy()}
    return {f"{net.name}.{k}": v / np.linalg.norm(v) for k, v in pooled.items()}


def test_rows_are_what_a_plain_loop_computes(
    runs: tuple[Path, Path, ExtractResult], collection: Path, photos: Path, tiny_net: TinyNet
) -> None:
    rows = _rows(runs[1])
    own = sorted(p.relative_to(photos).as_posix() for p in photos.rglob("*") if p.is_file())
    assert len(own) == 40
    for name in own:
        width, height, vectors = rows[name]
        assert (width, height) == Image.open(photos / name).size
        for column, vector in _plain(collection / name, tiny_net).items():
            np.testing.assert_allclose(vectors[column][0], vector, atol=6e-4)
    different = [rows[name][2][f"{tiny_net.name}.mid"][0] for name in own[:10]]
    assert min(np.abs(a - b).max() for i, a in enumerate(different) for b in different[:i]) > 2e-3


def test_every_image_is_done_or_rejected_with_its_reason(
    runs: tuple[Path, Path, ExtractResult], expected: dict[str, str | None]
) -> None:
    _, output, result = runs
    rows, rejected = _rows(output), _rejected(output)
    assert rows.keys() == {name for name, reason in expected.items() if reason is None}
    assert rejected.keys() == {name for name, reason in expected.items() if reason}
    for name, (stage, reason) in rejected.items():
        assert expected[name] in reason
        assert stage == ("read" if name.endswith("broken-link.jpg") else "decode")
    assert (result.listed, result.done) == (len(expected), len(rows))
    assert result.rejected == len(rejected)
    for orientation in range(1, 9):
        assert rows[f"poison/orientation-{orientation}.jpg"][:2] == (120, 60)


def test_the_artifact_is_complete_and_explains_itself(
    runs: tuple[Path, Path, ExtractResult], collection: Path, tiny_net: TinyNet, expected: Any
) -> None:
    output = runs[1]
    manifest = read_manifest(Folder(str(output)), "features")
    assert {f.name for f in manifest.files} == _files(output).keys()
    assert manifest.counts == runs[2].model_dump(include={"listed", "done", "rejected"})
    assert list(manifest.made_from) == [str(collection)]
    listing = pq.read_table(output / "listing.parquet").to_pylist()
    assert {row["id"] for row in listing} == expected.keys()
    extractor = load_extractor(Folder(str(output)), manifest)
    name = "b/deep/astronaut.jpg"
    prepared = extractor.prepare((collection / name).read_bytes())
    for column, vectors in extractor.run([prepared]).items():
        np.testing.assert_allclose(vectors[0], _rows(output)[name][2][column], atol=6e-4)


def test_a_finished_run_is_not_redone(finished: Path, make: Make, monkeypatch: Any) -> None:
    monkeypatch.setattr(engine, "_extract", _stop)
    before = _times(finished)
    result = extract(make(finished, workers=1, batch_size=2, max_rejected=0.5))
    assert _times(finished) == before
    assert result.done + result.rejected == result.listed


@pytest.mark.parametrize(
    ("changes", "difference"),
    [
        ({"size": 96}, "(size: 64 there, 96 now)"),
        ({"precision": "bfloat16"}, "(precision: 'float32' there, 'bfloat16' now)"),
        ({"regions": "pyramid"}, "(regions: 'global' there, 'pyramid' now)"),
        ({"shard_size": 5}, f"(shard_size: {SHARD} there, 5 now)"),
        ({"images": "elsewhere"}, "/elsewhere' now)"),
    ],
)
def test_other_settings_are_refused_with_their_difference(
    unfinished: Path, finished: Path, make: Make, changes: dict[str, Any], difference: str
) -> None:
    for output in (unfinished, finished):
        before = _times(output)
        with pytest.raises(UserError) as error:
            extract(make(output, **changes))
        assert difference in str(error.value)
        assert _times(output) == before


@pytest.mark.slow
def test_a_run_that_lost_pieces_is_completed(
    runs: tuple[Path, Path, ExtractResult], unfinished: Path, make: Make
) -> None:
    receipts = sorted((unfinished / "_work" / "receipts").glob("*/*.json"))
    assert len(receipts) == 5
    receipts[0].unlink()
    first, cut = (next(unfinished.glob(f"part-0000{n}-*")) for n in (1, 2))
    first.unlink()
    cut.write_bytes(cut.read_bytes()[:-1])
    next((unfinished / "rejected").iterdir()).unlink()
    receipts[3].write_bytes(b"{")
    (unfinished / ".partial-0123").write_bytes(b"left by a kill")
    kept = {k: v for k, v in _times(unfinished).items() if "part-00004" in k and "/rej" not in k}
    result = extract(make(unfinished))
    assert result.model_copy(update={"output": ""}) == runs[2].model_copy(update={"output": ""})
    assert {k: v for k, v in _times(unfinished).items() if k in kept} == kept
    assert _files(unfinished, "manifest.json") == _files(runs[1])
    assert read_manifest(Folder(str(unfinished)), "features").files == (
        read_manifest(Folder(str(runs[1])), "features").files
    )


@pytest.mark.slow
def test_workers_and_batches_do_not_change_rows_and_many_rejected_exit_with_3(
    runs: tuple[Path, Path, ExtractResult], tmp_path: Path, make: Make, capsys: Any
) -> None:
    config = make(tmp_path / "out", workers=1, batch_size=3, max_rejected=0.05)
    flags = []
    for name, value in config.model_dump(exclude_unset=True).items():
        values = value if isinstance(value, list) else [value]
        flags += ["--" + name.replace("_", "-"), *map(str, values)]
    assert run_job(ExtractConfig, extract, flags) == 3
    out, err = capsys.readouterr()
    assert out == ""
    lines = err.splitlines()
    counts = runs[2]
    assert lines[-1].startswith(f"error: {counts.rejected} of {counts.listed} images were rejected")
    assert any("passed over" in line and "1 .txt" in line for line in lines)
    assert any(line.startswith("rejected: 2 x ") for line in lines)
    one, other = _rows(runs[1]), _rows(tmp_path / "out")
    assert list(one) == list(other)
    for name, (width, height, vectors) in one.items():
        assert other[name][:2] == (width, height)
        for column, vector in vectors.items():
            np.testing.assert_allclose(other[name][2][column], vector, atol=6e-4)
    assert run_job(ExtractConfig, extract, [*flags, "--max-rejected", "0.5"]) == 0


def test_one_more_rejected_than_allowed_is_too_many(finished: Path, make: Make) -> None:
    counts = read_manifest(Folder(str(finished)), "features").counts
    share = counts["rejected"] / counts["listed"]
    extract(make(finished, max_rejected=share + 1e-9))
    with pytest.raises(UserError, match="more than --max-rejected"):
        extract(make(finished, max_rejected=share - 1e-9))


def _refused(config: ExtractConfig) -> str:
    with pytest.raises(UserError) as error:
        extract(config)
    assert "\n" not in str(error.value)
    assert not (Path(config.output) / "manifest.json").exists()
    return str(error.value)


def _script(config: ExtractConfig, address: str, *flags: str) -> subprocess.CompletedProcess[str]:
    """Run the job as a user does, with its settings in a file, on a Ray that runs."""
    script = Path(__file__).parents[1] / "jobs" / "extract.py"
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as settings:
        settings.write(config.model_dump_json())
        settings.flush()
        command = [sys.executable, str(script), "--config", settings.name, *flags]
        env = os.environ | {"RAY_ADDRESS": address}
        return subprocess.run(command, capture_output=True, text=True, timeout=600, env=env)


def test_collections_without_images_are_refused(
    ray_cluster: None, make: Make, tmp_path: Path
) -> None:
    for name in ("empty", "text"):
        (tmp_path / name).mkdir()
    (tmp_path / "text" / "a.txt").write_text("x")
    (tmp_path / "file").write_text("x")
    for images, reason in (
        ("empty", "nothing is here; check the URI"),
        ("text", "no images here, but 1: 1 .txt"),
        ("missing", "it does not exist; check the URI"),
        ("file", "it does not exist; check the URI"),
    ):
        found = _refused(make(tmp_path / "out", images=tmp_path / images, overwrite=True))
        assert f"{tmp_path}/{images}: {reason}" in found


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"extractor": ["no_such_net"], "weights": []}, "neither timm nor torchvision has"),
        ({"extractor": ["test_efficientnet.no.layer"]}, "no layer 'no.layer'; choose among high"),
        ({"weights": ["test_efficientnet"]}, "--weights test_efficientnet: expected NET=URI"),
        ({"weights": ["other=x"]}, "--weights other: no such net among --extractor"),
        (
            {"weights": ["test_efficientnet=none.safetensors"]},
            "none.safetensors: it does not exist",
        ),
        ({"output": "gs://bucket/x"}, "only folders on disk and s3://bucket/prefix"),
        ({"images": "http://host/x"}, "only folders on disk and s3://bucket/prefix"),
    ],
)
def test_settings_that_cannot_work_are_refused(
    ray_cluster: None, make: Make, tmp_path: Path, changes: dict[str, Any], reason: str
) -> None:
    config = make(tmp_path / "out").model_copy(update=changes)
    assert reason in _refused(config)


def test_a_corrected_command_needs_no_overwrite(
    ray_cluster: None, make: Make, tmp_path: Path, photos: Path
) -> None:
    """A refusal before any work leaves nothing that the corrected command would stumble over."""
    _refused(make(tmp_path / "out", extractor=["no_such_net"], weights=[]))
    assert not (tmp_path / "out").exists()
    _refused(make(tmp_path / "out", images=tmp_path / "missing"))
    assert not (tmp_path / "out").exists()


def test_weights_that_lie_in_the_output_are_left_alone(make: Make, tmp_path: Path) -> None:
    file = tmp_path / "out" / "tiny.safetensors"
    Folder(str(file.parent)).write(file.name, b"of the user")
    for overwrite in (False, True):
        weights = [f"test_efficientnet={file}"]
        found = _refused(make(file.parent, weights=weights, overwrite=overwrite))
        assert "which is read, lies there" in found
    assert file.read_bytes() == b"of the user"


def test_an_output_that_is_something_else_is_left_alone(
    make: Make, tmp_path: Path, collection: Path
) -> None:
    (tmp_path / "file").write_text("x")
    assert "choose another" in _refused(make(tmp_path / "file"))
    before = _times(collection)
    for overwrite in (False, True):
        assert "no" in _refused(make(collection, overwrite=overwrite))
    assert _times(collection) == before


def _mount(place: Path, options: str) -> None:
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)]
    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("only root can mount a small file system")
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"cannot mount a small file system: {done.stderr.strip()}")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A folder where a test may mount; what it mounted is gone afterwards."""
    place = tmp_path / "disk"
    place.mkdir()
    yield place
    if os.path.ismount(place):
        subprocess.run(["umount", "--lazy", str(place)], check=True)


def test_a_read_only_output_is_named(disk: Path, make: Make) -> None:
    if os.geteuid() == 0:
        _mount(disk, "ro,size=1m")
    else:
        disk.chmod(0o555)
    found = _refused(make(disk / "out"))
    assert "the file system is read-only" in found or "permission denied" in found


@pytest.mark.slow
def test_a_full_disk_is_named_and_a_larger_one_continues(
    address: str, disk: Path, make: Make, tiny_net: TinyNet, photos: Path
) -> None:
    room = tiny_net.path.stat().st_size // 1024 + 60
    _mount(disk, f"size={room}k")
    config = make(disk / "out", images=photos, shard_size=8, regions="pyramid")
    done = _script(config, address)
    assert done.returncode == 2, done.stderr
    last = done.stderr.splitlines()[-1]
    assert re.fullmatch(r"error: cannot write \S+: no space left on the device; free some .*", last)
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    kept = {p.name for p in (disk / "out" / "_work" / "receipts").glob("*/*")}
    assert len(kept) < 5
    subprocess.run(["mount", "-o", "remount,size=32m", str(disk)], check=True)
    assert extract(config).done == 40
    assert not [name for name in _files(disk / "out") if ".partial-" in name]


def test_the_script_prints_only_its_result(finished: Path, make: Make, address: str) -> None:
    done = _script(make(finished), address, "--json")
    assert done.returncode == 0, done.stderr
    assert ExtractResult.model_validate_json(done.stdout).listed > 90
    assert "already extracted, nothing to do" in done.stderr
    assert "Traceback" not in done.stderr
