"""A translator from two folders of pictures to artifact, batch job, library and service."""

import io
from collections.abc import Iterator
from pathlib import Path

import inprocess
import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from conftest import S3, upload
from PIL import Image

import imgray
from imgray.artifacts.folder import Folder
from imgray.artifacts.manifest import read_manifest
from imgray.engine.evaluate_model import evaluate_model
from imgray.engine.predict import predict
from imgray.engine.settings import EvaluateModelConfig, PredictConfig, TrainConfig, VerifyConfig
from imgray.engine.train import train
from imgray.engine.verify import verify
from imgray.errors import UserError
from imgray.training.sheet import SAMPLES

SIZES = ((30, 20), (17, 41), (8, 8))


@pytest.fixture(scope="module", autouse=True)
def without_ray() -> Iterator[None]:
    with inprocess.jobs():
        yield


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Red pictures and blue ones."""
    folder = tmp_path_factory.mktemp("colours")
    for part, count in (("train", 6), ("val", 3)):
        for place, name in enumerate(("blue", "red")):
            (folder / part / name).mkdir(parents=True)
            for n in range(count):
                values = np.random.default_rng(n).integers(0, 256, (4, 4, 3), np.uint8)
                values[:, :, 2 * place] = 20
                picture = Image.fromarray(values).resize(SIZES[n % 3])
                picture.save(folder / part / name / f"{n}.png")
    return folder


@pytest.fixture(scope="module")
def model(data: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("translator")
    recipe = {
        "task": "imgray.synthesis.translation:Translation",
        "settings": {
            "width": 4, "blocks": 1, "judge_width": 4, "judge_layers": 1, "load": 20, "crop": 16,
            "stages": 2, "inner": True, "rate": 0.002, "paired": True,
        },
        "data": {"truth": "folders"}, "batch_size": 2, "steps": 30, "checkpoint_every": 1000,
    }  # fmt: skip
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    flags = {"recipe": str(folder / "recipe.yaml"), "data": str(data), "workers": "1"}
    return train(TrainConfig(output=str(folder / "model"), **flags)).output


def test_training_reports_and_draws(model: str, data: Path) -> None:
    manifest = read_manifest(Folder(model), "model")
    kinds = ("cycle", "apart", "ssim")
    assert {f"{kind}_{domain}" for kind in kinds for domain in ("blue", "red")} == set(
        manifest.about["metrics"]
    )
    with pytest.raises(UserError, match="--figure: evaluation of Translation draws none"):
        evaluate_model(
            EvaluateModelConfig(model=model, data=str(data), figure="figure.png", workers=1)
        )
    assert Image.open(io.BytesIO(Folder(model).read(SAMPLES))).width > 100
    config = EvaluateModelConfig(model=model, data=str(data), workers=1, set=["settings.kid=null"])
    scored = evaluate_model(config)
    assert scored.root == pytest.approx(manifest.about["metrics"], rel=1e-4)


def test_batch_job_library_and_service_agree(model: str, data: Path, tmp_path: Path) -> None:
    config = {"images": str(data / "val/blue"), "model": model, "output": str(tmp_path / "red")}
    found = predict(PredictConfig(workers=1, **config))
    assert (found.done, found.rejected) == (3, 0)
    opened = imgray.open_model(model)
    names = sorted(path.name for path in (data / "val/blue").iterdir())
    with inprocess.client({"colours": model}) as client:
        for name in names:
            encoded = (data / "val/blue" / name).read_bytes()
            painted = np.asarray(Image.open(tmp_path / f"red/pictures/{name}.png"))
            assert painted.shape[1::-1] == Image.open(io.BytesIO(encoded)).size
            there, back = (
                opened.predict(image=encoded, **to).picture for to in ({}, {"to": "blue"})
            )
            assert np.array_equal(there, painted)
            assert not np.array_equal(back, painted)
            answer = client.post("/v1/translate", files={"image": ("x", encoded)},
                                 headers={"Accept": "image/png"})  # fmt: skip
            assert answer.status_code == 200
            assert np.array_equal(np.asarray(Image.open(io.BytesIO(answer.content))), painted)
        for ask, status in (("model=colours&to=blue", 200), ("to=green", 422), ("model=b", 422)):
            found = client.post(f"/v1/translate?{ask}", files={"image": ("x", encoded)})
            assert found.status_code == status, found.text
        assert client.get("/openapi.json").json()["paths"]["/v1/translate"]["post"]["requestBody"]
        answer = client.post(
            "/v1/models/colours", files={"image": ("x", encoded)}, data={"to": "green"}
        )
        assert answer.status_code == 422
        assert "there are blue, red" in answer.text


def test_a_table_says_which_way(model: str, data: Path, tmp_path: Path) -> None:
    rows = [
        "id,image,to",
        "one,val/red/0.png,blue",
        "two,val/blue/0.png,red",
        "three,val/red/0.png,green",
    ]
    (data / "ways.csv").write_text("\n".join(rows) + "\n")
    config = {"images": str(data / "ways.csv"), "model": model, "output": str(tmp_path / "out")}
    found = predict(PredictConfig(workers=1, max_rejected=1.0, **config))
    assert (found.done, found.rejected) == (2, 1)
    parts = [pq.read_table(path) for path in sorted((tmp_path / "out").glob("part-*.parquet"))]
    assert {row["id"] for part in parts for row in part.to_pylist()} == {"one", "two"}


def test_a_table_in_s3_gives_the_pictures_of_a_folder(
    model: str, data: Path, s3: S3, tmp_path: Path
) -> None:
    for source, name in ((Path(model), "model"), (data / "val", "val")):
        upload(source, Folder(s3.uri(f"translating/{name}")))
    lines = ["id,image,to", *(f"from {n},blue/{n}.png,red" for n in range(3))]
    Folder(s3.uri("translating/val")).write("ways.csv", "\n".join(lines).encode())
    uris = {name: s3.uri(f"translating/{name}") for name in ("model", "out")}
    ways = s3.uri("translating/val/ways.csv")
    found = predict(PredictConfig(images=ways, model=uris["model"], output=uris["out"], workers=1))
    assert (found.done, found.rejected) == (3, 0)
    local = {"images": str(data / "val/blue"), "model": model, "output": str(tmp_path / "red")}
    predict(PredictConfig(workers=1, **local))
    for n in range(3):
        painted = Folder(uris["out"]).read(f"pictures/from {n}.png")
        assert painted == (tmp_path / f"red/pictures/{n}.png.png").read_bytes()


def test_pictures_may_be_kept_as_jpeg(model: str, data: Path, tmp_path: Path) -> None:
    config = {"images": str(data / "val/blue"), "model": model}
    for encode in ("png", "jpeg"):
        predict(PredictConfig(workers=1, output=str(tmp_path / encode), encode=encode, **config))
    checked = verify(VerifyConfig(artifacts=[str(tmp_path / "jpeg")])).artifacts[0]
    assert (checked.faults, checked.beside) == ([], [])
    [part] = (tmp_path / "jpeg").glob("part-*.parquet")
    for row in pq.read_table(part).to_pylist():
        assert row["picture"] == f"pictures/{row['id']}.jpeg"
        close = Image.open(tmp_path / "jpeg" / row["picture"])
        exact = np.asarray(Image.open(tmp_path / f"png/pictures/{row['id']}.png"), float)
        assert close.format == "JPEG"
        assert 0 < np.abs(np.asarray(close) - exact).mean() < 6
    with pytest.raises(UserError, match=r"of other settings \(encode: 'png' there"):
        predict(PredictConfig(workers=1, output=str(tmp_path / "png"), encode="jpeg", **config))


def test_longer_pictures_are_scaled_as_the_job_says(model: str, data: Path, tmp_path: Path) -> None:
    config = {"images": str(data / "val/blue"), "model": model, "output": str(tmp_path / "small")}
    assert predict(PredictConfig(workers=1, longest=32, **config)).done == 3
    painted = [Image.open(path) for path in (tmp_path / "small/pictures").iterdir()]
    assert {max(one.size) for one in painted} == {30, 32, 8}
