"""A model that swaps clothes, with a parser, from a table to artifact, batch job and service."""

import io
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import inprocess
import numpy as np
import persons
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image

import imgray
from imgray.artifacts.folder import Folder
from imgray.artifacts.manifest import read_manifest
from imgray.data.layout import Layout
from imgray.engine import train as training
from imgray.engine.evaluate_model import evaluate_model
from imgray.engine.examples import open_examples
from imgray.engine.predict import predict
from imgray.engine.settings import EvaluateModelConfig, PredictConfig, TrainConfig
from imgray.engine.train import train
from imgray.errors import UserError
from imgray.training.sheet import SAMPLES

SEGMENTATION = {
    "trunk": "vgg16", "weights": "none", "width": 0.1, "crop": 32, "rate": 0.05,
}  # fmt: skip
METRICS = {"ssim", "ssim_mirrored", "apart", "mask_iou", "clothes", "clothes_before"}


@pytest.fixture(scope="module", autouse=True)
def without_ray() -> Iterator[None]:
    with inprocess.jobs():
        yield


def _train(recipe: dict[str, Any], data: str, folder: Path, **flags: Any) -> str:
    folder.mkdir(exist_ok=True)
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    given = {"recipe": str(folder / "recipe.yaml"), "data": data, "workers": "1", **flags}
    return train(TrainConfig(output=str(folder / "model"), **given)).output


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return persons.write(tmp_path_factory.mktemp("people"))


def _parser(data: Path, folder: Path, labels: tuple[str, ...], seed: int = 0) -> str:
    recipe = {
        "task": "imgray.classification.segmentation:Segmentation",
        "settings": SEGMENTATION | {"classes": list(labels)},
        "data": {"hold_out": 0.4, "validate": None, "truth": "columns"},
        "batch_size": 2, "steps": 3, "seed": seed,
    }  # fmt: skip
    return _train(recipe, str(data), folder, columns=["image=photo", "mask=parsing"])


def _recipe(**changes: Any) -> dict[str, Any]:
    found = persons.recipe({"steps": 3}, **changes).model_dump(mode="json", by_alias=True)
    return found | {"settings": {**found["settings"], "labels": list(persons.LABELS)}}


@pytest.fixture(scope="module")
def model(data: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Whose parser is not there any more."""
    folder = tmp_path_factory.mktemp("swapper")
    parser = _parser(data, folder / "parser", persons.LABELS)
    found = _train(_recipe(parser=parser), str(data), folder / "swap")
    shutil.rmtree(folder / "parser")
    return found


@pytest.fixture(scope="module")
def pairs(data: Path) -> Path:
    """A table of pairs, by names without suffix; the last lacks its parsing, one its shoulders."""
    rows = ["id,reference,target,pose,parsing"]
    poses = [persons.pose(n % 3 - 1) for n in range(4)]
    poses[2][[2, 5], 2] = 0
    for n, points in enumerate(poses):
        text, parsing = json.dumps(points.tolist()), "" if n == 3 else n
        rows.append(f'pair-{n},{n},{n + 1},"{text}",{parsing}')
    (data.parent / "pairs.csv").write_text("\n".join(rows) + "\n")
    return data.parent / "pairs.csv"


def test_training_reports_and_draws(model: str, data: Path) -> None:
    manifest = read_manifest(Folder(model), "model")
    assert manifest.about["metrics"].keys() == METRICS
    assert Image.open(io.BytesIO(Folder(model).read(SAMPLES))).width > 100
    scored = evaluate_model(EvaluateModelConfig(model=model, data=str(data), workers=1)).root
    others = {"parser_iou", "parser_iou_before", *(f"{n}_mobilenet_v2" for n in ("kid", "fid"))}
    assert scored.keys() == METRICS | others | {"fid_n"}
    assert scored["fid_n"] == len(open_examples(persons.recipe(), str(data)).val)
    for name, value in manifest.about["metrics"].items():
        assert scored[name] == pytest.approx(value, rel=1e-4)
    assert all(0 <= scored[name] <= 1 for name in scored if "iou" in name)


def test_a_model_keeps_the_parser_that_it_has(model: str, data: Path, tmp_path: Path) -> None:
    plain = _train(_recipe(kid=None), str(data), tmp_path)
    for scored, said in ((model, "the one that it was trained with"), (plain, "none")):
        config = {"model": scored, "data": str(data), "set": [f"settings.parser={plain}"]}
        with pytest.raises(UserError, match=f"^settings.parser .*{said}.*; leave it out") as told:
            evaluate_model(EvaluateModelConfig(workers=1, **config))
        assert "\n" not in str(told.value)


def _given(data: Path, n: int, *left_out: str) -> dict[str, Any]:
    read = {"reference": f"photo-{n}", "target": f"photo-{n + 1}", "parsing": f"parsing-{n}"}
    found: dict[str, Any] = {k: (data.parent / f"{v}.png").read_bytes() for k, v in read.items()}
    found["pose"] = persons.pose(n % 3 - 1)
    return {name: value for name, value in found.items() if name not in left_out}


def test_a_table_of_pairs_is_swapped_once(
    model: str, data: Path, pairs: Path, tmp_path: Path
) -> None:
    """With a pattern for each input, below a root; as the library swaps them."""
    moved = tmp_path / "pairs.csv"
    shutil.copy(pairs, moved)
    pattern = [f"{n}=photo-{{}}.png" for n in ("reference", "target")]
    flags = {"root": str(data.parent), "pattern": [*pattern, "parsing=parsing-{}.png"]}
    config = {"images": str(moved), "model": model, "output": str(tmp_path / "out"), **flags}
    sheet = str(tmp_path / "sheet.png")
    found = predict(PredictConfig(workers=1, max_rejected=1.0, contact_sheet=sheet, **config))
    assert (found.listed, found.done, found.rejected) == (4, 3, 1)
    table = pq.read_table(next((tmp_path / "out").glob("part-*.parquet"))).to_pylist()
    assert [row["id"] for row in table] == ["pair-0", "pair-1", "pair-3"]
    [refused] = [
        row
        for path in (tmp_path / "out").glob("rejected*")
        for row in pq.read_table(path).to_pylist()
    ]
    assert "pose: no shoulder" in str(refused)
    opened = imgray.open_model(model)
    for n, absent in ((0, []), (1, []), (3, ["parsing"])):
        painted = np.asarray(Image.open(tmp_path / f"out/pictures/pair-{n}.png"))
        assert painted.shape == (*persons.SIZE[::-1], 3)
        assert np.array_equal(opened.predict(**_given(data, n, *absent)).picture, painted)
    given = _given(data, 0)
    image = Image.open(io.BytesIO(given["parsing"]))
    for one in (image, np.asarray(image)):
        from_pixels = opened.predict(**given | {"parsing": one}).picture
        assert np.array_equal(from_pixels, opened.predict(**given).picture)
    with pytest.raises(UserError, match="parsing: uint8, 2 x 2 x 3; labels are expected"):
        opened.predict(**given | {"parsing": np.zeros((2, 2, 3), np.uint8)})
    assert predict(PredictConfig(workers=1, max_rejected=1.0, **config)).done == 3
    assert Layout.parse([], None, flags["pattern"]).patterns(["target"])["target"] == "photo-{}.png"


def test_the_service_takes_a_pose_as_json(model: str, data: Path) -> None:
    opened = imgray.open_model(model)

    def form(*left_out: str, **fields: str) -> dict[str, Any]:
        given = _given(data, 0, *left_out)
        pose = {"pose": json.dumps(given.pop("pose").tolist())} if "pose" in given else {}
        files = {name: ("x", value) for name, value in given.items()}
        return {"files": files, "data": {**pose, **fields}, "headers": {"Accept": "image/png"}}

    with inprocess.client({"clothes": model}) as client:
        for absent in ([], ["parsing"]):
            answer = client.post("/v1/models/clothes", **form(*absent))
            assert answer.status_code == 200, answer.text
            wanted = opened.predict(**_given(data, 0, *absent)).picture
            assert np.array_equal(np.asarray(Image.open(io.BytesIO(answer.content))), wanted)
        for fields, fault in (
            (form("pose"), "pose"), (form("target"), "target"),
            (form("pose", pose="[[1, 2"), "pose"),
            (form("pose", pose=json.dumps((persons.pose() * 0).tolist())), "no shoulder"),
        ):  # fmt: skip
            answer = client.post("/v1/models/clothes", **fields)
            assert answer.status_code == 422
            assert fault in answer.text
        body = client.get("/openapi.json").json()["paths"]["/v1/models/clothes"]["post"][
            "requestBody"
        ]
        assert "pose" in json.dumps(body)


def test_a_run_does_not_overwrite_its_parser(data: Path, tmp_path: Path) -> None:
    parser = _parser(data, tmp_path, persons.LABELS)
    with pytest.raises(UserError, match="which is read, lies there; choose another folder"):
        _train(_recipe(parser=parser), str(data), tmp_path, overwrite=True)
    assert read_manifest(Folder(parser), "model").about["task"].endswith("Segmentation")


def test_a_run_goes_on_without_its_parser_but_not_with_another(data: Path, tmp_path: Path) -> None:
    """Killed after its checkpoint; what it ends with is what it ends with unstopped."""
    given = _recipe(parser=_parser(data, tmp_path / "parser", persons.LABELS))
    whole = _train(given, str(data), tmp_path / "whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "save_model", _killed)
        with pytest.raises(KeyboardInterrupt):
            _train(given, str(data), tmp_path / "swap")
    shutil.rmtree(tmp_path / "parser")
    _parser(data, tmp_path / "parser", persons.LABELS, seed=1)
    with pytest.raises(UserError, match="other settings"):
        _train(given, str(data), tmp_path / "swap")
    shutil.rmtree(tmp_path / "parser")
    again = _train(given, str(data), tmp_path / "swap")
    assert Folder(again).read("model.safetensors") == Folder(whole).read("model.safetensors")
    assert _train(given, str(data), tmp_path / "swap") == again
    with pytest.raises(UserError, match=r"^settings.parser: "):
        _train(given, str(data), tmp_path / "anew")


def _killed(*args: Any) -> None:
    raise KeyboardInterrupt


def test_a_parser_finds_the_same_labels(data: Path, tmp_path: Path) -> None:
    other = _parser(data, tmp_path / "other", (*persons.LABELS[:3], "coat", "trousers"))
    with pytest.raises(UserError, match=r"others than the settings name: 'coat' for 'top'"):
        _train(_recipe(parser=other), str(data), tmp_path / "swap")
    swapper = _train(_recipe(), str(data), tmp_path / "plain")
    with pytest.raises(UserError, match="Swapping gives no class of each pixel"):
        _train(_recipe(parser=swapper), str(data), tmp_path / "swap")
