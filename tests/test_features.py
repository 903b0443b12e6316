from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import TinyNet
from PIL import Image
from poison import encoded, exif_of, scene, stored

from imgray.artifacts.folder import Folder
from imgray.artifacts.manifest import Manifest
from imgray.data import samples
from imgray.data.pixels import Rejected
from imgray.errors import UserError
from imgray.features.backbones import Backbone
from imgray.features.columns import FeatureInfo, Vectors, choose, from_table
from imgray.features.columns import schema as schema_of
from imgray.features.extractor import (
    ExtractorConfig,
    PictureExtractor,
    load_extractor,
    save_extractor,
    to_table,
)
from imgray.features.weights import Request, load

PYRAMID = (1, 2, 3)


@pytest.fixture(scope="module")
def backbone(tiny_net: TinyNet) -> Backbone:
    return load(Request(tiny_net.name, ("high", "mid"), str(tiny_net.path)), tiny_net.size)


def _extractor(
    backbone: Backbone, grids: tuple[int, ...] = (1,), crop: bool = False
) -> PictureExtractor:
    config = ExtractorConfig(
        nets={"tiny": backbone.config}, grids=grids, crop_regions=crop, max_pixels=10**7
    )
    return PictureExtractor(config, {"tiny": backbone})


def _photographs(count: int = 3) -> list[Image.Image]:
    return list(samples.photographs().values())[:count]


def _run(extractor: PictureExtractor, pictures: list[Image.Image]) -> Vectors:
    return extractor.run([extractor.prepare(encoded(picture, "PNG")) for picture in pictures])


def test_a_table_keeps_names_sizes_and_vectors(backbone: Backbone, tmp_path: Path) -> None:
    extractor = _extractor(backbone, PYRAMID)
    columns = extractor.describe()
    batch = [extractor.prepare(encoded(picture, "PNG")) for picture in _photographs()]
    vectors = extractor.run(batch)
    table = to_table(["a", "b/ü", "c"], batch, vectors, schema_of(columns))
    pq.write_table(table, tmp_path / "t.parquet")
    again = pq.read_table(tmp_path / "t.parquet")
    assert again["id"].to_pylist() == ["a", "b/ü", "c"]
    sizes = list(zip(again["width"].to_pylist(), again["height"].to_pylist(), strict=True))
    assert sizes == [picture.size for picture in _photographs()]
    for name in ("tiny.high", "tiny.mid"):
        assert again.schema.field(name).type == pa.list_(
            pa.float16(), columns[name].regions * columns[name].dim
        )
        found = from_table(again, name, columns[name])
        assert found.dtype == np.float32
        assert found.shape == (3, 14, columns[name].dim)
        np.testing.assert_array_equal(found, vectors[name].astype(np.float16).astype(np.float32))
        sliced = from_table(again.slice(1, 1), name, columns[name])
        np.testing.assert_array_equal(sliced, found[1:2])
        np.testing.assert_array_equal(from_table(again.to_batches()[0], name, columns[name]), found)


def test_the_schema_tells_shapes_and_fingerprints(backbone: Backbone) -> None:
    extractor = _extractor(backbone, PYRAMID)
    columns = extractor.describe()
    schema = schema_of(columns)
    assert schema.names == ["id", "width", "height", "tiny.high", "tiny.mid"]
    for name, info in columns.items():
        assert info.regions == 14
        found = {k.decode(): v.decode() for k, v in schema.field(name).metadata.items()}
        assert found == {
            "regions": "14",
            "dim": str(info.dim),
            "fingerprint": extractor.fingerprint("tiny"),
        }


def test_an_empty_batch_makes_an_empty_table(backbone: Backbone) -> None:
    columns = _extractor(backbone).describe()
    table = schema_of(columns).empty_table()
    assert from_table(table, "tiny.high", columns["tiny.high"]).shape == (
        0, 1, columns["tiny.high"].dim,
    )  # fmt: skip


def test_true_crops_are_the_features_of_the_cut_pictures(backbone: Backbone) -> None:
    picture = _photographs(1)[0].resize((360, 240))
    found = _run(_extractor(backbone, PYRAMID, crop=True), [picture])
    crops = [
        picture.crop((360 // g * j, 240 // g * i, 360 // g * (j + 1), 240 // g * (i + 1)))
        for g in PYRAMID for i in range(g) for j in range(g)
    ]  # fmt: skip
    by_hand = _run(_extractor(backbone), crops)
    for name, vectors in found.items():
        assert vectors.shape[:2] == (1, 14)
        cosine = (vectors[0] * by_hand[name][:, 0]).sum(axis=1)
        assert cosine.min() > 0.995
        assert np.abs(vectors[0] @ by_hand[name][:, 0].T - np.eye(14)).max() > 0.01


def test_pooled_regions_begin_with_the_global_vector(backbone: Backbone) -> None:
    pictures = _photographs()
    whole, regions = (_run(_extractor(backbone, g), pictures) for g in ((1,), PYRAMID))
    for name, vectors in whole.items():
        np.testing.assert_allclose(regions[name][:, :1], vectors, atol=1e-6)


def test_an_image_has_the_features_of_what_is_displayed(backbone: Backbone) -> None:
    extractor = _extractor(backbone, PYRAMID)
    upright = encoded(scene(), "PNG")
    turned = encoded(stored(scene(), 6), "PNG", exif=exif_of(6))
    one, other = (extractor.prepare(data) for data in (upright, turned))
    assert (one.width, one.height) == (other.width, other.height) == scene().size
    np.testing.assert_array_equal(one.inputs[64], other.inputs[64])
    with pytest.raises(Rejected, match="at most 10,000,000"):
        extractor.prepare(encoded(Image.new("1", (10_001, 1000)), "PNG"))


def test_fingerprints_change_with_the_regions_and_not_with_the_layers(
    backbone: Backbone, tiny_net: TinyNet
) -> None:
    kinds = [(1,), PYRAMID, (1, 2)]
    found = {_extractor(backbone, g, c).fingerprint("tiny") for g in kinds for c in (True, False)}
    assert len(found) == 6
    one_layer = load(Request(tiny_net.name, ("mid",), str(tiny_net.path)), tiny_net.size)
    assert _extractor(one_layer).fingerprint("tiny") == _extractor(backbone).fingerprint("tiny")


def test_an_extractor_travels_in_an_artifact(backbone: Backbone, tmp_path: Path) -> None:
    folder, extractor = Folder(str(tmp_path)), _extractor(backbone, PYRAMID)
    entries = save_extractor(extractor, folder)
    about = {"extractor": extractor.config.model_dump(mode="json")}
    manifest = Manifest(kind="features", config={}, files=entries, about=about)
    again = load_extractor(folder, manifest)
    assert again.names == extractor.names == ["tiny.high", "tiny.mid"]
    for name, vectors in _run(extractor, _photographs()).items():
        np.testing.assert_array_equal(_run(again, _photographs())[name], vectors)
    data = bytearray(folder.read(entries[0].name))
    data[-1] ^= 1
    folder.write(entries[0].name, bytes(data))
    with pytest.raises(UserError, match="content differs from the manifest"):
        load_extractor(folder, manifest)


def test_features_are_chosen_by_name() -> None:
    info = FeatureInfo(regions=1, dim=4, fingerprint="f")
    columns = {"a.high": info, "a.mid": info, "b.high": info}
    assert list(choose(columns, ["b", "a.mid"])) == ["b.high", "a.mid"]
    for wanted, reason in (
        (["c"], "--feature c: the shards have a.high, a.mid, b.high"),
        (["a.low"], "--feature a.low: the shards have a.high, a.mid, b.high"),
        (["a", "a.high"], "--feature a.high: named twice"),
    ):
        with pytest.raises(UserError) as error:
            choose(columns, wanted)
        assert str(error.value) == reason
