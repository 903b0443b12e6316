"""The key points of people in photographs, as a table that models of clothes swapping read.

    python3.11 -m venv pose && pose/bin/pip install 'mediapipe>=0.10.14,<=0.10.21'
    pose/bin/python key_points.py PHOTOGRAPHS people.csv

Later versions of mediapipe have lost the API that is used here, and it needs a NumPy below 2, so
this runs in an environment of its own and is no part of the package. A photograph gives a row of
`id` and `photo`, both its path in the folder, and `NAME_x`, `NAME_y` in pixels and
`NAME_visibility`, 0 to 1, of 33 landmarks. Photographs that cannot be read, and those in which
nobody is found, are told, and have no row. The table is there when all are done.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mediapipe
import numpy as np
from PIL import Image, ImageOps

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp"}
POSE = mediapipe.solutions.pose
AXES = ("x", "y", "visibility")


def rows(photographs: Path) -> Iterator[list[str]]:
    """A row for each photograph below a folder in which somebody is found."""
    paths = sorted(p for p in photographs.rglob("*") if p.suffix.lower() in SUFFIXES)
    with POSE.Pose(static_image_mode=True) as net:
        for path in paths:
            name = path.relative_to(photographs).as_posix()
            try:
                points = found(net, path)
            except Exception as error:
                print(f"{name}: {' '.join(str(error).split())}", file=sys.stderr)
                continue
            if points is None:
                print(f"{name}: nobody found", file=sys.stderr)
                continue
            yield [name, name, *(f"{number:.2f}" for number in points)]


def found(net: Any, path: Path) -> list[float] | None:
    """x, y and visibility of each landmark in turn, of the photograph of a path."""
    with Image.open(path) as image:
        picture = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    landmarks = net.process(picture).pose_landmarks
    if landmarks is None:
        return None
    height, width = picture.shape[:2]
    return [
        number
        for one in landmarks.landmark
        for number in (one.x * width, one.y * height, min(1.0, max(0.0, one.visibility)))
    ]


def main() -> None:
    """Write the table."""
    flags = argparse.ArgumentParser(description=__doc__)
    flags.add_argument("photographs", type=Path, help="folder of photographs, one person in each")
    flags.add_argument("table", type=Path, help="CSV file to write")
    given = flags.parse_args()
    names = [f"{landmark.name.lower()}_{axis}" for landmark in POSE.PoseLandmark for axis in AXES]
    begun = given.table.with_name(f"{given.table.name}.part")
    with open(begun, "w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["id", "photo", *names])
        table.writerows(rows(given.photographs))
    begun.replace(given.table)


if __name__ == "__main__":
    main()
