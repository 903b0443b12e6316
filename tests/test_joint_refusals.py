"""What makes no joint part of an index: one line, and nothing is left behind."""

import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import knowing
import numpy as np
import pytest
from conftest import TinyNet
from duals import write_dual, write_open_clip
from jointly import Made, files_of, manifest_of

from imgray.artifacts.folder import Folder
from imgray.artifacts.manifest import Manifest, publish, read_manifest
from imgray.cli import run_job
from imgray.engine.extract import extract
from imgray.engine.index import build_index
from imgray.engine.rows import Source
from imgray.engine.search import SearchEngine, encode
from imgray.engine.settings import (
    ExtractConfig,
    IndexConfig,
)
from imgray.errors import UserError
from imgray.features.columns import columns_of
from imgray.features.extractor import load_texts

pytestmark = pytest.mark.usefixtures("knowing_jobs")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"joint": None, "joint_codewords": None}, "--joint-probes is of the joint part"),
        ({"joint_probes": 0}, "--joint-probes: "),
        ({"joint_codewords": 39}, "--joint-codewords 39: the sample has only 36 images; ask"),
        ({"min_recall": ["text=.9"]}, "--min-recall text is measured with texts: say --text-q"),
        ({"min_recall": ["text"]}, "--min-recall text: expected NAME=SHARE"),
        ({"min_recall": ["image=2"]}, "--min-recall image=2: expected image or text, and a share"),
        ({"text_queries": "/nowhere/t.csv"}, "/nowhere/t.csv"),
        ({"joint": "/nowhere/model"}, "no artifact here"),
    ],
)
def test_wrong_settings_leave_nothing_behind(
    made: Made, tmp_path: Path, changes: dict[str, Any], reason: str,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    flags = []
    base = {"features": made.features, "feature": [f"{made.net}.mid"], "joint": made.model}
    base |= {"output": str(tmp_path / "index"), "joint_probes": 4, "queries": 4}
    for name, value in (base | changes).items():
        if value is not None:
            values = value if isinstance(value, list) else [value]
            flags += ["--" + name.replace("_", "-"), *map(str, values)]
    assert run_job(IndexConfig, build_index, flags) == 2
    out, err = capsys.readouterr()
    assert reason in err.splitlines()[-1]
    assert out == ""
    assert not files_of(tmp_path / "index")


def test_a_model_of_other_features_is_refused(made: Made, tmp_path: Path) -> None:
    columns = columns_of(read_manifest(Folder(made.features), "features"))
    info = columns[f"{made.net}.high"]
    other = info.model_copy(update={"fingerprint": "1" * 64})
    for name, own, reason in (
        (f"{made.net}.high", other, "has fingerprint 111111111111 there and"),
        ("vgg.high", info, "the model takes the feature vgg.high, and"),
    ):
        uri = str(tmp_path / name)
        knowing.write(uri, {name: own}, {name: made.vectors[f"{made.net}.high"]})
        with pytest.raises(UserError, match=reason):
            build_index(made.config(tmp_path / "index", joint=uri))
        assert not files_of(tmp_path / "index")


def test_a_model_of_whole_pictures_takes_the_first_region_of_a_pyramid(
    made: Made, tiny_net: TinyNet, tmp_path: Path
) -> None:
    features, high = str(tmp_path / "features"), f"{tiny_net.name}.high"
    config = {"images": str(made.photos), "size": tiny_net.size, "weights": [tiny_net.weights]}
    extract(ExtractConfig(output=features, extractor=[tiny_net.name], **config))
    manifest = read_manifest(Folder(features), "features")
    columns = columns_of(manifest)
    assert columns[high].regions == 1
    _, vectors = Source(Folder(features), manifest, [high], []).pick(np.arange(40))
    knowing.write(str(tmp_path / "model"), columns, vectors)
    found = []
    for name, source in {"whole": features, "pyramid": made.features}.items():
        changes = {"joint": str(tmp_path / "model"), "joint_probes": 5, "features": source}
        own = {"feature": [high], "probes": [4] if name == "whole" else [4, 2, 1]}
        build_index(made.config(tmp_path / name, **changes, **own))
        found.append(SearchEngine(str(tmp_path / name)).search_texts(made.texts(3, 20), 40))
    for one, other in zip(*found, strict=True):
        assert one.ids[:5] == other.ids[:5]
        order = [one.ids.index(id) for id in other.ids]
        np.testing.assert_allclose(one.scores[order], other.scores, atol=0.01)


@pytest.mark.parametrize(
    ("regions", "write"),
    [
        ("global", partial(write_dual, "clip")),
        ("pyramid", partial(write_dual, "clip")),
        ("global", partial(write_open_clip, "vit")),
    ],
)
def test_a_dual_encoder_answers_words_without_a_model(
    made: Made, regions: Any, write: Callable[[Path], None], tmp_path: Path
) -> None:
    write(tmp_path / "clip")
    features, output = str(tmp_path / "features"), tmp_path / "index"
    weights = [f"clip={tmp_path / 'clip'}"]
    extract(
        ExtractConfig(
            images=str(made.photos), output=features, extractor=["clip"], weights=weights,
            regions=regions, crop_regions=regions == "pyramid",
        )
    )  # fmt: skip
    probes = [4] if regions == "global" else [4, 2, 1]
    changes = {"features": features, "joint": features, "feature": ["clip"], "joint_probes": 5}
    build_index(made.config(output, **changes, probes=probes))
    shutil.rmtree(features)
    shutil.rmtree(tmp_path / "clip")
    one, asked = SearchEngine(str(output)), ["a red dog", "a small car runs"]
    towers = load_texts(Folder(str(output / "joint/model")), _carried(output))
    [texts] = towers.run([towers.prepare(text) for text in asked]).values()
    photos = {id: (made.photos / id).read_bytes() for id in made.ids}
    pictures = encode(one.extractor, photos)["clip.high"][:, 0]
    for text, hits in zip(texts[:, 0], one.search_texts(asked, 40), strict=True):
        exact = pictures @ text / np.linalg.norm(pictures, axis=1)
        assert sorted(hits.ids) == sorted(made.ids)
        away = np.abs(hits.scores - exact[hits.positions])
        assert np.sort(away)[-8] < 0.01  # pictures that were held out may lie beyond the code
    both = one.search(photos[made.ids[0]], asked[0], top=3)
    assert len(both.ids) == 3


def _carried(output: Path) -> Manifest:
    return read_manifest(Folder(str(output / "joint/model")), "features")


def test_features_of_no_dual_encoder_are_no_joint_part(made: Made, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="features of images by one dual encoder are needed, these"):
        build_index(made.config(tmp_path / "index", joint=made.features))
    assert not files_of(tmp_path / "index")


def test_what_are_no_features_of_images_is_refused(made: Made, tmp_path: Path) -> None:
    copy = Folder(str(shutil.copytree(made.features, tmp_path / "copy")))
    manifest = read_manifest(copy, "features")
    for extractor in ({"extractor": {"nets": {}}}, {}):
        about = {k: v for k, v in manifest.about.items() if k != "extractor"} | extractor
        publish(copy, manifest.model_copy(update={"about": about}))
        with pytest.raises(UserError, match="not the features of images"):
            build_index(made.config(tmp_path / "index", features=copy.uri))


def test_another_model_at_the_same_place_is_refused(made: Made, tmp_path: Path) -> None:
    uri, columns = str(tmp_path / "model"), knowing.load(made.model).columns
    knowing.write(uri, columns, made.vectors)
    build_index(made.config(tmp_path / "index", joint=uri))
    knowing.write(uri, columns, made.vectors, seed=1)
    with pytest.raises(UserError, match="joint_digest"):
        build_index(made.config(tmp_path / "index", joint=uri))
    build_index(made.config(tmp_path / "index", joint=uri, overwrite=True))
    assert manifest_of(tmp_path / "index").about["joint"]["fingerprint"] == "print 1"
