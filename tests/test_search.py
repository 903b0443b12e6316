"""Search and evaluation of a small index of photographs, as published and as damaged."""

import csv
import io
import json
import random
import runpy
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import TinyNet
from PIL import Image

from imgray.artifacts.folder import Folder
from imgray.artifacts.manifest import publish, read_manifest
from imgray.cli import run_job
from imgray.engine.evaluate_index import Scores, evaluate
from imgray.engine.extract import extract
from imgray.engine.index import build_index
from imgray.engine.rows import Source
from imgray.engine.search import SearchEngine, SearchResult, check_fingerprints, encode, search
from imgray.engine.settings import EvaluateConfig, ExtractConfig, IndexConfig, SearchConfig
from imgray.errors import UserError
from imgray.features.columns import FeatureInfo, Vectors, columns_of
from imgray.features.extractor import load_extractor
from imgray.retrieval import metrics

JOB = Path(__file__).parents[1] / "jobs/search.py"


@dataclass(frozen=True)
class TinyIndex:
    """The photographs, their features, and an index of them in three shards."""

    photos: Path
    features: str
    index: str
    settings: IndexConfig

    @property
    def ids(self) -> list[str]:
        found = (p.relative_to(self.photos).as_posix() for p in self.photos.rglob("*.*"))
        return sorted(found)

    def stored(self) -> tuple[list[str], Vectors, dict[str, FeatureInfo]]:
        folder = Folder(self.features)
        manifest = read_manifest(folder, "features")
        columns = columns_of(manifest)
        ids, vectors = Source(folder, manifest, list(columns), []).pick(np.arange(len(self.ids)))
        return ids, vectors, columns


@pytest.fixture(scope="session")
def tiny_index(
    ray_cluster: None,
    photos: Path,
    tiny_net: TinyNet,
    tmp_path_factory: pytest.TempPathFactory,
) -> TinyIndex:
    features, index = (str(tmp_path_factory.mktemp(name) / "tiny") for name in ("f", "i"))
    names = [f"{tiny_net.name}.mid", tiny_net.name]
    extract(
        ExtractConfig(
            images=str(photos), output=features, extractor=names, weights=[tiny_net.weights],
            size=tiny_net.size, regions="pyramid", shard_size=24, workers=2,
        )
    )  # fmt: skip
    settings = IndexConfig(
        features=features, output=index, feature=names, codewords=[6, 5], probes=[20, 8, 3],
        shards=3, queries=4,
    )  # fmt: skip
    assert build_index(settings).shards == 3
    return TinyIndex(photos, features, index, settings)


@pytest.fixture(scope="module")
def engine(tiny_index: TinyIndex) -> SearchEngine:
    return SearchEngine(tiny_index.index)


def _images(tiny: TinyIndex, ids: list[str]) -> dict[str, bytes]:
    return {id: (tiny.photos / id).read_bytes() for id in ids}


def test_an_indexed_image_finds_itself_first(tiny_index: TinyIndex, engine: SearchEngine) -> None:
    assert len(tiny_index.ids) == 40
    answers = engine.search_images(_images(tiny_index, tiny_index.ids), 5)
    for id, hits in zip(tiny_index.ids, answers, strict=True):
        assert hits.ids[0] == id
        assert hits.scores[0] == pytest.approx(1, abs=0.1)
        assert len(hits.ids) == 5


def test_a_query_has_the_vector_that_is_stored(tiny_index: TinyIndex, engine: SearchEngine) -> None:
    ids, stored, _ = tiny_index.stored()
    assert sorted(ids) == tiny_index.ids
    encoded = encode(engine.extractor, _images(tiny_index, ids))
    assert encoded.keys() == stored.keys()
    for name, vectors in stored.items():
        assert encoded[name].shape == vectors.shape
        lengths = np.linalg.norm(encoded[name], axis=2) * np.linalg.norm(vectors, axis=2)
        assert ((encoded[name] * vectors).sum(axis=2) / lengths).min() >= 0.9999
        np.testing.assert_array_equal(encoded[name], encoded[name].astype(np.float16))


def test_images_and_their_extracted_features_find_the_same(
    tiny_index: TinyIndex, engine: SearchEngine
) -> None:
    ids, vectors, columns = tiny_index.stored()
    check_fingerprints(engine.manifest, columns)
    one = engine.search_images(_images(tiny_index, ids), 10)
    other = engine.index.search(vectors, 10)
    for a, b in zip(one, other, strict=True):
        assert a.ids == b.ids
        np.testing.assert_allclose(a.scores, b.scores, atol=2e-3)


def _other_weights(columns: dict[str, FeatureInfo]) -> dict[str, FeatureInfo]:
    return {n: info.model_copy(update={"fingerprint": "0" * 64}) for n, info in columns.items()}


def _other_regions(columns: dict[str, FeatureInfo]) -> dict[str, FeatureInfo]:
    return {n: info.model_copy(update={"regions": 1}) for n, info in columns.items()}


def _one_missing(columns: dict[str, FeatureInfo]) -> dict[str, FeatureInfo]:
    return {n: info for n, info in columns.items() if not n.endswith("high")}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (_other_weights, "the query's has 000000000000: extract it with the index's own networks"),
        (_other_regions, "extract it with the index's own networks"),
        (_one_missing, r"the query lacks the feature test_efficientnet\.high, which the index has"),
    ],
)
def test_features_of_other_networks_are_refused(
    tiny_index: TinyIndex, engine: SearchEngine, change: Callable[..., Any], reason: str
) -> None:
    _, _, columns = tiny_index.stored()
    with pytest.raises(UserError, match=reason):
        check_fingerprints(engine.manifest, change(columns))


def _of_other_networks(artifact: Path | str, copy: Path, kind: Any) -> Folder:
    """A copy of an artifact whose features carry fingerprints of other networks."""
    shutil.copytree(artifact, copy)
    folder = Folder(str(copy))
    manifest = read_manifest(folder, kind)
    for info in manifest.about["features"].values():
        info["fingerprint"] = "1" * 64
    publish(folder, manifest)
    return folder


def test_an_index_whose_networks_are_not_its_own_is_refused(
    tiny_index: TinyIndex, tmp_path: Path
) -> None:
    folder = _of_other_networks(tiny_index.index, tmp_path / "copy", "index")
    with pytest.raises(UserError, match="has fingerprint 111111111111, the query's has"):
        SearchEngine(folder.uri)


@contextmanager
def _harmed(path: Path, data: bytes) -> Iterator[None]:
    original = path.read_bytes()
    path.write_bytes(data)
    try:
        yield
    finally:
        path.write_bytes(original)


def _flipped(data: bytes, rng: random.Random) -> bytes:
    changed = bytearray(data)
    changed[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return bytes(changed)


@pytest.fixture(scope="module")
def copy(tiny_index: TinyIndex, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(shutil.copytree(tiny_index.index, tmp_path_factory.mktemp("copy") / "index"))


def _parts(copy: Path) -> list[str]:
    """Every file that an answer needs."""
    names = sorted(p.relative_to(copy).as_posix() for p in copy.rglob("*") if p.is_file())
    names.remove("report.json")
    return names


PARTS = [
    "codebooks.safetensors", "extractors/test_efficientnet.safetensors", "frequency.safetensors",
    "manifest.json", *(f"shard-0000{n}.{s}" for n in range(3) for s in ("faiss", "parquet")),
]  # fmt: skip


def test_the_files_are_these(copy: Path) -> None:
    assert _parts(copy) == sorted(PARTS)


@pytest.mark.parametrize("name", PARTS)
def test_no_answer_comes_from_a_file_with_a_flipped_bit(copy: Path, name: str) -> None:
    rng = random.Random(name)
    data = (copy / name).read_bytes()
    for _ in range(20):
        with _harmed(copy / name, _flipped(data, rng)), pytest.raises(UserError, match=name):
            SearchEngine(str(copy))
    assert SearchEngine(str(copy)).manifest.counts["images"] == 40


@pytest.mark.parametrize("name", PARTS)
def test_no_answer_comes_from_a_truncated_file(copy: Path, name: str) -> None:
    rng = random.Random(name)
    data = (copy / name).read_bytes()
    for length in (0, len(data) - 1, *(rng.randrange(len(data)) for _ in range(3))):
        with _harmed(copy / name, data[:length]), pytest.raises(UserError, match=name):
            SearchEngine(str(copy))
    with _harmed(copy / name, data):
        (copy / name).unlink()
        with pytest.raises(UserError):
            SearchEngine(str(copy))
    with _harmed(copy / name, data + b"\0"), pytest.raises(UserError, match=name):
        SearchEngine(str(copy))


def test_a_harmed_report_is_noticed_by_whoever_reads_it(copy: Path, tiny_index: TinyIndex) -> None:
    settings = tiny_index.settings.model_copy(update={"output": str(copy)})
    data = (copy / "report.json").read_bytes()
    rng = random.Random(0)
    for _ in range(10):
        with _harmed(copy / "report.json", _flipped(data, rng)):
            with pytest.raises(UserError, match=r"report\.json: its content differs"):
                build_index(settings)
            SearchEngine(str(copy))  # which needs no report
    assert build_index(settings).images == 40


def _run(argv: list[str], monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(sys, "argv", [str(JOB), *argv])
    monkeypatch.setattr("os._exit", sys.exit)  # by which a job ends
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(JOB), run_name="__main__")
    return int(end.value.code or 0)


def test_the_job_answers_in_json_and_draws_a_sheet(
    tiny_index: TinyIndex, engine: SearchEngine, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    ids = tiny_index.ids[:2] + tiny_index.ids[-1:]
    queries = [str(tiny_index.photos / id) for id in ids]
    flags = ["--index", tiny_index.index, "--top", "4", "--json", "--query", *queries]
    assert _run([*flags, "--contact-sheet", str(tmp_path / "new/sheet.png")], monkeypatch) == 0
    [line] = capfd.readouterr().out.splitlines()
    found = SearchResult.model_validate(json.loads(line))
    assert [answer.query for answer in found.answers] == queries
    answers = engine.search_images(_images(tiny_index, ids), 4)
    for answer, hits in zip(found.answers, answers, strict=True):
        assert [found.id for found in answer.results] == hits.ids
        scores = [found.score for found in answer.results]
        np.testing.assert_allclose(scores, hits.scores, atol=2e-3)
    assert json.loads(line)["answers"][0]["results"][0].keys() == {"id", "score"}
    with Image.open(tmp_path / "new/sheet.png") as sheet:
        sheet.load()
        assert sheet.format == "PNG"
        assert min(sheet.size) > 200
        assert len(sheet.convert("RGB").resize((64, 64)).getcolors(5000) or []) > 50


def test_the_job_answers_in_words(
    tiny_index: TinyIndex, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    query = str(tiny_index.photos / tiny_index.ids[0])
    assert _run(["--index", tiny_index.index, "--top", "3", "--query", query], monkeypatch) == 0
    lines = capfd.readouterr().out.splitlines()
    assert lines[0] == query
    assert len(lines) == 4
    assert lines[1].split(maxsplit=1)[1] == tiny_index.ids[0]


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"no image", "not a readable"), (b"", "empty"), (None, "bad.jpg")],
)
def test_a_query_that_is_no_image_is_one_line(
    tiny_index: TinyIndex, tmp_path: Path, content: bytes | None, reason: str,
    capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    if content is not None:
        (tmp_path / "bad.jpg").write_bytes(content)
    good = str(tiny_index.photos / tiny_index.ids[0])
    flags = ["--index", tiny_index.index, "--query", good, str(tmp_path / "bad.jpg")]
    assert run_job(SearchConfig, search, flags) == 2
    out, err = capfd.readouterr()
    [line] = err.splitlines()
    assert line.startswith("error: ")
    assert "bad.jpg" in line
    assert reason in line
    assert out == ""


def test_a_folder_that_is_no_index_is_one_line(
    tiny_index: TinyIndex, capfd: pytest.CaptureFixture[str]
) -> None:
    query = str(tiny_index.photos / tiny_index.ids[0])
    for place, reason in (
        (tiny_index.features, "a features artifact, but index is needed"),
        (str(tiny_index.photos), "no index artifact here"),
    ):
        assert run_job(SearchConfig, search, ["--index", place, "--query", query]) == 2
        out, err = capfd.readouterr()
        [line] = err.splitlines()
        assert reason in line
        assert out == ""


def _truth(path: Path, groups: dict[str, str]) -> str:
    buffer = io.StringIO()
    writer = csv.writer(buffer)
    writer.writerows([("id", "group"), *groups.items()])
    path.write_text(buffer.getvalue(), encoding="utf-8")
    return str(path)


def _groups(tiny: TinyIndex) -> dict[str, str]:
    """A photograph and its mirror image are a group; some photographs have none."""
    return {id: Path(id).stem for id in tiny.ids[3:]}


def _expected(
    engine: SearchEngine,
    queries: dict[str, bytes],
    groups: dict[str, str],
    ids: list[str],
    top: int,
) -> dict[str, float]:
    """The metrics of rankings that the engine gives, each without its query, `top` long."""
    answers = engine.search_images(queries, 1000)
    rankings = {
        id: [found for found in hits.ids if found != id][:top]
        for id, hits in zip(queries, answers, strict=True)
    }
    return metrics.evaluate(rankings, groups, set(ids))


@pytest.mark.parametrize("source", ["images", "features"])
@pytest.mark.parametrize("top", [1, 5, 10_000])
def test_an_evaluation_scores_the_rankings_of_the_engine(
    tiny_index: TinyIndex, engine: SearchEngine, tmp_path: Path, top: int, source: str
) -> None:
    groups = _groups(tiny_index)
    queries = str(tiny_index.photos) if source == "images" else tiny_index.features
    truth = _truth(tmp_path / "truth.csv", groups | {"not there.jpg": "x"})
    found = evaluate(
        EvaluateConfig(index=tiny_index.index, queries=queries, truth=truth, top=top)
    ).root
    images = _images(tiny_index, list(groups))
    expected = _expected(engine, images, groups, tiny_index.ids, top)
    assert found.pop("queries") == 37
    assert found.pop("ms_per_query") > 0
    assert found == pytest.approx(expected, abs=1e-9)
    assert 0 < found["map"] < 1
    assert 1 <= found["ns_score"] <= 4


@pytest.mark.parametrize("top", [1, 2, 5])
def test_queries_from_outside_get_rankings_of_the_same_length(
    tiny_index: TinyIndex, engine: SearchEngine, tmp_path: Path, top: int
) -> None:
    groups = _groups(tiny_index)
    outside = {f"copy of {Path(id).name}": id for id in list(groups)[:6]}
    (tmp_path / "queries").mkdir()
    for name, id in outside.items():
        shutil.copy(tiny_index.photos / id, tmp_path / "queries" / name)
    images = {name: (tmp_path / "queries" / name).read_bytes() for name in outside}
    both = groups | {name: Path(id).stem for name, id in outside.items()}
    found = evaluate(
        EvaluateConfig(
            index=tiny_index.index, queries=str(tmp_path / "queries"), top=top,
            truth=_truth(tmp_path / "truth.csv", both),
        )
    ).root  # fmt: skip
    expected = _expected(engine, images, both, tiny_index.ids, top)
    assert {name: found[name] for name in expected} == pytest.approx(expected, abs=1e-9)
    assert found["precision@1"] == 1


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (None, "truth.csv"),
        (b"", "expected rows under a header with id and group"),
        (b"id,group\n", "expected rows under a header with id and group"),
        (b"image,label\na.jpg,x\n", "expected rows under a header with id and group"),
        (b"id,group\na.jpg,x\nb.jpg\n", "line 3 lacks an id or a group"),
        (b"id,group\n,x\n", "line 2 lacks an id or a group"),
        (b"\x89PNG\xff\xfe", "not a CSV file"),
        (b"id,group\nelsewhere.jpg,x\n", "no image here has an id of the truth"),
    ],
)
def test_a_wrong_truth_is_one_line(
    tiny_index: TinyIndex, tmp_path: Path, text: bytes | None, reason: str,
    capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    truth = tmp_path / "truth.csv"
    if text is not None:
        truth.write_bytes(text)
    for queries in (str(tiny_index.photos), tiny_index.features):
        flags = ["--index", tiny_index.index, "--queries", queries]
        assert run_job(EvaluateConfig, evaluate, [*flags, "--truth", str(truth)]) == 2
        out, err = capfd.readouterr()
        [line] = err.splitlines()
        assert line.startswith("error: ")
        assert reason in line
        assert out == ""


def test_a_table_with_more_columns_and_a_mark_is_a_truth(
    tiny_index: TinyIndex, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    rows = "".join(f'0,"{group}","{id}"\n' for id, group in _groups(tiny_index).items())
    (tmp_path / "truth.csv").write_text("\ufeffn,group,id\n" + rows, encoding="utf-8")
    flags = ["--index", tiny_index.index, "--queries", tiny_index.features]
    flags += ["--truth", str(tmp_path / "truth.csv"), "--json"]
    assert run_job(EvaluateConfig, evaluate, flags) == 0
    [line] = capfd.readouterr().out.splitlines()
    found = Scores.model_validate(json.loads(line)).root
    assert found["queries"] == 37
    assert "map" in str(Scores(found))


def test_queries_of_other_networks_are_refused(
    tiny_index: TinyIndex, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = _of_other_networks(tiny_index.features, tmp_path / "features", "features")
    flags = ["--index", tiny_index.index, "--queries", folder.uri]
    flags += ["--truth", _truth(tmp_path / "truth.csv", _groups(tiny_index))]
    assert run_job(EvaluateConfig, evaluate, flags) == 2
    out, err = capfd.readouterr()
    assert "extract it with the index's own networks" in err
    assert len(err.splitlines()) == 1
    assert out == ""


def test_the_index_carries_its_networks(tiny_index: TinyIndex) -> None:
    manifests = [
        read_manifest(Folder(tiny_index.index), "index"),
        read_manifest(Folder(tiny_index.features), "features"),
    ]
    places = (tiny_index.index, tiny_index.features)
    one, other = (load_extractor(Folder(p), m) for p, m in zip(places, manifests, strict=True))
    assert one.describe().keys() == other.describe().keys()
    assert one.describe() == {name: other.describe()[name] for name in one.describe()}
