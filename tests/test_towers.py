"""Dual encoders, tiny ones with random weights: both towers give what transformers gives."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import S3, upload
from duals import MEAN, SIZE, STD, build, pictures_of, texts_of, tokenizer, write_dual
from PIL import Image
from poison import encoded
from safetensors.torch import load_file, save_file
from transformers import AutoModel

from imgray.artifacts.folder import Folder
from imgray.artifacts.manifest import Manifest
from imgray.data import samples
from imgray.data.pixels import decode, resize
from imgray.errors import UserError
from imgray.features.extractor import (
    PictureExtractor,
    load_extractor,
    load_texts,
    save_extractor,
)
from imgray.features.towers import dual_type

CLIP = "sentence_transformers.models.CLIPModel"
TEXTS = ["a dog", "a small red car", "dog runs", "a", "a red dog runs runs runs a dog a dog a car"]


@pytest.fixture(scope="module", params=["clip", "siglip"])
def dual(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of transformers."""
    folder = tmp_path_factory.mktemp(request.param)
    write_dual(request.param, folder)
    return folder


def _unit(output: Any) -> np.ndarray:
    return F.normalize(getattr(output, "pooler_output", output), dim=1).detach().numpy()


def test_pictures_have_the_vectors_of_transformers(dual: Path) -> None:
    extractor = pictures_of(dual)
    assert extractor.names == ["dual.high"]
    files = [encoded(picture, "PNG") for picture in list(samples.photographs().values())[:3]]
    found = extractor.run([extractor.prepare(data) for data in files])["dual.high"]
    pixels = np.stack([resize(decode(data), SIZE) for data in files]) / 255
    pixels = ((pixels - MEAN) / STD).transpose(0, 3, 1, 2).astype(np.float32)
    wanted = _unit(AutoModel.from_pretrained(dual).get_image_features(torch.from_numpy(pixels)))
    np.testing.assert_allclose(found[:, 0], wanted, atol=1e-5)


def test_texts_have_the_vectors_of_transformers(dual: Path) -> None:
    """Those of SigLIP padded to full length, as its documentation asks."""
    extractor, model = texts_of(dual), AutoModel.from_pretrained(dual)
    found = extractor.run([extractor.prepare(text) for text in TEXTS])["dual.high"]
    padding = "max_length" if model.config.model_type == "siglip" else True
    inputs = tokenizer()(TEXTS, padding=padding, truncation=True, return_tensors="pt")
    mask = {} if padding == "max_length" else {"attention_mask": inputs["attention_mask"]}
    wanted = _unit(model.get_text_features(inputs["input_ids"], **mask))
    np.testing.assert_allclose(found[:, 0], wanted, atol=1e-5)
    for text, vector in zip(TEXTS, found, strict=True):
        alone = extractor.run([extractor.prepare(text)])["dual.high"][0]
        np.testing.assert_array_equal(alone, vector)


def test_both_towers_tell_that_they_share_a_space(dual: Path, tmp_path: Path) -> None:
    pictures, texts = pictures_of(dual), texts_of(dual)
    space = pictures.nets["dual"].config.space
    assert space
    assert {texts.config.texts["dual"].space, pictures.config.texts["dual"].space} == {space}
    assert pictures.describe()["dual.high"].dim == texts.describe()["dual.high"].dim
    other = Path(shutil.copytree(dual, tmp_path / "other"))
    state = load_file(other / "model.safetensors")
    save_file({k: v + 1 for k, v in state.items()}, other / "model.safetensors", {"format": "pt"})
    assert texts_of(other).config.texts["dual"].space != space


def test_an_artifact_of_pictures_carries_the_text_tower(dual: Path, tmp_path: Path) -> None:
    extractor, folder = pictures_of(dual), Folder(str(tmp_path))
    files = save_extractor(extractor, folder)
    about = {"extractor": extractor.config.model_dump(mode="json")}
    manifest = Manifest(kind="features", config={}, files=files, about=about)
    pictures, texts = load_extractor(folder, manifest), load_texts(folder, manifest)
    assert isinstance(pictures, PictureExtractor)
    assert pictures.describe() == extractor.describe()
    own = texts_of(dual)
    batch = [own.prepare(text) for text in TEXTS]
    np.testing.assert_array_equal(texts.run(batch)["dual.high"], own.run(batch)["dual.high"])
    data = encoded(next(iter(samples.photographs().values())), "PNG")
    one, two = (e.run([e.prepare(data)])["dual.high"] for e in (pictures, extractor))
    np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"extractor": ["dual.mid"]}, "a dual encoder has the layer high alone"),
        ({"size": 64}, "takes 32 x 32 pixels; leave out --size 64"),
        ({"extractor": ["dual", "tfidf"], "columns": ["text=x"], "size": 64}, "texts have none"),
        ({"extractor": ["dual.mid"], "columns": ["text=x"]}, "a text encoder has the layer high"),
    ],
)
def test_what_it_does_not_have_is_refused(dual: Path, changes: Any, reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        build(dual, **changes)


def test_a_model_may_lie_in_s3(
    dual: Path, s3: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And be of sentence-transformers, which has that of transformers in a folder of its own."""
    monkeypatch.setenv("IMGRAY_CACHE", str(tmp_path / "cache"))
    own = tmp_path / "own"
    modules = [{"idx": 0, "name": "0", "path": "0_CLIPModel", "type": CLIP}]
    shutil.copytree(dual, own / "0_CLIPModel")
    (own / "modules.json").write_text(json.dumps(modules))
    folder = Folder(s3.uri(f"models/{dual.name}"))
    upload(own, folder)
    for tower in (texts_of, pictures_of):
        here, there = tower(dual), tower(folder.uri)
        assert {i.dim for i in there.describe().values()} == {
            i.dim for i in here.describe().values()
        }
    batch = [here.prepare(encoded(Image.new("RGB", (40, 30), "red"), "PNG"))]
    np.testing.assert_array_equal(*(e.run(batch)["dual.high"] for e in (here, there)))


def test_a_model_that_lacks_tensors_is_refused(dual: Path, tmp_path: Path) -> None:
    """They would be drawn at random, anew by every worker."""
    folder = Path(shutil.copytree(dual, tmp_path / "lacking"))
    state = load_file(folder / "model.safetensors")
    names = ("layers.0.mlp.fc1.weight",)
    kept = {k: v for k, v in state.items() if not k.endswith(names)}
    assert len(kept) == len(state) - 2
    save_file(kept, folder / "model.safetensors", {"format": "pt"})
    for changes in ({}, {"columns": ["text=caption"]}):
        with pytest.raises(UserError, match="tensors are missing"):
            build(folder, **changes)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("modules.json", '{"a": 1}'),
        ("modules.json", "[1]"),
        ("modules.json", '[{"path": "../other"}]'),
        ("modules.json", '[{"path": 3}]'),
        ("modules.json", "[" * 100_000),
        ("config.json", "[]"),
        ("config.json", "null"),
    ],
)
def test_settings_that_are_none_are_one_line(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / name).write_text(content)
    (tmp_path / "other").mkdir()
    (tmp_path / "other/config.json").write_text('{"model_type": "clip"}')
    with pytest.raises(UserError, match=f"model/{name}: no"):
        dual_type(Folder(str(tmp_path / "model")))
