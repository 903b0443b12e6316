"""The rankings of texts by an index with a joint part, scored."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from jointly import Made

from imgray.cli import run_job
from imgray.engine.evaluate_index import evaluate
from imgray.engine.search import SearchEngine
from imgray.engine.settings import (
    EvaluateConfig,
)
from imgray.errors import UserError
from imgray.retrieval.deepindex import Hits

pytestmark = pytest.mark.usefixtures("knowing_jobs")


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
