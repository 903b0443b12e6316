"""Tables of vectors of pictures and of what is said of them, in two scripts."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from vectors import recipe_of, run_of

from imgray.data.sources import Source
from imgray.engine.examples import open_examples
from imgray.training.loop import Place, Run
from imgray.training.recipe import Recipe
from imgray.training.task import with_dims

IMAGE = 10
COLOURS = {"red": "赤い", "blue": "青い", "white": "白い", "black": "黒い", "brown": "茶色の"}
ANIMALS = {"dog": "犬", "cat": "猫", "bird": "鳥", "horse": "馬", "fish": "魚", "bear": "熊"}
WORDS = {"dim": 8, "hidden": 16, "longest": 9, "least": 1}


def write_said(path: Path, rounds: int = 4, seed: int = 0) -> Path:
    """A table with a caption in English and one in Japanese of each picture.

    Pictures differ in what is said; those of the last round are to validate on.
    """
    chance = np.random.default_rng(seed)
    seen = {word: chance.normal(size=IMAGE) for word in (*COLOURS, *ANIMALS)}
    rows = []
    for n in range(rounds):
        for colour, in_colour in COLOURS.items():
            for animal, kanji in ANIMALS.items():
                image = seen[colour] + seen[animal] + 0.2 * chance.normal(size=IMAGE)
                texts = f"A {colour} {animal}, number {n}.", f"{in_colour}{kanji}がいる"
                split = "train" if n < rounds - 1 else "val"
                own = {"group": f"{n} {colour} {animal}", "split": split}
                rows += [{"image": image.astype(np.float32), "text": t, **own} for t in texts]
    order = chance.permutation(len(rows))
    numbered = [{"id": str(place), **rows[place]} for place in order.tolist()]
    pq.write_table(pa.Table.from_pylist(numbered), path, row_group_size=50)
    return path


def reading(**changes: Any) -> Recipe:
    """A recipe that reads texts, small; `changes` are as of `vectors.recipe_of`."""
    words = WORDS | changes.pop("words", {})
    settings = {"layout": "linear", "optimizer": "adam", "rate": 0.01, "dropout": 0.0, "dim": 12}
    recipe = recipe_of(dims=False, **{"words": words, **settings} | changes)
    return with_dims(recipe, {"image": IMAGE})


def completed(recipe: Recipe, data: Path) -> Recipe:
    """The same with the vocabulary of the data."""
    examples = open_examples(recipe, Source(str(data)))
    found = examples.task.completed(examples.train)
    return recipe.model_copy(update={"settings": recipe.settings | found})


def run_said(recipe: Recipe, data: Path, folder: Path, place: Place | None = None) -> Run:
    """A run that has not begun, whose vocabulary is that of the data."""
    return run_of(completed(recipe, data), data, folder, place)
