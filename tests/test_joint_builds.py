"""An index with a joint part: damage, interruption, and the recall of its report."""

import csv
import itertools
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import knowing
import numpy as np
import pytest
from jointly import FIXED, Made, files_of, held_out_of
from numpy.typing import NDArray
from stopped import stopped_at

import imgray.engine.index as engine
from imgray.artifacts.folder import Folder
from imgray.artifacts.manifest import read_file
from imgray.engine.build import fit_part
from imgray.engine.index import IndexResult, build_index
from imgray.engine.joint import as_vectors, default_probes, joint_settings
from imgray.engine.report import Report
from imgray.engine.search import SearchEngine
from imgray.engine.settings import (
    IndexConfig,
)
from imgray.errors import UserError
from imgray.retrieval.codebook import Codebooks, unit
from imgray.retrieval.deepindex import Hits

pytestmark = pytest.mark.usefixtures("knowing_jobs")


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
    found, fresh = files_of(interrupted), files_of(tmp_path / "fresh")
    assert found.keys() == fresh.keys()
    for name in found.keys() - FIXED:
        assert found[name] == fresh[name], name


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
    held_out = held_out_of(config).tolist()
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
    sizes = [
        len(d) for n, d in files_of(output).items() if n.startswith(("shard-", "joint/shard-"))
    ]
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
        assert not files_of(tmp_path / "index")


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
