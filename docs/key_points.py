"""The key points of people in photographs, as a table that models of clothes swapping read.

    python3.11 -m venv pose && pose/bin/pip install 'mediapipe>=0.10.14,<=0.10.21'
    pose/bin/python key_points.py PHOTOGRAPHS people.csv

Later versions of mediapipe have lost the API that is used here, and it needs a NumPy below 2, so
this runs in an environment of its own and is no part of the package. A photograph gives a row of
`id`, its path without the suffix, `photo`, its path, and `NAME_x`, `NAME_y` in pixels and
`NAME_visibility`, 0 to 1, of 33 landmarks. Photographs in which nobody is found are told, and have
no row.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Iterator
from pathlib import Path

import mediapipe
import numpy as np
from PIL import Image, ImageOps

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp"}
LANDMARKS = mediapipe.solutions.pose.PoseLandmark
AXES = ("x", "y", "visibility")


def rows(photographs: Path) -> Iterator[list[str]]:
    """A row for each photograph below a folder in which somebody is found."""
    paths = sorted(p for p in photographs.rglob("*") if p.suffix.lower() in SUFFIXES)
    for path in paths:
        name = path.relative_to(photographs)
        picture = np.asarray(ImageOps.exif_transpose(Image.open(path)).convert("RGB"))
        with mediapipe.solutions.pose.Pose(static_image_mode=True) as net:
            found = net.process(picture).pose_landmarks
        if found is None:
            print(f"{name}: nobody found", file=sys.stderr)
            continue
        height, width = picture.shape[:2]
        points = (
            (one.x * width, one.y * height, min(1.0, max(0.0, one.visibility)))
            for one in found.landmark
        )
        numbers = (f"{number:.2f}" for point in points for number in point)
        yield [name.with_suffix("").as_posix(), name.as_posix(), *numbers]


def main() -> None:
    """Write the table."""
    flags = argparse.ArgumentParser(description=__doc__)
    flags.add_argument("photographs", type=Path, help="folder of photographs, one person in each")
    flags.add_argument("table", type=Path, help="CSV file to write")
    given = flags.parse_args()
    names = [f"{landmark.name.lower()}_{axis}" for landmark in LANDMARKS for axis in AXES]
    with open(given.table, "w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["id", "photo", *names])
        table.writerows(rows(given.photographs))


if __name__ == "__main__":
    main()
