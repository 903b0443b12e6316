"""CLIP in a folder of sentence-transformers: both towers give what that library gives."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from duals import MEAN, SIZE, STD, build, write_dual
from poison import encoded
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer

from imgray.data import samples
from imgray.errors import UserError
from imgray.features.extractor import Extractor

CLIP = "sentence_transformers.models.CLIPModel"
UNITS = "sentence_transformers.models.Normalize"
TEXTS = ["a dog", "a small red car", "dog runs", "a", "a red dog runs runs runs a dog a dog a car"]
TEXT = {"columns": ["text=caption"]}


def _write(folder: Path, *more: str, path: str = "0_CLIPModel") -> Path:
    """CLIP, and more modules after it, which are of these types."""
    inner = folder / path
    write_dual("clip", inner)
    squashed = {"size": {"height": SIZE, "width": SIZE}, "do_center_crop": False, "resample": 3}
    colours = {"image_mean": MEAN, "image_std": STD, "image_processor_type": "CLIPImageProcessor"}
    (inner / "preprocessor_config.json").write_text(json.dumps(squashed | colours))
    types = {path: CLIP} | {f"{n}_More": kind for n, kind in enumerate(more, 1)}
    modules = [{"name": name, "path": name, "type": kind} for name, kind in types.items()]
    (folder / "modules.json").write_text(
        json.dumps([{"idx": number, **module} for number, module in enumerate(modules)])
    )
    return folder


def _written_anew(folder: Path) -> Path:
    """As the library itself writes it today: without a folder for the model."""
    found = SentenceTransformer(str(_write(folder / "old")), device="cpu", local_files_only=True)
    found.save_pretrained(str(folder / "new"), create_model_card=False)
    assert (folder / "new/model.safetensors").exists()
    return folder / "new"


@pytest.fixture(params=["old", "unit", "new"])
def dual(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    if request.param == "new":
        return _written_anew(tmp_path)
    return _write(tmp_path / "dual", *([UNITS] if request.param == "unit" else []))


def _run(extractor: Extractor, values: list[Any]) -> np.ndarray:
    return extractor.run([extractor.prepare(value) for value in values])["dual.high"][:, 0]


def test_both_towers_have_the_vectors_of_the_library(dual: Path) -> None:
    model = SentenceTransformer(str(dual), device="cpu", local_files_only=True)
    photographs = list(samples.photographs().values())[:4]
    files = [encoded(picture, "PNG") for picture in photographs]
    given: list[tuple[Any, list[Any], list[Any]]] = [
        (build(dual, **TEXT), TEXTS, TEXTS),
        (build(dual), files, [picture.convert("RGB") for picture in photographs]),
    ]
    for extractor, values, theirs in given:
        found = _run(extractor, values)
        wanted = model.encode(theirs, normalize_embeddings=True)
        np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)
        assert (found * wanted).sum(1).min() > 0.9999
        assert np.abs(found[0] - found[1]).max() > 1e-3


def test_both_towers_share_a_space_that_no_other_model_has(dual: Path, tmp_path: Path) -> None:
    def space() -> str:
        pictures, texts = build(dual), build(dual, **TEXT).config.texts["dual"]
        [found] = {
            texts.space,
            pictures.config.texts["dual"].space,
            pictures.config.nets["dual"].space,
        }
        return found

    first = space()
    [path] = dual.rglob("model.safetensors")
    save_file({k: v + 1 for k, v in load_file(path).items()}, path, {"format": "pt"})
    assert first
    assert first != space()


def test_more_than_unit_length_after_the_model_takes_no_pictures(tmp_path: Path) -> None:
    """They would not pass through it, and lie in no space with the texts."""
    dual = _write(tmp_path / "dual", UNITS, "sentence_transformers.models.Dense")
    with pytest.raises(UserError, match=r"modules.json: more follows the model.*texts alone"):
        build(dual)


def test_modules_that_are_code_are_not_run(tmp_path: Path) -> None:
    dual, left = _write(tmp_path / "dual"), tmp_path / "left"
    modules = json.loads((dual / "modules.json").read_text())
    (dual / "evil.py").write_text(f"open({str(left)!r}, 'w')\nclass Evil: pass\n")
    for code in ("evil.Evil", "some/one--evil.Evil", "subprocess.Popen"):
        (dual / "modules.json").write_text(json.dumps([modules[0] | {"type": code}]))
        with pytest.raises(UserError, match="not a model of sentence-transformers") as error:
            build(dual, **TEXT)
        assert "\n" not in str(error.value)
    assert not left.exists()


@pytest.mark.parametrize("changes", [{}, TEXT])
@pytest.mark.parametrize("path", ["..", "../other", "0_CLIPModel/../../other", "/other"])
def test_a_model_beside_the_folder_is_not_read(tmp_path: Path, path: str, changes: Any) -> None:
    dual = _write(tmp_path / "dual")
    write_dual("clip", tmp_path / "other")
    modules = json.loads((dual / "modules.json").read_text())
    (dual / "modules.json").write_text(json.dumps([modules[0] | {"path": path}]))
    with pytest.raises(UserError) as error:
        build(dual, **changes)
    assert "\n" not in str(error.value)


NONE = "no preprocessor_config.json with image_mean"


@pytest.mark.parametrize(
    ("colours", "reason"),
    [
        ({"image_mean": "red"}, "0_CLIPModel/preprocessor_config.json: mean"),
        ({"image_mean": MEAN}, "0_CLIPModel/preprocessor_config.json: std"),
        ({"image_mean": 1}, "0_CLIPModel/preprocessor_config.json: mean"),
        ({"image_processor": 1}, NONE),
        ({}, NONE),
    ],
)
def test_colours_that_are_none_are_one_line(tmp_path: Path, colours: Any, reason: str) -> None:
    dual = _write(tmp_path / "dual")
    (dual / "0_CLIPModel/preprocessor_config.json").write_text(json.dumps(colours))
    with pytest.raises(UserError, match=reason):
        build(dual)
