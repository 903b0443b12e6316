"""Captions of the photographs, and a small model that learnt from them to match them with pictures.

It finds canonical correlations, its texts are a bag of words: all is done in a second.
"""

import csv
from pathlib import Path

import inprocess
import yaml

from imgray.engine.extract import extract
from imgray.engine.settings import ExtractConfig, TrainConfig
from imgray.engine.train import train

DIM, STEPS = 8, 20


def write_captions(images: Path, path: Path) -> Path:
    """A table with two captions of every image, of the words in its name."""
    ids = sorted(p.relative_to(images).as_posix() for p in images.rglob("*.*"))
    rows = []
    for number, id in enumerate(ids):
        words = Path(id).stem.replace("-", " ")
        for text in (f"a photograph of {words}", f"{words}, {Path(id).suffix[1:]}"):
            rows.append([len(rows), id, text, "val" if number % 4 == 0 else "train"])
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([["id", "image", "caption", "split"], *rows])
    return path


def train_matcher(folder: Path, captions: Path, features: str, net: str) -> str:
    """The model of a folder: it takes the features `NET.high` of pictures, and texts."""
    recipe, output = folder / "matcher.yaml", str(folder / "matcher")
    settings = {
        "task": "imgray.matching.matcher:Matching",
        "settings": {"layout": "cca", "dim": DIM},
        "data": {"train": "train", "validate": "val"},
    }
    recipe.write_text(yaml.safe_dump({**settings, "batch_size": 8, "steps": STEPS}))
    with inprocess.jobs():
        extract(
            ExtractConfig(
                images=str(captions), columns=["text=caption"], output=str(folder / "texts"),
                extractor=["tfidf"],
            )
        )  # fmt: skip
        train(
            TrainConfig(
                recipe=str(recipe), data=str(captions), output=output,
                columns=["image=image", "text=id"],
                features=[f"image={features}#{net}.high", f"text={folder}/texts"],
            )
        )  # fmt: skip
    return output
