"""Trained networks as extractors: the features of a CFN from its model artifact to an index."""

import csv
import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from conftest import TinyNet
from PIL import Image
from torch import Tensor, nn
from trained import RECIPES, train, write

from imgray.artifacts.folder import Folder
from imgray.artifacts.manifest import read_file, read_manifest
from imgray.cli import run_job
from imgray.engine.evaluate_index import evaluate
from imgray.engine.extract import build_extractor, extract
from imgray.engine.index import build_index
from imgray.engine.search import SearchEngine, check_fingerprints
from imgray.engine.settings import EvaluateConfig, ExtractConfig, IndexConfig
from imgray.errors import UserError
from imgray.features.backbones import BackboneConfig, fingerprint
from imgray.features.columns import columns_of, from_table
from imgray.features.extractor import Extractor
from imgray.features.weights import Request, build, dump, load, parse_extractors, restore
from imgray.training.models import fingerprint_of, load_backbone, load_model

SIZE = 32
LAYERS = ["fused", "side1", "side2", "main", "stages.1"]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """URIs of models trained for some steps, by what sets them apart."""
    kinds: dict[str, dict[str, Any]] = {
        "cfn": {"steps": 10, "width": 0.25},
        "wider": {"steps": 2, "width": 0.15},
        "biased": {"steps": 2, "layout": "cfn7", "mean": (0.4, 0.5, 0.6), "rate": 0.001},
        "plain": {"steps": 2, "fusion": "none"},
        "masks": {"steps": 1},
        "edges": {"steps": 1},
    }
    folder = tmp_path_factory.mktemp("models")
    for name, changes in kinds.items():
        format = name if name in RECIPES else "folders"
        train(
            format, write(format, folder / f"{format} data"), Folder(str(folder / name)), **changes
        )
    return {name: str(folder / name) for name in kinds}


def _config(model: str, layers: list[str], **changes: Any) -> ExtractConfig:
    extractor = [f"cfn.{layer}" if layer else "cfn" for layer in layers]
    settings = {"images": "none", "output": "none", "weights": [f"cfn={model}"]}
    return ExtractConfig(**{**settings, "extractor": extractor, **changes})


def _run(extractor: Extractor, pictures: list[Path]) -> dict[str, np.ndarray]:
    return extractor.run([extractor.prepare(path.read_bytes()) for path in pictures])


def _pictures(photos: Path, count: int = 6) -> list[Path]:
    """PNG: a JPEG may be decoded at a part of its size."""
    return sorted(photos.glob("*.png"))[:count]


def _square(picture: Image.Image, size: int = SIZE, box: Any = None) -> np.ndarray:
    bicubic = Image.Resampling.BICUBIC
    return np.asarray(picture.resize((size, size), bicubic, box=box, reducing_gap=3.0))


def _opened(paths: list[Path]) -> list[Image.Image]:
    return [Image.open(path).convert("RGB") for path in paths]


def _branch(net: Any, maps: Tensor) -> Tensor:
    """A 1x1 convolution, normalisation if there is one, ReLU, and the mean over all pixels."""
    for layer in net[:-2]:
        maps = layer(maps)
    return maps.mean(dim=(2, 3))


@torch.no_grad()
def _by_hand(uri: str, squares: list[np.ndarray]) -> dict[str, Tensor]:
    """The layers of a cfn7 by the equations of chapter 2: vectors (B, K), and a map as it is."""
    model = load_model(uri)
    net: Any = model.learner.modules["net"]
    mean, std = (torch.tensor(getattr(model.task.settings, name)) for name in ("mean", "std"))
    images = (torch.from_numpy(np.stack(squares)) / 255 - mean) / std
    one = net.stages[0](images.permute(0, 3, 1, 2))
    two = net.stages[1](one)
    found = {
        "side1": _branch(net.side1, one),
        "side2": _branch(net.side2, two),
        "main": _branch(net.main, net.stages[2](two)),
    }
    local = net.fused[0]
    fused = sum(w * g for w, g in zip(local.weight, found.values(), strict=True))
    if local.bias is not None:
        fused = fused + local.bias
    else:
        norm = net.fused[1]
        spread = torch.sqrt(norm.running_var + norm.eps)
        fused = (fused - norm.running_mean) / spread * norm.weight + norm.bias
    return found | {"fused": fused.clamp(min=0), "stages.1": two.mean(dim=(2, 3)), "map": two}


def _least_cosine(one: np.ndarray, other: Any) -> float:
    """The least cosine between rows of (..., C), none of them zero."""
    a, b = torch.from_numpy(np.asarray(one)), torch.as_tensor(other)
    assert min(a.norm(dim=-1).min(), b.norm(dim=-1).min()) > 1e-4
    return float(nn.functional.cosine_similarity(a, b, dim=-1).min())


@pytest.mark.parametrize("kind", ["cfn", "biased"])
def test_layers_are_those_of_the_equations(models: Any, photos: Path, kind: str) -> None:
    paths = _pictures(photos)
    found = _run(build_extractor(_config(models[kind], LAYERS)), paths)
    expected = _by_hand(models[kind], [_square(picture) for picture in _opened(paths)])
    for layer in LAYERS:
        assert _least_cosine(found[f"cfn.{layer}"][:, 0], expected[layer]) >= 0.99999, layer
    assert np.abs(found["cfn.fused"][0] - found["cfn.fused"][1]).max() > 1e-3


@pytest.mark.parametrize(
    ("kind", "high"), [("cfn", "fused"), ("biased", "fused"), ("plain", "main")]
)
def test_high_is_what_is_classified_and_mid_the_middle_stage(
    models: Any, photos: Path, kind: str, high: str
) -> None:
    extractor = build_extractor(_config(models[kind], ["", "mid", high, "stages.1"]))
    found = _run(extractor, _pictures(photos))
    np.testing.assert_array_equal(found["cfn.high"], found[f"cfn.{high}"])
    np.testing.assert_array_equal(found["cfn.mid"], found["cfn.stages.1"])


def test_maps_are_pooled_over_regions_and_vectors_cut_from_the_picture(
    models: Any, photos: Path
) -> None:
    paths = _pictures(photos, 3)
    pooled = build_extractor(_config(models["cfn"], ["stages.1"], regions="pyramid"))
    squares = [_square(picture) for picture in _opened(paths)]
    maps = _by_hand(models["cfn"], squares)["map"]
    quarter = maps[:, :, : maps.shape[2] // 2, : maps.shape[3] // 2].mean(dim=(2, 3))
    vectors = _run(pooled, paths)["cfn.stages.1"]
    assert vectors.shape[1] == 14
    assert _least_cosine(vectors[:, 1], quarter) >= 0.99999
    settings = {"regions": "pyramid", "crop_regions": True}
    cropped = _run(build_extractor(_config(models["cfn"], ["fused"], **settings)), paths)
    quarters = [_square(p, box=(0, 0, p.width / 2, p.height / 2)) for p in _opened(paths)]
    for region, inputs in enumerate((squares, quarters)):
        expected = _by_hand(models["cfn"], inputs)["fused"]
        assert _least_cosine(cropped["cfn.fused"][:, region], expected) >= 0.99999


def test_the_input_has_the_side_of_training_or_the_one_wanted(models: Any, photos: Path) -> None:
    paths, request = _pictures(photos, 2), Request("cfn", ("high",), models["cfn"])
    assert load_backbone(request).config.size == SIZE
    found = _run(build_extractor(_config(models["cfn"], [""], size=48)), paths)
    expected = _by_hand(models["cfn"], [_square(p, 48) for p in _opened(paths)])["fused"]
    assert _least_cosine(found["cfn.high"][:, 0], expected) >= 0.99999


def test_a_source_is_a_file_or_a_model() -> None:
    names, sources = ["a", "b", "c"], ["a=s3://x/a.safetensors", "b=s3://x/model"]
    assert [r.trained for r in parse_extractors(names, sources)] == [False, True, False]


def test_a_fingerprint_without_arguments_is_that_of_earlier_artifacts() -> None:
    """The digest was computed by imgray before networks had arguments."""
    values = {"library": "timm", "net": "n", "layers": {"high": "a"}, "size": 64}
    config = BackboneConfig(**values, mean=(0, 0, 0), std=(1, 1, 1))
    state = {"weight": torch.arange(6.0).reshape(2, 3), "steps": torch.tensor(7)}
    known = "55e6e889402cf035588311ac8b5bee32507c5602a7aa09284c287b06e4548aec"
    assert fingerprint(config, state) == known
    assert fingerprint(config.model_copy(update={"arguments": {"width": 1.0}}), state) != known


def test_the_fingerprint_covers_architecture_preprocessing_and_tensors(models: Any) -> None:
    requests = {name: Request("n", ("high",), models[name]) for name in ("cfn", "plain", "biased")}
    nets = {name: load_backbone(request) for name, request in requests.items()}
    config, state = nets["cfn"].config, nets["cfn"].net.state_dict()
    assert config.arguments.keys() == {"layout", "classes", "fusion", "width"}
    changed = [
        {"arguments": config.arguments | {name: value}}
        for name, value in {"layout": "cfn7", "classes": 3, "fusion": "sum", "width": 1.0}.items()
    ]
    changed += [{"size": 33}, {"mean": (0.1, 0.5, 0.5)}, {"std": (1, 1, 1)}]
    prints = {fingerprint(config.model_copy(update=change), state) for change in changed}
    prints |= {net.config.fingerprint for net in nets.values()}
    touched = state | {"classifier.bias": state["classifier.bias"] + 1}
    prints |= {fingerprint(config, touched), load_backbone(requests["cfn"], 64).config.fingerprint}
    assert len(prints) == len(changed) + len(nets) + 2
    again = Request("another name", ("side1",), models["cfn"])
    assert load_backbone(again).config.fingerprint == config.fingerprint


def test_a_network_survives_its_artifact_without_its_model(models: Any) -> None:
    backbone = load_backbone(Request("cfn", ("high", "side1"), models["cfn"]))
    config = BackboneConfig.model_validate_json(backbone.config.model_dump_json())
    images = torch.randint(0, 256, (3, SIZE, SIZE, 3), dtype=torch.uint8)
    again = restore(config, dump(backbone))
    for layer, vectors in backbone(images).items():
        assert torch.equal(vectors, again(images)[layer])
    other = load_backbone(Request("cfn", ("high",), models["biased"]))
    with pytest.raises(UserError, match="these weights have fingerprint"):
        restore(other.config.model_copy(update={"fingerprint": config.fingerprint}), dump(other))


@pytest.mark.parametrize(
    ("net", "arguments", "reason"),
    [
        ("os:system", {"command": "true"}, "network 'os:system': module os is not trusted"),
        ("torch.nn:Linear", {"in_features": 1, "out_features": 1}, "torch.nn is not trusted"),
        ("imgray.features.weights:build", {}, "network .*: not a network"),
        ("imgray.gone:Net", {}, "No module named 'imgray.gone'; expected package.module:Class"),
        ("imgray.classification.cfn:FusionNet", {"depth": 9}, "unexpected keyword .* another ver"),
        ("imgray.classification.cfn:FusionNet", {"layout": "x", "classes": 2}, "no layout 'x'"),
    ],
)
def test_networks_that_cannot_be_built(net: str, arguments: Any, reason: str) -> None:
    config = BackboneConfig(
        library="imgray", net=net, arguments=arguments, layers={}, size=32, mean=(0,) * 3,
        std=(1,) * 3,
    )  # fmt: skip
    with pytest.raises(UserError, match=reason):
        build(config)


def _damaged(uri: str, folder: Path, name: str = "model.safetensors") -> str:
    copy = Path(shutil.copytree(uri, folder / "damaged"))
    data = bytearray((copy / name).read_bytes())
    data[-1] ^= 1
    (copy / name).write_bytes(bytes(data))
    return str(copy)


@pytest.mark.parametrize(
    ("source", "layers", "reason"),
    [
        (
            lambda m, t: f"{t}/none",
            ["fused"],
            "none: no artifact, no model of sentence-transformers",
        ),
        (lambda m, t: m["masks"], ["fused"], "a model of Segmentation gives no features"),
        (lambda m, t: m["edges"], ["fused"], "a model of EdgeDetection gives no features"),
        (lambda m, t: _damaged(m["cfn"], t), ["fused"], "content differs from the manifest"),
        (
            lambda m, t: _damaged(m["cfn"], t, "config.json"),
            ["fused"],
            "config.json: its content differs from the manifest",
        ),
        (lambda m, t: m["cfn"], ["side3"], "no layer 'side3'; choose among high, mid, stages.0"),
        (lambda m, t: m["plain"], ["fused"], "no layer 'fused'; choose among high, mid, stages.0"),
        (
            lambda m, t: m["cfn"] + "/model.safetensors",
            ["fused"],
            "a trained model needs --weights cfn=URI of its artifact",
        ),
    ],
)
def test_models_that_cannot_extract(
    models: Any, tmp_path: Path, source: Callable[..., str], layers: list[str], reason: str
) -> None:
    uri = source(models, tmp_path)
    (tmp_path / "a.jpg").write_bytes(b"")
    with pytest.raises(UserError) as error:
        extract(_config(uri, layers, images=str(tmp_path), output=str(tmp_path / "out")))
    assert reason in str(error.value)
    assert str(uri) in str(error.value) or uri.endswith(".safetensors")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_a_vector_has_no_regions_but_those_cut_from_the_picture(
    models: Any, tmp_path: Path
) -> None:
    (tmp_path / "a.jpg").write_bytes(b"")
    config = _config(
        models["cfn"], ["mid", "fused"], images=str(tmp_path), output=str(tmp_path / "out"),
        regions="pyramid",
    )  # fmt: skip
    with pytest.raises(UserError, match=r"fused: .* has no regions; use --crop-regions"):
        extract(config)
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def transferred(
    ray_cluster: None, models: Any, photos: Path, tiny_net: TinyNet, tmp_path_factory: Any
) -> tuple[str, str]:
    """Features and a 2-D index of a CFN and another network; the model is gone by now."""
    folder = tmp_path_factory.mktemp("transfer")
    model = shutil.copytree(models["cfn"], folder / "model")
    flags = ["--images", str(photos), "--output", str(folder / "features"), "--json"]
    flags += ["--extractor", "cfn", "cfn.side1", f"{tiny_net.name}.mid", "--regions", "pyramid"]
    flags += ["--weights", f"cfn={model}", tiny_net.weights, "--crop-regions", "--workers", "2"]
    assert run_job(ExtractConfig, extract, flags) == 0
    names = ["cfn", f"{tiny_net.name}.mid"]
    config = IndexConfig(
        features=str(folder / "features"), output=str(folder / "index"), feature=names,
        codewords=[6, 5], probes=[20, 8, 3], queries=4,
    )  # fmt: skip
    assert build_index(config).images == 40
    shutil.rmtree(model)
    return config.features, config.output


def _stored(uri: str, name: str) -> dict[str, np.ndarray]:
    folder = Folder(uri)
    manifest = read_manifest(folder, "features")
    found = {}
    for entry in manifest.named("part-"):
        table = pq.read_table(io.BytesIO(read_file(folder, entry)))
        rows = from_table(table, name, columns_of(manifest)[name])
        found |= dict(zip(table["id"].to_pylist(), rows, strict=True))
    return found


@pytest.mark.slow
def test_the_stored_features_are_the_models(transferred: Any, models: Any, photos: Path) -> None:
    for name, layer in (("cfn.high", "fused"), ("cfn.side1", "side1")):
        stored = _stored(transferred[0], name)
        assert len(stored) == 40
        paths = _pictures(photos, 40)
        found = np.stack([stored[path.name] for path in paths])[:, 0]
        expected = _by_hand(models["cfn"], [_square(p) for p in _opened(paths)])[layer]
        assert _least_cosine(found, expected) >= 0.9999
    manifest = read_manifest(Folder(transferred[0]), "features")
    model = read_manifest(Folder(models["cfn"]), "model")
    assert fingerprint_of(model) in manifest.made_from.values()
    assert list(manifest.config["models"].values()) == [fingerprint_of(model)]


@pytest.mark.slow
def test_an_index_of_a_model_answers_without_it(
    transferred: Any, photos: Path, tmp_path: Path
) -> None:
    features, index = transferred
    engine = SearchEngine(index)
    paths = _pictures(photos)
    ids = [path.relative_to(photos).as_posix() for path in paths]
    images = {id: path.read_bytes() for id, path in zip(ids, paths, strict=True)}
    found = [Path(hits.ids[0]).stem for hits in engine.search_images(images, 3)]
    assert found == [Path(id).stem for id in ids]  # itself, or another copy of the photograph
    truth = tmp_path / "truth.csv"
    with open(truth, "w", newline="") as file:
        rows = [(id, Path(id).stem) for id in _stored(features, "cfn.high")]
        csv.writer(file).writerows([("id", "group"), *rows])
    for queries in (features, str(photos)):
        scores = evaluate(EvaluateConfig(index=index, queries=queries, truth=str(truth))).root
        assert scores["queries"] == 40
        assert 0.3 < scores["map"] <= 1


@pytest.mark.slow
def test_features_of_another_model_are_refused(
    transferred: Any, models: Any, photos: Path, tiny_net: TinyNet
) -> None:
    settings: dict[str, Any] = {"regions": "pyramid", "crop_regions": True}
    settings["extractor"] = ["cfn", f"{tiny_net.name}.mid"]
    engine = SearchEngine(transferred[1])
    for kind, refused in (("cfn", False), ("wider", True), ("biased", True)):
        sources = [f"cfn={models[kind]}", tiny_net.weights]
        other = build_extractor(_config(models[kind], [], **settings, weights=sources))
        if refused:
            with pytest.raises(UserError, match=r"indexed cfn.high has fingerprint \w{12}, the qu"):
                check_fingerprints(engine.manifest, other.describe())
        else:
            check_fingerprints(engine.manifest, other.describe())
            assert len(engine.index.search(_run(other, _pictures(photos, 2)), 5)) == 2


@pytest.mark.slow
def test_a_model_trained_anew_at_its_place_is_another_setting(
    ray_cluster: None, models: Any, photos: Path, tmp_path: Path
) -> None:
    model = tmp_path / "model"
    shutil.copytree(models["cfn"], model)
    config = _config(str(model), [""], images=str(photos), output=str(tmp_path / "out"), workers=1)
    assert extract(config).done == 40
    assert extract(config).done == 40
    shutil.rmtree(model)
    shutil.copytree(models["plain"], model)
    with pytest.raises(UserError, match=r"an artifact of other settings \(models: "):
        extract(config)
    assert json.loads((tmp_path / "out" / "manifest.json").read_text())["counts"]["done"] == 40
    broken = _config(str(tmp_path / "out"), [""])
    with pytest.raises(UserError, match="no text encoder 'cfn'; its features are of pictures"):
        build_extractor(broken)


def test_a_net_of_a_library_keeps_its_configuration(tiny_net: TinyNet) -> None:
    config = load(Request(tiny_net.name, ("high",), str(tiny_net.path))).config
    assert config.arguments == {}
    old = {k: v for k, v in config.model_dump(mode="json").items() if k != "arguments"}
    assert BackboneConfig.model_validate(old) == config
