"""The script of docs that finds key points; mediapipe, bound to an old NumPy, is stood in for."""

import csv
import runpy
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import persons
import pytest

SCRIPT = Path(__file__).parents[1] / "docs/key_points.py"
PEOPLE = {"a.jpg": 10, "a.png": 20, "b/c.png": 30}


class Pose:
    made = 0

    def __init__(self, **settings: Any) -> None:
        Pose.made += 1

    def __enter__(self) -> "Pose":
        return self

    def __exit__(self, *fault: object) -> None: ...

    def process(self, picture: np.ndarray) -> Any:
        """Nobody in black; else a point whose x tells the colour."""
        grey = float(picture.max())
        point = SimpleNamespace(x=grey / 100, y=0.5, visibility=1.5)
        return SimpleNamespace(pose_landmarks=SimpleNamespace(landmark=[point]) if grey else None)


def test_a_table_has_a_row_for_each_photograph_of_somebody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    photographs = tmp_path / "photographs"
    (photographs / "b").mkdir(parents=True)
    for name, grey in {**PEOPLE, "empty.png": 0}.items():
        (photographs / name).write_bytes(persons.png(np.full((6, 100, 3), grey, np.uint8)))
    (photographs / "broken.jpg").write_bytes(b"no picture")
    solution = SimpleNamespace(Pose=Pose, PoseLandmark=[SimpleNamespace(name="NOSE")])
    mediapipe = SimpleNamespace(solutions=SimpleNamespace(pose=solution))
    monkeypatch.setitem(sys.modules, "mediapipe", mediapipe)  # type: ignore[arg-type]
    table = tmp_path / "people.csv"
    monkeypatch.setattr(sys, "argv", ["key_points.py", str(photographs), str(table)])
    runpy.run_path(str(SCRIPT), run_name="__main__")
    found = list(csv.DictReader(table.read_text().splitlines()))
    assert {row["id"]: float(row["nose_x"]) for row in found} == PEOPLE
    assert all(row["photo"] == row["id"] and row["nose_y"] == "3.00" for row in found)
    assert all(row["nose_visibility"] == "1.00" for row in found)
    told = capsys.readouterr().err.splitlines()
    assert [line.partition(":")[0] for line in told] == ["broken.jpg", "empty.png"]
    assert Pose.made == 1
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["people.csv"]
