"""The built-in mosaics: real textures, with the truth of every pixel."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from imgray.data import samples
from imgray.data.mosaics import CELLS, MATERIALS, mosaic, write_mosaics
from imgray.data.sources import Source
from imgray.engine.train import read_recipe
from imgray.training.task import task_of


@pytest.fixture(scope="module")
def pictures() -> dict[str, Image.Image]:
    return samples.photographs()


def test_a_mosaic_depends_on_its_seed_alone(pictures: dict[str, Image.Image]) -> None:
    made = [mosaic(pictures, 48, np.random.default_rng(seed)) for seed in (1, 1, 2)]
    for one, other in zip(made[0], made[1], strict=True):
        np.testing.assert_array_equal(one, other)
    assert (made[0][0] != made[2][0]).any()


@pytest.mark.parametrize("seed", range(5))
def test_a_cell_shows_its_material(pictures: dict[str, Image.Image], seed: int) -> None:
    """A world of plain photographs, each of its own grey: the mask can be read off the mosaic."""
    greys = {name: 30 * place for place, names in enumerate(MATERIALS.values()) for name in names}
    plain = {name: Image.new("RGB", (200, 180), (grey,) * 3) for name, grey in greys.items()}
    image, mask = mosaic(plain, 64, np.random.default_rng(seed))
    np.testing.assert_array_equal(image[:, :, 0], 30 * mask)
    assert CELLS[0] <= len(np.unique(mask)) <= CELLS[1]


def test_mosaics_are_a_data_set_that_the_recipes_fit(tmp_path: Path) -> None:
    folder = write_mosaics(tmp_path, train=12, val=3, side=64)
    for name in ("fcfn-mosaics", "rds-mosaics"):
        recipe = read_recipe(name, [])
        train = Source(str(folder)).part("train", truth="masks")
        task = task_of(recipe, train.classes)
        task.check_training_data(train)
        assert len(train) == 12
        assert task.example(train[0], None)["image"].shape == (64, 64, 3)
    assert list(task_of(read_recipe("fcfn-mosaics", []), ()).classes) == list(MATERIALS)
