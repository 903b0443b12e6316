"""Dual encoders of open_clip, tiny ones with random weights: both towers give what it gives."""

import contextlib
import json
import shutil
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
import torch.nn.functional as F
from duals import (
    LENGTH,
    MEAN,
    OPEN_CLIP,
    STD,
    build,
    pictures_of,
    texts_of,
    write_dual,
    write_open_clip,
)
from PIL import Image
from poison import encoded
from safetensors.torch import load_file, save_file

from imgray.artifacts.folder import Folder
from imgray.artifacts.manifest import Manifest
from imgray.data import samples
from imgray.errors import UserError
from imgray.features.extractor import (
    PictureExtractor,
    TextExtractor,
    load_extractor,
    load_texts,
    save_extractor,
)
from imgray.features.openclip_folder import CONFIG, WEIGHTS
from imgray.features.weights import restore

TEXTS = [
    "a dog",
    "a small red car.",
    "Dog  runs",
    "a",
    "a red dog runs runs runs a dog a dog a car",
]


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """No test here reaches for another machine."""
    asked: list[Any] = []

    def refuse(*given: Any, **_: Any) -> Any:
        asked.append(given)
        raise OSError("no network")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    yield asked
    assert not asked


@pytest.fixture(scope="module", params=list(OPEN_CLIP))
def dual(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp(request.param) / "dual"
    write_open_clip(request.param, folder)
    return folder


@pytest.fixture(scope="module")
def vit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("own") / "vit"
    write_open_clip("vit", folder)
    return folder


@pytest.fixture
def copy(vit: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(vit, tmp_path / "copy"))


def _of_texts(extractor: TextExtractor, texts: list[str]) -> np.ndarray:
    return extractor.run([extractor.prepare(text) for text in texts])["dual.high"][:, 0]


def _of_pictures(extractor: PictureExtractor, files: list[bytes]) -> np.ndarray:
    return extractor.run([extractor.prepare(data) for data in files])["dual.high"][:, 0]


def _photographs() -> list[Image.Image]:
    return list(samples.photographs().values())[:5]


def _same(found: np.ndarray, wanted: torch.Tensor) -> None:
    """Of unit length, and in the same directions."""
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)
    cosines = (found * F.normalize(wanted, dim=1).detach().numpy()).sum(1)
    assert cosines.min() > 0.9999
    assert np.abs(found[0] - found[1]).max() > 1e-3


def test_pictures_have_the_vectors_of_open_clip(dual: Path) -> None:
    model, prepare = open_clip.create_model_from_pretrained(f"local-dir:{dual}")
    wanted = model.eval().encode_image(torch.stack([prepare(p) for p in _photographs()]))
    extractor, files = pictures_of(dual), [encoded(p, "PNG") for p in _photographs()]
    assert extractor.names == ["dual.high"]
    found = _of_pictures(extractor, files)
    _same(found, wanted)
    alone = np.concatenate([_of_pictures(extractor, [data]) for data in files])
    np.testing.assert_allclose(alone, found, atol=1e-6)


def test_texts_have_the_vectors_of_open_clip(dual: Path) -> None:
    model, _ = open_clip.create_model_from_pretrained(f"local-dir:{dual}")
    cleaned = [" ".join(text.split()) for text in TEXTS]
    tokens = open_clip.get_tokenizer(f"local-dir:{dual}")(cleaned)
    extractor = texts_of(dual)
    found = _of_texts(extractor, TEXTS)
    _same(found, model.eval().encode_text(tokens))
    for text, vector in zip(TEXTS, found, strict=True):
        np.testing.assert_array_equal(_of_texts(extractor, [text])[0], vector)


def test_the_settings_are_those_of_the_folder(dual: Path) -> None:
    net, text = pictures_of(dual).nets["dual"].config, texts_of(dual).config.texts["dual"]
    size = json.loads((dual / CONFIG).read_text())["model_cfg"]["vision_cfg"]["image_size"]
    assert (net.size, net.mean, net.std) == (size, MEAN, STD)
    assert (text.longest, text.library) == (LENGTH, "open_clip")
    text = build(dual, columns=["text=caption"], precision="bfloat16").config.texts["dual"]
    assert text.precision == "bfloat16"


def test_a_folder_without_colours_has_those_of_openai(copy: Path) -> None:
    _change(copy, preprocess_cfg={})
    config = pictures_of(copy).nets["dual"].config
    assert config.mean == open_clip.OPENAI_DATASET_MEAN
    assert config.std == open_clip.OPENAI_DATASET_STD


def test_both_towers_tell_that_they_share_a_space(vit: Path, copy: Path, tmp_path: Path) -> None:
    """That of these tensors with these settings, wherever they lie."""

    def spaces(folder: Path) -> set[str]:
        pictures = pictures_of(folder)
        towers = [pictures.nets["dual"].config, pictures.config.texts["dual"]]
        return {tower.space for tower in [*towers, texts_of(folder).config.texts["dual"]]}

    [space] = spaces(vit)
    assert space
    assert spaces(copy) == {space}
    _change(copy, quick_gelu=False)
    write_open_clip("vit", tmp_path / "drawn", seed=1)
    found = [spaces(copy), spaces(tmp_path / "drawn"), {space}]
    assert len(set.union(*found)) == 3


def test_an_artifact_of_pictures_carries_both_towers(dual: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(dual, tmp_path / "copy"))
    extractor, folder = pictures_of(copy), Folder(str(tmp_path / "artifact"))
    own = _of_texts(texts_of(copy), TEXTS)
    files = save_extractor(extractor, folder)
    data = [encoded(picture, "PNG") for picture in _photographs()]
    wanted = _of_pictures(extractor, data)
    shutil.rmtree(copy)
    about = {"extractor": extractor.config.model_dump(mode="json")}
    manifest = Manifest(kind="features", config={}, files=files, about=about)
    pictures, texts = load_extractor(folder, manifest), load_texts(folder, manifest)
    assert isinstance(pictures, PictureExtractor)
    assert pictures.describe() == extractor.describe()
    np.testing.assert_array_equal(_of_pictures(pictures, data), wanted)
    np.testing.assert_array_equal(_of_texts(texts, TEXTS), own)


def test_the_tensors_of_one_library_are_carried(copy: Path) -> None:
    """A folder of the hub often has a model for several; transformers' is read where it is."""
    (copy / "onnx").mkdir()
    shutil.copy(copy / CONFIG, copy / "onnx")
    write_dual("clip", copy)
    assert texts_of(copy).config.texts["dual"].library == "sentence-transformers"
    (copy / "model.safetensors").unlink()
    found = texts_of(copy).config.texts["dual"]
    names = {entry.name for entry in found.files}
    assert found.library == "open_clip"
    assert {CONFIG, WEIGHTS, "tokenizer.json"} < names
    assert not any(name.startswith("onnx") for name in names)


def _change(folder: Path, preprocess_cfg: Any = None, **model_cfg: Any) -> None:
    """Other settings, the towers' own among them."""
    path = folder / CONFIG
    found = json.loads(path.read_text())
    for name, value in model_cfg.items():
        if isinstance(value, dict):
            value = found["model_cfg"].get(name, {}) | value
        found["model_cfg"][name] = value
    if preprocess_cfg is not None:
        found["preprocess_cfg"] = preprocess_cfg
    path.write_text(json.dumps(found))


def _refused(folder: Path, reason: str, **changes: Any) -> None:
    """In one line, which names the folder."""
    with pytest.raises(UserError, match=reason) as error:
        build(folder, **changes)
    assert "\n" not in str(error.value)
    assert str(folder) in str(error.value)


TEXT = {"columns": ["text=caption"]}


@pytest.mark.parametrize("changes", [{}, TEXT])
@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"vision_cfg": {"width": 64}}, "does not fit open_clip_config.json .*fetch both again"),
        ({"text_cfg": {"layers": 3}}, "does not fit open_clip_config.json .*Missing key"),
        ({"vision_cfg": {"layers": [1, 1, 1, 1]}}, "does not fit open_clip_config.json"),
        ({"vision_cfg": {"depth": 64}}, "unexpected keyword argument 'depth'.*another model"),
        ({"multimodal_cfg": {}}, "unexpected keyword argument 'multimodal_cfg'.*another model"),
        ({"vision_cfg": {"width": "wide"}}, "describes wholly"),
        ({"vision_cfg": 3}, "open_clip_config.json: model_cfg.vision_cfg: Input should be"),
        ({"embed_dim": 0}, "open_clip_config.json: model_cfg.embed_dim: Input should be greater"),
        ({"text_cfg": {"context_length": "long"}}, "text_cfg.context_length: Input should be"),
        ({"preprocess_cfg": {"mean": [1, 2]}}, "preprocess_cfg.mean.2 is required"),
        ({"preprocess_cfg": {"std": "none"}}, "preprocess_cfg.std: Input should be"),
        ({"text_cfg": {"hf_model_name": "some/one"}}, "a tower of a hub, some/one.*another model"),
        ({"text_cfg": {"hf_model_name": "../../etc"}}, "a tower of a hub, ../../etc"),
        ({"vision_cfg": {"timm_model_name": "hf-hub:a/b"}}, "a tower of a hub, hf-hub:a/b"),
        ({"vision_cfg": {"timm_model_name": "local-dir:../b"}}, "a tower of a hub, local-dir"),
        ({"text_cfg": {"tokenizer_kwargs": {"trust_remote_code": True}}}, "trust_remote_code"),
        ({"text_cfg": {"tokenizer_kwargs": {"reduction_mask": "syntax"}}}, "reduction_mask"),
    ],
)
def test_settings_of_another_model_are_refused(
    copy: Path, changes: Any, settings: Any, reason: str
) -> None:
    _change(copy, **settings)
    _refused(copy, reason, **changes)


@pytest.mark.parametrize("changes", [{}, TEXT])
@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("[]", "not the JSON of a model; fetch"),
        ("{", "not the JSON of a model; fetch"),
        ("{}", "model_cfg is required"),
        ('{"model_cfg": {}}', "model_cfg.embed_dim is required"),
    ],
)
def test_settings_that_are_none_are_refused(
    copy: Path, changes: Any, content: str, reason: str
) -> None:
    (copy / CONFIG).write_text(content)
    _refused(copy, reason, **changes)


@pytest.mark.parametrize("changes", [{}, TEXT])
def test_files_that_lack_are_told(copy: Path, changes: Any) -> None:
    state = load_file(copy / WEIGHTS)
    torch.save(state, copy / "open_clip_pytorch_model.bin")
    (copy / WEIGHTS).unlink()
    _refused(copy, f"no {WEIGHTS} here.*safe_serialization=True", **changes)
    (copy / WEIGHTS).write_bytes(b"no tensors")
    _refused(copy, f"{WEIGHTS} does not fit", **changes)
    save_file({k: v for k, v in state.items() if k != "ln_final.bias"}, copy / WEIGHTS)
    _refused(copy, "Missing key.*ln_final.bias", **changes)
    (copy / CONFIG).unlink()
    _refused(copy, f"nor {CONFIG}", **changes)


def test_without_its_tokenizer_a_folder_has_no_texts(copy: Path) -> None:
    for path in copy.glob("token*"):
        path.unlink()
    _refused(copy, "no tokenizer of open_clip_config.json here.*with all its files", **TEXT)


def test_texts_of_more_words_than_the_model_knows_are_refused(copy: Path) -> None:
    write_open_clip("resnet", copy)
    state = load_file(copy / WEIGHTS)
    state["token_embedding.weight"] = state["token_embedding.weight"][:10].clone()
    save_file(state, copy / WEIGHTS)
    _change(copy, text_cfg={"vocab_size": 10})
    _refused(copy, "the text tower fails", **TEXT)


@pytest.mark.parametrize("changes", [{}, TEXT])
def test_no_code_of_a_folder_is_run(copy: Path, changes: Any, alone: list[Any]) -> None:
    left = copy / "left"
    (copy / "evil.py").write_text(f"open({str(left)!r}, 'w')\nclass Evil: pass\n")
    path = copy / "tokenizer_config.json"
    for code in ("evil.Evil", "some/one--evil.Evil"):
        asked = {"auto_map": {"AutoTokenizer": [code, code]}, "tokenizer_class": "Evil"}
        path.write_text(json.dumps(json.loads(path.read_text()) | asked))
        with contextlib.suppress(UserError):
            build(copy, **changes)
    assert not left.exists()


def test_pictures_that_are_not_square_are_refused(copy: Path) -> None:
    _change(copy, vision_cfg={"image_size": [32, 48]})
    _refused(copy, "takes 48 x 32 pixels; only squares")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"extractor": ["dual.mid"]}, "a dual encoder has the layer high alone"),
        ({"size": 64}, "takes 32 x 32 pixels; leave out --size 64"),
    ],
)
def test_what_it_does_not_have_is_refused(vit: Path, changes: Any, reason: str) -> None:
    _refused(vit, reason, **changes)


def test_a_strange_artifact_fetches_no_tower(vit: Path) -> None:
    net = pictures_of(vit).nets["dual"].config
    for vision in ({"timm_model_name": "hf-hub:a/b", "timm_model_pretrained": True}, None):
        config = net.arguments["config"] | {"vision_cfg": vision}
        with pytest.raises(UserError, match="a picture tower of open_clip: no dual encoder"):
            restore(net.model_copy(update={"arguments": {"config": config}}), b"")


@pytest.mark.parametrize("changes", [{}, TEXT])
def test_without_the_library_one_line_names_the_extra(
    vit: Path, monkeypatch: pytest.MonkeyPatch, changes: Any
) -> None:
    monkeypatch.setitem(sys.modules, "open_clip", None)
    _refused(vit, r"pip install 'imgray\[text\]'", **changes)
