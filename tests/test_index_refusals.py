"""What cannot be indexed is refused in one line: settings, and features not as published."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from indexed import DIMS, FEATURES, IMAGES, config_of, files_of, manifest_of
from synthetic import clustered, write_features

from imgray.artifacts.folder import Folder
from imgray.artifacts.manifest import read_manifest
from imgray.cli import run_job
from imgray.engine.index import build_index
from imgray.engine.settings import IndexConfig
from imgray.errors import UserError


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = str(tmp_path_factory.mktemp("features"))
    write_features(folder, clustered(0, IMAGES, 14, DIMS))
    return folder


def test_other_features_at_the_same_place_are_refused(ray_cluster: None, tmp_path: Path) -> None:
    source, output = str(tmp_path / "features"), tmp_path / "index"
    write_features(source, clustered(1, 40, 1, DIMS))
    settings = {"codewords": [3], "probes": [2]}
    build_index(config_of(source, output, **settings))
    write_features(source, clustered(2, 40, 1, DIMS))
    with pytest.raises(UserError, match="features_digest"):
        build_index(config_of(source, output, **settings))
    result = build_index(config_of(source, output, overwrite=True, **settings))
    digest = read_manifest(Folder(source), "features").digest
    assert manifest_of(output).made_from == {source: digest}
    assert result.images == 40


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"feature": ["three"]}, "--feature three: the shards have one.mid, two.high, two.mid"),
        ({"feature": ["two", "two.high"]}, "--feature two.high: named twice"),
        ({"signature_feature": ["x"]}, "--feature x: the shards have one.mid, two.high, two.mid"),
        ({"codewords": [1, 2, 3]}, "--codewords: give one number, or 2, one per feature"),
        ({"codewords": [0]}, "--codewords: 0 is not a positive number"),
        ({"probes": [4, 2]}, "--probes: give one number, or 3, one per level of the pyramid"),
        ({"probes": [4, -1, 1]}, "--probes: -1 is not a positive number"),
        ({"codewords": [3000, 2]}, "--codewords 3000: the sample has only 2800 regions; ask for"),
        ({"codewords": [5000, 5000]}, "--codewords make 25,000,000 lists; at most"),
    ],
)
def test_wrong_settings_are_refused(
    ray_cluster: None, features: str, tmp_path: Path, changes: dict[str, Any], reason: str,
    capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    flags = ["--features", features, "--output", str(tmp_path / "index"), "--sample", "2800"]
    for name, values in ({"feature": FEATURES} | changes).items():
        flags += ["--" + name.replace("_", "-"), *map(str, values)]
    assert run_job(IndexConfig, build_index, flags) == 2
    out, err = capfd.readouterr()
    [line] = err.splitlines()
    assert line.startswith("error: ")
    assert reason in line
    assert out == ""
    assert not files_of(tmp_path / "index")  # the corrected command begins anew


def _other_kind(folder: Path) -> str:
    write_features(str(folder), clustered(0, 20, 1, DIMS), kind="model")
    return "a model artifact, but features is needed"


def _other_format(folder: Path) -> str:
    write_features(str(folder), clustered(0, 20, 1, DIMS), format=2)
    return "format 2, made by imgray"


def _no_manifest(folder: Path) -> str:
    (folder / "manifest.json").unlink()
    return "no features artifact here"


def _changed_manifest(folder: Path) -> str:
    path = folder / "manifest.json"
    path.write_bytes(path.read_bytes().replace(b'"done": 20', b'"done": 21'))
    return "manifest.json: damaged"


def _changed_part(folder: Path) -> str:
    path = folder / "part-00000.parquet"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)
    return "part-00000.parquet: its content differs from the manifest"


def _short_part(folder: Path) -> str:
    path = folder / "part-00000.parquet"
    path.write_bytes(path.read_bytes()[:-1])
    return "part-00000.parquet: its content differs from the manifest"


def _lost_part(folder: Path) -> str:
    (folder / "part-00000.parquet").unlink()
    return "part-00000.parquet"


def _changed_weights(folder: Path) -> str:
    (folder / "extractors/two.safetensors").write_bytes(b"the weights of twq")
    return "extractors/two.safetensors: its content differs from the manifest"


def _no_images(folder: Path) -> str:
    write_features(str(folder), {n: np.zeros((0, 1, d), np.float32) for n, d in DIMS.items()})
    return "no images"


@pytest.mark.parametrize(
    "harm",
    [
        _other_kind, _other_format, _no_manifest, _changed_manifest, _changed_part, _short_part,
        _lost_part, _changed_weights, _no_images,
    ],
)  # fmt: skip
def test_features_that_are_not_as_published_are_refused(
    ray_cluster: None,
    tmp_path: Path,
    harm: Callable[[Path], str],
    capfd: pytest.CaptureFixture[str],
) -> None:
    source, output = tmp_path / "features", tmp_path / "index"
    write_features(str(source), clustered(0, 20, 1, DIMS))
    reason = harm(source)
    flags = ["--features", str(source), "--output", str(output), "--feature", *FEATURES]
    assert run_job(IndexConfig, build_index, flags) == 2
    out, err = capfd.readouterr()
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert reason in errors[0]
    assert "Traceback" not in err
    assert out == ""
    assert not (output / "manifest.json").exists()
    assert harm is _changed_weights or not files_of(output)
