"""An index with a joint part: built in one pass, searched with words, with pictures, with both."""

import csv
import itertools
import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import inprocess
import knowing
import numpy as np
import pytest
from conftest import TinyNet
from duals import write_dual, write_open_clip
from numpy.typing import NDArray
from stopped import stopped_at

import imgray
import imgray.engine.index as engine
import imgray.training.joint
from imgray.artifacts.folder import Folder
from imgray.artifacts.manifest import Manifest, publish, read_file, read_manifest
from imgray.cli import run_job
from imgray.engine.build import fit_part
from imgray.engine.evaluate_index import evaluate
from imgray.engine.extract import extract
from imgray.engine.fan_out import search_shards
from imgray.engine.index import IndexResult, build_index
from imgray.engine.joint import as_vectors, default_probes, joint_settings
from imgray.engine.report import Report
from imgray.engine.rows import Source
from imgray.engine.search import SearchEngine, SearchResult, encode, search
from imgray.engine.settings import (
    EvaluateConfig,
    ExtractConfig,
    IndexConfig,
    SearchConfig,
    VerifyConfig,
)
from imgray.engine.shards import open_parts
from imgray.engine.verify import verify
from imgray.errors import UserError
from imgray.features.columns import Vectors, columns_of
from imgray.features.extractor import load_texts
from imgray.retrieval.codebook import Codebooks, unit
from imgray.retrieval.deepindex import Hits
from imgray.retrieval.modalities import Blend

SHARDS = (1, 3)
FIXED = {"report.json", "manifest.json"}


@pytest.fixture(scope="module", autouse=True)
def without_ray() -> Iterator[None]:
    with inprocess.jobs(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(imgray.training.joint, "load_joint", knowing.load)
        yield


@dataclass(frozen=True)
class Made:
    """Photographs, their features, and a model that knows which of them a text means."""

    photos: Path
    features: str
    model: str
    net: str
    ids: list[str]
    vectors: Vectors

    def texts(self, *numbers: int) -> list[str]:
        return [f"{number} is what {self.ids[number]} shows" for number in numbers]

    def config(self, output: Path | str, **changes: Any) -> IndexConfig:
        values: dict[str, Any] = {
            "features": self.features, "output": str(output), "feature": [f"{self.net}.mid"],
            "codewords": [6], "probes": [4, 2, 1], "queries": 7, "joint": self.model,
            "joint_codewords": 5, "joint_probes": 4,
        }  # fmt: skip
        return IndexConfig(**values | changes)


@pytest.fixture(scope="module")
def made(photos: Path, tiny_net: TinyNet, tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("made")
    features, model = str(folder / "features"), str(folder / "model")
    config = ExtractConfig(
        images=str(photos), output=features, size=tiny_net.size, regions="pyramid", shard_size=24,
        extractor=[f"{tiny_net.name}.{layer}" for layer in ("mid", "high")],
        weights=[tiny_net.weights],
    )  # fmt: skip
    extract(config)
    manifest = read_manifest(Folder(features), "features")
    columns = columns_of(manifest)
    source = Source(Folder(features), manifest, list(columns), [])
    ids, vectors = source.pick(np.arange(source.rows))
    knowing.write(model, {f"{tiny_net.name}.high": columns[f"{tiny_net.name}.high"]}, vectors)
    return Made(photos, features, model, tiny_net.name, ids, vectors)


@pytest.fixture(scope="module")
def indexes(made: Made, tmp_path_factory: pytest.TempPathFactory) -> dict[int, str]:
    """The same in one shard and in three."""
    found = {n: str(tmp_path_factory.mktemp("index") / f"{n} shards") for n in SHARDS}
    for shards, output in found.items():
        assert build_index(made.config(output, shards=shards)).shards == shards
    return found


@pytest.fixture(scope="module")
def plain(made: Made, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The same without a joint part."""
    output = str(tmp_path_factory.mktemp("plain") / "index")
    without = {"joint": None, "joint_codewords": None, "joint_probes": None}
    build_index(made.config(output, shards=3, **without))
    return output


@pytest.fixture(scope="module")
def opened(indexes: dict[int, str]) -> dict[int, SearchEngine]:
    return {shards: SearchEngine(uri) for shards, uri in indexes.items()}


def _manifest(output: Path | str) -> Manifest:
    return read_manifest(Folder(str(output)), "index")


def _files(folder: Path | str) -> dict[str, bytes]:
    paths = [path for path in Path(folder).rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def _photo(made: Made, number: int) -> bytes:
    return (made.photos / made.ids[number]).read_bytes()


def _held_out(config: IndexConfig) -> NDArray[np.int64]:
    folder = Folder(config.features)
    source = Source(folder, read_manifest(folder, "features"), config.feature, [])
    return engine._split(source, config)[0]


def _same(one: Hits, other: Hits) -> None:
    assert (one.ids, one.touched) == (other.ids, other.touched)
    np.testing.assert_array_equal(one.positions, other.positions)
    np.testing.assert_array_equal(one.scores, other.scores)


# --- what is built ----------------------------------------------------------------------------


@pytest.mark.parametrize("shards", SHARDS)
def test_the_joint_part_lies_beside_the_other_and_ids_are_stored_once(
    indexes: dict[int, str], plain: str, made: Made, shards: int
) -> None:
    manifest, files = _manifest(indexes[shards]), _files(indexes[shards])
    assert {entry.name for entry in manifest.files} == files.keys() - {"manifest.json"}
    parts = [f"shard-{n:05d}.faiss" for n in range(shards)]
    assert {name for name in files if name.startswith("joint/")} == {
        *(f"joint/{name}" for name in ("codebooks.safetensors", "frequency.safetensors", *parts)),
        *(f"joint/model/{name}" for name in ("manifest.json", knowing.WEIGHTS)),
        "joint/model/carried/text/words.json",
    }
    assert manifest.about["joint"] == {
        "model": made.model, "fingerprint": "print 0", "dim": knowing.DIM
    }  # fmt: skip
    model = read_manifest(Folder(made.model), "model")
    assert manifest.made_from[made.model] == model.digest
    if shards == 3:  # all else is as it would be without
        bare = _files(plain)
        assert {n: files[n] for n in bare.keys() - FIXED} == {
            n: bare[n] for n in bare.keys() - FIXED
        }
        assert "joint" not in _manifest(plain).about
    assert all(
        not one.faults for one in verify(VerifyConfig(artifacts=[indexes[shards]])).artifacts
    )


def test_its_words_and_frequencies_do_not_depend_on_the_shards(indexes: dict[int, str]) -> None:
    one, three = (_files(uri) for uri in indexes.values())
    for name in ("joint/codebooks.safetensors", "joint/frequency.safetensors"):
        assert one[name] == three[name]


def test_a_text_ranks_by_the_dot_product_with_every_picture(
    opened: dict[int, SearchEngine], indexes: dict[int, str], made: Made, tmp_path: Path
) -> None:
    """Up to the code; all lists are visited."""
    every = str(tmp_path / "every")
    build_index(made.config(every, shards=3, joint_probes=5))
    joint, held_out = knowing.load(made.model), _held_out(made.config(every))
    pictures, asked = joint.pictures(made.vectors), made.texts(*range(0, 40, 3))
    for text, hits in zip(asked, SearchEngine(every).search_texts(asked, 40), strict=True):
        exact = pictures @ joint.texts([text])[0]
        assert sorted(hits.ids) == sorted(made.ids)
        known = ~np.isin(hits.positions, held_out)  # the others may lie beyond the code's range
        away = np.abs(hits.scores - exact[hits.positions])
        assert away[known].max() < 0.01
        assert [made.ids[n] for n in hits.positions] == hits.ids
        assert hits.scores.tolist() == sorted(hits.scores, reverse=True)
    found = [hits.ids[0] for hits in opened[3].search_texts(asked, 1)]
    assert (
        np.mean([made.ids[int(t.split()[0])] == id for t, id in zip(asked, found, strict=True)])
        > 0.5
    )


def test_texts_rank_alike_in_any_number_of_shards(
    opened: dict[int, SearchEngine], indexes: dict[int, str], made: Made
) -> None:
    asked = made.texts(0, 7, 13, 39)
    vectors = as_vectors(knowing.load(made.model).texts(asked))
    for top, prefix in itertools.product((1, 5, 40), ("", "a/")):
        one, three = (o.search_texts(asked, top, prefix) for o in opened.values())
        for a, b in zip(one, three, strict=True):
            _same(a, b)
            assert all(id.startswith(prefix) for id in a.ids)
    for uri in indexes.values():
        fanned = search_shards(Folder(uri), _manifest(uri), vectors, 40, "text")
        for a, b in zip(fanned, opened[1].search_texts(asked, 40), strict=True):
            _same(a, b)


def test_some_shards_can_be_opened_alone(indexes: dict[int, str], made: Made) -> None:
    folder, manifest = Folder(indexes[3]), _manifest(indexes[3])
    parts = open_parts(folder, manifest, [1])
    assert parts.keys() == {"image", "text"}
    assert parts["text"].shards[0].images is parts["image"].shards[0].images
    assert [shard.offset for shard in parts["text"].shards] == [16]
    assert open_parts(folder, manifest, None, ["text"]).keys() == {"text"}


# --- questions --------------------------------------------------------------------------------


def _fused(
    lists: Mapping[str, Hits], weights: Mapping[str, float], fusion: str, top: int
) -> list[tuple[int, float]]:
    """By the definition, in loops: min-max of what a list has, 0 for what it lacks."""
    scaled: dict[str, dict[int, float]] = {}
    for name, hits in lists.items():
        low, high = min(hits.scores), max(hits.scores)
        pairs = zip(hits.positions.tolist(), hits.scores.tolist(), strict=True)
        scaled[name] = {position: (score - low) / (high - low) for position, score in pairs}
    candidates = sorted({position for one in scaled.values() for position in one})
    shares = dict(weights)
    if fusion == "adaptive":
        for name, one in scaled.items():
            shares[name] /= sum(one.values()) / len(candidates)
    total = sum(shares.values())
    scores = {
        c: sum(shares[name] / total * one.get(c, 0) for name, one in scaled.items())
        for c in candidates
    }
    return sorted(scores.items(), key=lambda item: (-item[1], item[0]))[:top]


@pytest.mark.parametrize("fusion", ["average", "adaptive"])
@pytest.mark.parametrize("weights", [{}, {"image": 3.0}, {"text": 0.2, "image": 1.0}])
def test_an_image_and_a_text_are_fused_by_definition(
    opened: dict[int, SearchEngine], made: Made, fusion: Any, weights: dict[str, float]
) -> None:
    for image, number, top in ((0, 0, 5), (3, 20, 10), (30, 1, 40)):
        [text] = made.texts(number)
        blend, photo = Blend(weights, fusion), _photo(made, image)
        found = [o.search(photo, text, top=top, blend=blend) for o in opened.values()]
        _same(*found)
        lists = {
            "image": opened[1].search_images({"": photo}, 400)[0],
            "text": opened[1].search_texts([text], 400)[0],
        }
        expected = _fused(lists, {"image": 1.0, "text": 1.0} | weights, fusion, top)
        pairs = list(zip(found[0].positions.tolist(), found[0].scores.tolist(), strict=True))
        assert [round(score, 9) for _, score in pairs] == [round(s, 9) for _, s in expected]
        assert {p for p, _ in pairs} == {p for p, _ in expected} or top < 40
        assert [made.ids[position] for position, _ in pairs] == found[0].ids
        assert found[0].touched == sum(hits.touched for hits in lists.values())


def test_one_modality_keeps_the_scores_that_it_has_alone(
    opened: dict[int, SearchEngine], made: Made
) -> None:
    photo, [text] = _photo(made, 4), made.texts(9)
    one = opened[3]
    [image], [by_text] = one.search_images({"": photo}, 6), one.search_texts([text], 6)
    for blend in (Blend(), Blend({"text": 0}), Blend({"text": 0}, "adaptive")):
        _same(one.search(photo, None if not blend.weights else text, top=6, blend=blend), image)
    for given in (None, photo):
        _same(one.search(given, text, top=6, blend=Blend({"image": 0} if given else {})), by_text)


def test_a_prefix_holds_in_a_question_of_both(opened: dict[int, SearchEngine], made: Made) -> None:
    photo, [text] = _photo(made, 4), made.texts(9)
    found = opened[3].search(photo, text, top=40, prefix="b/")
    assert found.ids
    assert all(id.startswith("b/") for id in found.ids)
    assert opened[3].search(photo, text, prefix="nowhere/").ids == []


@pytest.mark.parametrize(
    ("asked", "reason"),
    [
        ({}, "an image, a text, or both"),
        ({"text": ""}, "text: an empty text"),
        ({"text": " \n"}, "text: an empty text"),
        ({"text": "a" * 10_001}, "text: a text of 10,001 characters; at most 10,000"),
        ({"text": "7 \ud800"}, "text: a text with half of a surrogate pair"),
        ({"text": "7", "blend": Blend({"text": 0})}, "text have weight 0"),
        ({"text": "7", "blend": Blend({"sound": 1})}, "modality 'sound': there are image and text"),
        ({"text": "7", "blend": Blend({"image": -1})}, "weight of image: -1"),
        ({"text": "7", "blend": Blend({"text": float("nan")})}, "weight of text: nan"),
        ({"text": "7", "image": b"none"}, "image: not a readable"),
    ],
)
def test_a_wrong_question_is_one_line(
    opened: dict[int, SearchEngine], asked: dict[str, Any], reason: str
) -> None:
    with pytest.raises(UserError, match=reason):
        opened[1].search(**asked)


def test_an_index_of_pictures_refuses_words_and_says_how_to_make_one(
    plain: str, made: Made, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UserError, match="knows pictures alone, no words; make one with imgray ind"):
        SearchEngine(plain).search(_photo(made, 0), "7")
    assert run_job(SearchConfig, search, ["--index", plain, "--text", "7 dogs"]) == 2
    out, err = capsys.readouterr()
    assert err.count("\n") == 1
    assert "--joint MODEL" in err
    assert out == ""


# --- the command and the library --------------------------------------------------------------


def _answers(flags: Sequence[str], capsys: pytest.CaptureFixture[str]) -> SearchResult:
    assert run_job(SearchConfig, search, [*flags, "--json"]) == 0
    return SearchResult.model_validate(json.loads(capsys.readouterr().out))


def test_the_command_takes_words_images_and_both(
    opened: dict[int, SearchEngine], indexes: dict[int, str], made: Made, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    texts, photos = made.texts(3, 8), [str(made.photos / made.ids[n]) for n in (1, 2)]
    flags, sheet = ["--index", indexes[3], "--top", "4"], tmp_path / "sheet.png"
    found = _answers([*flags, "--text", *texts, "--contact-sheet", str(sheet)], capsys)
    assert [answer.query for answer in found.answers] == texts
    for answer, hits in zip(found.answers, opened[3].search_texts(texts, 4), strict=True):
        assert answer.results == hits.results()
    assert sheet.stat().st_size > 10_000
    found = _answers([*flags, "--text", *texts, "--query", *photos], capsys)
    assert [answer.query for answer in found.answers] == [*photos, *texts]
    both = [*flags, "--text", texts[0], "--query", photos[0], "--fusion", "adaptive"]
    found = _answers([*both, "--modalities", "image=0.5", "text=2"], capsys)
    hits = opened[3].search(
        Path(photos[0]).read_bytes(), texts[0], top=4,
        blend=Blend({"image": 0.5, "text": 2}, "adaptive"),
    )  # fmt: skip
    [answer] = found.answers
    assert answer.query == f"{photos[0]} + {texts[0]}"
    assert answer.results == hits.results()


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        ([], "say --query IMAGE, --text WORDS, or both"),
        (["--text", ""], "text: an empty text"),
        (["--text", "7", "--modalities", "text"], "--modalities text: expected NAME=WEIGHT"),
        (["--text", "7", "--modalities", "text=x"], "--modalities text=x: expected a number"),
        (["--text", "7", "--modalities", "text=0"], "text have weight 0"),
    ],
)
def test_wrong_flags_are_one_line(
    indexes: dict[int, str], flags: list[str], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_job(SearchConfig, search, ["--index", indexes[1], *flags]) == 2
    out, err = capsys.readouterr()
    [line] = err.splitlines()
    assert line.startswith("error: ")
    assert reason in line
    assert out == ""


def test_the_library_answers_as_the_engine(
    opened: dict[int, SearchEngine], indexes: dict[int, str], made: Made
) -> None:
    index, photo, [text] = imgray.open_index(indexes[3]), _photo(made, 5), made.texts(6)
    assert index.search(text=text, top=3) == opened[3].search(text=text, top=3).results()
    both = opened[3].search(photo, text, blend=Blend({"image": 2}, "adaptive")).results()
    given = {"modalities": {"image": 2}, "fusion": "adaptive"}
    assert index.search(photo, text, **given) == both  # type: ignore[arg-type]
    assert index.search(id=made.ids[5], text=text, **given) == both  # type: ignore[arg-type]
    for asked, reason in (
        ({}, "takes an image or an id"),
        ({"image": photo, "id": "a", "text": text}, "takes an image or an id"),
        ({"text": text, "fusion": "sum"}, "fusion='sum': expected average or adaptive"),
        ({"text": text, "top": 0}, "top=0"),
    ):
        with pytest.raises(UserError, match=reason):
            index.search(**asked)  # type: ignore[arg-type]


# --- what is refused when it is built ---------------------------------------------------------


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
    assert not _files(tmp_path / "index")


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
        assert not _files(tmp_path / "index")


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
    assert not _files(tmp_path / "index")


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
    assert _manifest(tmp_path / "index").about["joint"]["fingerprint"] == "print 1"


# --- damage, interruption, recall -------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "joint/codebooks.safetensors", "joint/frequency.safetensors", "joint/shard-00001.faiss",
        "joint/model/manifest.json", f"joint/model/{knowing.WEIGHTS}",
    ],
)  # fmt: skip
def test_no_answer_comes_from_a_damaged_file(
    indexes: dict[int, str], tmp_path: Path, name: str
) -> None:
    copy = Path(shutil.copytree(indexes[3], tmp_path / "copy"))
    data = bytearray((copy / name).read_bytes())
    data[len(data) // 2] ^= 8
    (copy / name).write_bytes(data)
    with pytest.raises(UserError, match=Path(name).name):
        SearchEngine(str(copy)).search(text="7")


def test_another_model_put_in_its_place_is_noticed(
    indexes: dict[int, str], made: Made, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(indexes[1], tmp_path / "copy"))
    knowing.write(str(copy / "joint/model"), knowing.load(made.model).columns, made.vectors, seed=1)
    with pytest.raises(UserError, match=r"manifest\.json: its content differs"):
        SearchEngine(str(copy)).search(text="7")


@pytest.fixture
def interrupted(made: Made, tmp_path: Path) -> Path:
    """A build that ended after its shards, with some notes and files of either part lost."""
    output = tmp_path / "index"
    with stopped_at(engine, "measure"):
        build_index(made.config(output, shards=3))
    for note in ("joint/shard-00000", "shard-00001"):
        (output / f"_work/{note}.json").unlink()
    (output / "joint/shard-00000.faiss").write_bytes(b"half")
    (output / "shard-00001.parquet").unlink()
    return output


@pytest.mark.parametrize("probes", [4, 2])
def test_an_interrupted_build_goes_on_also_with_other_probes(
    interrupted: Path, made: Made, tmp_path: Path, probes: int
) -> None:
    kept = ["shard-00000.faiss", "joint/shard-00001.faiss", "joint/shard-00002.faiss"]
    before = [(interrupted / name).stat().st_mtime_ns for name in kept]
    changes = {"shards": 3, "joint_probes": probes, "probes": [probes, 1, 1]}
    build_index(made.config(interrupted, **changes))
    build_index(made.config(tmp_path / "fresh", **changes))
    assert [(interrupted / name).stat().st_mtime_ns for name in kept] == before
    found, fresh = _files(interrupted), _files(tmp_path / "fresh")
    assert found.keys() == fresh.keys()
    for name in found.keys() - FIXED:
        assert found[name] == fresh[name], name


@pytest.fixture(scope="module")
def table(made: Made, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Two captions for each photograph, of which every fourth is of the part `val`."""
    path = tmp_path_factory.mktemp("table") / "captions.csv"
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "split", "caption"])
        for number, id in enumerate(made.ids):
            split = "train" if number % 4 else "val"
            writer.writerow([id, split, f"{number} is what it shows"])
            writer.writerow([id, split, f"{number} again"])
        writer.writerow(["not there.jpg", "val", "0 of another collection"])
    return str(path)


def _recall(exact: np.ndarray, found: Sequence[Hits], own: Sequence[int], k: int) -> float:
    shares = []
    for scores, hits, row in zip(exact, found, own, strict=True):
        order = [n for n in np.argsort(-scores, kind="stable").tolist() if n != row][:k]
        have = [n for n in hits.positions.tolist() if n != row][:k]
        shares.append(len(set(order) & set(have)) / len(order))
    return float(np.mean(shares))


def test_the_report_measures_each_modality(made: Made, table: str, tmp_path: Path) -> None:
    output, texts = str(tmp_path / "index"), f"{table}#caption"
    config = made.config(output, shards=3, joint_probes=2, text_queries=texts)
    result = build_index(config)
    report = Report.model_validate_json((tmp_path / "index/report.json").read_bytes())
    assert report.modalities.keys() == {"image", "text"}
    assert report.modalities["image"].recall == report.recall == result.recall
    assert IndexResult.model_validate(result.model_dump()) == result
    assert "against exact search, text: recall@1 " in str(result)
    joint, one = knowing.load(made.model), SearchEngine(output)
    pictures = joint.pictures(made.vectors)
    held_out = _held_out(config).tolist()
    vectors = as_vectors(pictures[held_out])
    hits = one.parts["text"].search(vectors, 101)
    assert report.joint is not None
    assert report.joint.queries == len(held_out)
    for name, value in report.joint.recall.items():
        exact = pictures[held_out] @ pictures.T
        assert value == pytest.approx(_recall(exact, hits, held_out, int(name[7:])), abs=1e-4)
    with open(table) as file:
        captions = [row["caption"] for row in csv.DictReader(file)]
    rows = np.random.default_rng([0, 2]).permutation(len(captions))[:7]
    asked = [captions[row] for row in sorted(rows.tolist())]
    found, measured = one.search_texts(asked, 101), report.modalities["text"]
    assert measured.queries == 7
    for name, value in measured.recall.items():
        exact = joint.texts(asked) @ pictures.T
        assert value == pytest.approx(_recall(exact, found, [-1] * 7, int(name[7:])), abs=1e-4)
    touched = np.mean([hit.touched for hit in found]) / 40
    assert measured.postings_touched == pytest.approx(touched)
    sizes = [len(d) for n, d in _files(output).items() if n.startswith(("shard-", "joint/shard-"))]
    assert report.bytes_per_image == pytest.approx(sum(sizes) / 40)


def test_without_texts_none_is_measured(indexes: dict[int, str]) -> None:
    report = Report.model_validate_json(Path(indexes[1], "report.json").read_bytes())
    assert report.modalities.keys() == {"image"}
    assert report.joint is not None


def test_below_the_least_recall_nothing_is_published_and_the_work_is_kept(
    made: Made, table: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = {"shards": 2, "text_queries": f"{table}#caption", "joint_probes": 1, "queries": 30}
    least = {"min_recall": ["text=.95", "image=0"]}
    with pytest.raises(UserError, match=r"--min-recall text=0.95: recall@10 against exact search"):
        build_index(made.config(tmp_path / "index", **base, **least))
    assert not (tmp_path / "index/manifest.json").exists()
    shard = tmp_path / "index/joint/shard-00000.faiss"
    before = shard.stat().st_mtime_ns
    more = base | {"joint_probes": 5}
    result = build_index(made.config(tmp_path / "index", **more, **least))
    assert result.modalities["text"].recall["recall@10"] >= 0.95
    assert shard.stat().st_mtime_ns == before
    with pytest.raises(UserError, match=r"image=1: .* it is published; build another"):
        build_index(made.config(tmp_path / "index", **more, min_recall=["image=1"]))


@pytest.mark.parametrize(
    ("words", "probes"), [(1, 1), (64, 64), (128, 128), (512, 256), (2048, 512), (4096, 724)]
)
def test_default_probes_fall_as_a_share(words: int, probes: int) -> None:
    assert default_probes(words) == probes


def test_texts_to_measure_with_are_those_that_can_be_read(made: Made, tmp_path: Path) -> None:
    path = tmp_path / "texts.csv"
    path.write_text("text\n" + "".join(f'"{t}"\n' for t in [*made.texts(1, 2, 3), " ", "", "  "]))
    output = str(tmp_path / "index")
    found = build_index(made.config(output, text_queries=str(path), queries=6))
    assert found.modalities["text"].queries == 3
    path.write_text('text\n" "\n')
    with pytest.raises(UserError, match=r"--text-queries .*: the model can read none of them"):
        build_index(made.config(tmp_path / "other", text_queries=str(path)))


def test_only_a_model_or_features_have_a_joint_embedding(
    made: Made, indexes: dict[int, str], tmp_path: Path
) -> None:
    for uri, reason in (
        (indexes[1], f"--joint {indexes[1]}: an artifact of kind 'index'; expected a model"),
        (made.features, f"{made.features}: features of images by one dual encoder are needed"),
    ):
        with pytest.raises(UserError, match=reason):
            build_index(made.config(tmp_path / "index", joint=uri))
        assert not _files(tmp_path / "index")


@pytest.mark.parametrize(("before", "write"), [(False, 0), (False, 1), (False, 2), (True, 0)])
def test_what_is_trained_outlives_a_kill_and_other_probes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: bool, write: int
) -> None:
    class Images:
        def rows(self, source: Any, rows: Any) -> NDArray[np.float32]:
            return unit(np.random.default_rng(0).normal(size=(60, 8)))

    def fitted(probes: int) -> Codebooks:
        given = joint_settings(config, 4, 8).model_copy(update={"probes": (probes,)})
        part = fit_part(None, output, given, np.arange(60), "joint/", Images())  # type: ignore[arg-type]
        return Codebooks.from_bytes(read_file(output, part.codebooks))

    config = IndexConfig(features="f", output="o", feature=["x"], joint="m")
    output, real, count = Folder(str(tmp_path)), Folder.write, itertools.count()
    if before:
        fitted(2)

    def killed(self: Folder, name: str, data: bytes) -> None:
        if next(count) == write:
            raise KeyboardInterrupt
        real(self, name, data)

    monkeypatch.setattr(Folder, "write", killed)
    with pytest.raises(KeyboardInterrupt):
        fitted(3)
    monkeypatch.setattr(Folder, "write", real)
    found = [fitted(probes) for probes in (2, 4, 3)]
    assert [one.settings.probes for one in found] == [(2,), (4,), (3,)]
    for one in found[1:]:
        np.testing.assert_array_equal(one.words["joint"], found[0].words["joint"])


# --- evaluation -------------------------------------------------------------------------------


def _expected(hits: Sequence[Hits], rights: Sequence[set[str]], top: int) -> dict[str, float]:
    ranks, precisions = [], []
    for one, right in zip(hits, rights, strict=True):
        places = [n for n, id in enumerate(one.ids[:top], 1) if id in right]
        ranks.append(places[0] if places else len(one.ids[:top]) + 1)
        precisions.append(sum(n / place for n, place in enumerate(places, 1)) / len(right))
    recall = {f"recall@{k}": float(np.mean(np.array(ranks) <= k)) for k in (1, 5, 10)}
    return recall | {"median_rank": float(np.median(ranks)), "map": float(np.mean(precisions))}


@pytest.mark.parametrize(("part", "top"), [(None, None), ("val", 3)])
@pytest.mark.parametrize("grouped", [False, True])
def test_an_evaluation_scores_the_rankings_of_texts(
    opened: dict[int, SearchEngine], indexes: dict[int, str], made: Made, table: str,
    tmp_path: Path, part: str | None, top: int | None, grouped: bool,
) -> None:  # fmt: skip
    flags: dict[str, Any] = {"columns": ["text=caption", "group=image"], "part": part, "top": top}
    right = {id: {id} for id in made.ids}
    if grouped:  # photographs by their folder; a caption means any of its photograph's folder
        folders = {id: id.rpartition("/")[0] or "." for id in made.ids}
        truth = "id,group\n" + "".join(f"{id},{name}\n" for id, name in folders.items())
        (tmp_path / "truth.csv").write_text(truth)
        text = Path(table).read_text()
        for id, name in folders.items():
            text = text.replace(f"\n{id},", f"\n{name},")
        table = str(tmp_path / "captions.csv")
        Path(table).write_text(text)
        flags["truth"] = str(tmp_path / "truth.csv")
        right = {id: {i for i, n in folders.items() if n == folders[id]} for id in made.ids}
    found = evaluate(EvaluateConfig(index=indexes[3], texts=table, **flags)).root
    numbers = [n for n in range(40) if part is None or n % 4 == 0]
    texts = [t for n in numbers for t in (f"{n} is what it shows", f"{n} again")]
    rights = [right[made.ids[n]] for n in numbers for _ in range(2)]
    expected = _expected(opened[1].search_texts(texts, 40), rights, top or 1000)
    assert found.pop("queries") == len(texts)
    assert found.pop("ms_per_query") > 0
    assert found == pytest.approx(expected)
    assert 0 < found["recall@1"] < 1


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        ([], "say --queries, with --truth, or --texts"),
        (["--texts", "TABLE", "--queries", "x"], "say --queries, with --truth, or --texts"),
        (["--queries", "x"], "--truth is required with --queries"),
        (["--queries", "x", "--truth", "y", "--part", "val"], "--columns and --part are of the"),
        (["--texts", "TABLE"], "no column 'text'; it has image, split, caption"),
        (["--texts", "TABLE", "--columns", "text=caption"], "no column 'group', which says what"),
        (["--texts", "TABLE", "--columns", "text=caption", "group=split"], "no text has a right"),
        (
            ["--texts", "TABLE", "--columns", "text=caption", "group=image", "--part", "x"],
            "no text of 'x' has a right answer here; column 'image' holds ids of indexed images",
        ),
    ],
)
def test_a_wrong_evaluation_is_one_line(
    indexes: dict[int, str], table: str, flags: list[str], reason: str,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    given = [table if flag == "TABLE" else flag for flag in flags]
    assert run_job(EvaluateConfig, evaluate, ["--index", indexes[1], *given]) == 2
    out, err = capsys.readouterr()
    [line] = err.splitlines()
    assert reason in line
    assert out == ""


def test_texts_that_cannot_be_read_have_found_nothing(
    indexes: dict[int, str], table: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags: dict[str, Any] = {"columns": ["text=caption", "group=image"], "top": 9}
    whole = evaluate(EvaluateConfig(index=indexes[1], texts=table, **flags)).root
    lines = Path(table).read_text().splitlines()
    image, split, _ = lines[1].split(",")
    broken = [f'{image},{split},"{text}"' for text in (" ", "", "1" * 20_000)]
    (tmp_path / "broken.csv").write_text("\n".join([*lines, *broken]) + "\n")
    config = EvaluateConfig(index=indexes[1], texts=str(tmp_path / "broken.csv"), **flags)
    found, texts = evaluate(config).root, whole["queries"]
    assert "3 texts cannot be read, and count as not found" in capsys.readouterr().err
    assert found["queries"] == texts + 3
    for name in ("recall@1", "recall@5", "map"):
        assert found[name] == pytest.approx(whole[name] * texts / (texts + 3))
    (tmp_path / "broken.csv").write_text("\n".join([lines[0], *broken]) + "\n")
    with pytest.raises(UserError, match="the index can read none of 3 texts"):
        evaluate(config)


def test_texts_cannot_score_an_index_of_pictures(plain: str, table: str) -> None:
    config = EvaluateConfig(index=plain, texts=table, columns=["text=caption", "group=image"])
    with pytest.raises(UserError, match="knows pictures alone, no words"):
        evaluate(config)
