"""A translator from two folders of pictures to artifact, batch job, library and service."""

import io
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

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
from imgray.data import pixels
from imgray.data.pixels import Rejected
from imgray.engine.evaluate_model import evaluate_model
from imgray.engine.predict import predict
from imgray.engine.settings import EvaluateModelConfig, PredictConfig, TrainConfig, VerifyConfig
from imgray.engine.train import train
from imgray.engine.verify import verify
from imgray.errors import UserError
from imgray.serving.pace import Pace
from imgray.synthesis import strips, translator
from imgray.synthesis.translation import Translation
from imgray.training.models import load_model
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
        answer = client.post("/v1/translate?to=a%00b", files={"image": ("x", encoded)})
        said = "no 'a\\x00b'; there are blue, red"
        assert answer.json()["error"]["message"] == said, "escaped once"


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


def _noise(width: int, height: int, seed: int = 0) -> bytes:
    values = np.random.default_rng(seed).integers(0, 256, (height // 4, width // 4, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(values).resize((width, height), Image.Resampling.BILINEAR).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("most", "passes"), [(translator.TOGETHER, [1, 3]), (2 * 24 * 20 * 3 * 4, [1, 1, 2])]
)
def test_pictures_of_one_shape_go_through_together_as_they_would_alone(
    model: str, most: int, passes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Five of one shape, both ways, and one of another; two at once where memory says so."""
    opened = load_model(model)
    sizes = [(24, 20)] * 5 + [(20, 24)]
    records = [
        {"image": _noise(*size, seed=n), "to": "blue" if n % 3 == 1 else "red"}
        for n, size in enumerate(sizes)
    ]
    items = [opened.prepare(record) for record in records]
    alone = [opened.predict([item], "cpu")[0].picture for item in items]
    seen: list[int] = []
    first = opened.learner.modules["G1"]
    first.register_forward_pre_hook(lambda _, given: seen.append(len(given[0])))
    monkeypatch.setattr(translator, "TOGETHER", most)
    together = [one.picture for one in opened.predict(items, "cpu")]
    assert sorted(seen) == passes
    for one, other in zip(alone, together, strict=True):
        assert one is not None
        assert other is not None
        assert one.shape == other.shape
        assert np.abs(one.astype(int) - other).max() <= 1
    assert not np.array_equal(together[0], together[2])


def test_a_picture_comes_as_png_or_jpeg(model: str) -> None:
    with inprocess.client({"colours": model}) as client:
        for route in ("/v1/translate", "/v1/models/colours"):
            opened = {}
            for kind in ("image/png", "image/jpeg"):
                files = {"image": ("x", _noise(60, 40))}
                answer = client.post(route, files=files, headers={"Accept": kind})
                assert (answer.status_code, answer.headers["content-type"]) == (200, kind)
                picture = Image.open(io.BytesIO(answer.content))
                assert picture.format == kind.rpartition("/")[2].upper()
                opened[kind] = np.asarray(picture).astype(int)
            png, jpeg = opened.values()
            assert png.shape == jpeg.shape == (40, 60, 3)
            assert 0 < np.abs(png - jpeg).mean() < 4
        refused = client.post("/v1/translate", content=b"x", headers={"Accept": "image/gif"})
        assert refused.status_code == 406
        assert "image/png or image/jpeg" in refused.json()["error"]["message"]
        types = client.get("/openapi.json").json()["paths"]["/v1/translate"]["post"]["responses"]
        assert {"image/png", "image/jpeg"} < types["200"]["content"].keys()
        assert "406" in types
        [served] = client.get("/v1/models").json()["models"]
        assert served["longest"] == 1024
        own = client.get("/openapi.json").json()["paths"]["/v1/models/colours"]["post"]
        assert "longest" in {one["name"] for one in own["parameters"]}


def test_what_cannot_be_done_in_time_is_refused_beforehand(
    model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At 0.1 s for 1,000 pixels, of a request of 10 s."""
    pace = {"best": 1e-4, "lately": 1e-4}
    monkeypatch.setattr(Pace, "measured", lambda self, *_: vars(self).update(pace))
    with inprocess.client({"colours": model}, limits={"seconds": 10.0}) as client:
        large = {"image": ("x", _noise(600, 400))}
        for route in ("/v1/translate", "/v1/models/colours"):
            answer = client.post(route, files=large)
            assert answer.status_code == 422
            error = answer.json()["error"]
            assert error["field"] == "image"
            said = "600 x 400 pixels would take some 24 s, of 10 s that a request has; ask with "
            assert error["message"].startswith(said)
            way = error["message"].removeprefix(said)
            found = client.post(f"{route}?{way}", files=large)
            assert found.status_code == 200, found.text
        assert found.json()["outputs"]["picture"]["width"] == int(way.removeprefix("longest="))
        small = client.post("/v1/translate", files={"image": ("x", _noise(300, 200))})
        assert small.json()["width"] == 300
        longer = client.post("/v1/translate?longest=60000", files={"image": ("x", _noise(40, 20))})
        assert longer.json()["width"] == 40


def test_a_replica_knows_its_pace_as_it_starts(model: str) -> None:
    with inprocess.client({"colours": model}, limits={"seconds": 1e-6}) as client:
        answer = client.post("/v1/translate", files={"image": ("x", _noise(300, 200))})
        assert answer.status_code in (422, 504), answer.text


def test_what_does_not_end_in_time_is_refused_from_then_on(
    model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Strips that take far longer than the small picture that was measured at start."""
    write = strips.Maps.write

    def slow(self: strips.Maps, *rows: Any) -> None:
        time.sleep(0.01)
        write(self, *rows)

    monkeypatch.setattr(strips.Maps, "write", slow)
    monkeypatch.setattr(strips, "STRIP", 2**12)
    monkeypatch.setattr(translator, "WHOLE", 200 * 200 * 3 * 4)
    with inprocess.client({"colours": model}, limits={"seconds": 1.0}) as client:
        statuses = [504]
        while statuses[-1] == 504 and len(statuses) < 8:
            answer = client.post("/v1/translate", files={"image": ("x", _noise(300, 300))})
            statuses.append(answer.status_code)
            time.sleep(0.05)
        assert len(statuses) > 2, "the first was tried"
        assert statuses[-1] in (422, 503), statuses


def test_a_model_that_refuses_the_probe_is_served(
    model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare, refuse = Translation.prepare, [True]

    def prepared(self: Translation, values: Any) -> Any:
        if refuse:
            raise Rejected(f"no noise please {refuse.pop()}")
        return prepare(self, values)

    monkeypatch.setattr(Translation, "prepare", prepared)
    with inprocess.client({"colours": model}) as client:
        answer = client.post("/v1/translate", files={"image": ("x", _noise(30, 20))})
        assert answer.status_code == 200, answer.text


def test_no_room_names_no_folder_of_the_server(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with inprocess.client({"colours": model}) as client:
        monkeypatch.setattr(translator, "WHOLE", 0)
        monkeypatch.setattr(tempfile, "tempdir", "/nonexistent")
        answer = client.post("/v1/translate", content=_noise(30, 20))
        assert answer.status_code == 503
        assert answer.json()["error"]["message"] == "no room for work; come again"


def test_what_is_no_picture_is_none_for_service_job_and_library(
    model: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(translator, "to_range", lambda pixels: pixels.permute(0, 3, 1, 2) * np.nan)
    with inprocess.client({"colours": model}) as client:
        answer = client.post("/v1/translate", content=_noise(30, 20))
        assert answer.status_code == 422
        assert "numbers that are not finite" in answer.json()["error"]["message"]
    config = {"images": str(data / "val/blue"), "model": model, "output": str(tmp_path / "out")}
    found = predict(PredictConfig(workers=1, max_rejected=1.0, **config))
    assert (found.done, found.rejected) == (0, 3)
    with pytest.raises(UserError, match="numbers that are not finite"):
        imgray.open_model(model).predict(image=_noise(30, 20))


def test_a_side_that_no_jpeg_has_is_refused(
    model: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pixels, "JPEG_SIDE", 25)
    said = "30 x 20 pixels; a JPEG has 25 a side, use png"
    with inprocess.client({"colours": model}) as client:
        jpeg = {"Accept": "image/jpeg"}
        answer = client.post("/v1/translate", content=_noise(30, 20), headers=jpeg)
        assert (answer.status_code, answer.json()["error"]["message"]) == (422, said)
    config = {"images": str(data / "val/blue"), "model": model, "output": str(tmp_path / "out")}
    found = predict(PredictConfig(workers=1, max_rejected=1.0, encode="jpeg", **config))
    assert (found.done, found.rejected) == (1, 2)


def test_libjpeg_ends_where_we_say() -> None:
    side = pixels.JPEG_SIDE
    assert pixels.encoded(np.zeros((8, side, 3), np.uint8), "jpeg")
    with pytest.raises(Rejected, match=f"{side + 1} x 8 pixels"):
        pixels.encoded(np.zeros((8, side + 1, 3), np.uint8), "jpeg")
