"""Forward passes of a trained model: images of one shape go together, and come out in order."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from tinytask import tiny_recipe

from imgray.training import models
from imgray.training.models import Model
from imgray.training.recipe import Recipe
from imgray.training.task import Arrays, Batch, Prediction


class Learner:
    """Says the mean of each image; notes the shapes of its batches."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, ...]] = []

    def predict(self, batch: Batch) -> list[Prediction]:
        self.seen.append(tuple(batch["image"].shape))
        return [Prediction({"mean": float(one.float().mean())}) for one in batch["image"]]


def _model(one_shape: bool) -> tuple[Model, Learner]:
    task: Any = SimpleNamespace(one_shape=one_shape)
    learner: Any = Learner()
    return Model(Recipe.model_validate(tiny_recipe()), task, learner, "f00"), learner


def _images(*shapes: tuple[int, int]) -> list[Arrays]:
    return [{"image": np.full((*shape, 3), n, np.uint8)} for n, shape in enumerate(shapes)]


def _means(found: list[Prediction]) -> list[float]:
    return [one.row["mean"] for one in found]


def test_results_keep_the_order_of_images_of_mixed_shapes() -> None:
    model, learner = _model(one_shape=False)
    found = model.predict(_images((4, 6), (6, 4), (4, 6), (5, 5), (6, 4), (4, 6)), "cpu")
    assert _means(found) == [0, 1, 2, 3, 4, 5]
    assert sorted(learner.seen) == [(1, 5, 5, 3), (2, 6, 4, 3), (3, 4, 6, 3)]


def test_nothing_is_predicted_of_nothing() -> None:
    model, learner = _model(one_shape=True)
    assert model.predict([], "cpu") == []
    assert not learner.seen


@pytest.mark.parametrize(("one_shape", "passes"), [(True, [5]), (False, [2, 2, 1])])
def test_photographs_of_one_shape_share_a_pass_as_far_as_memory_goes(
    monkeypatch: pytest.MonkeyPatch, one_shape: bool, passes: list[int]
) -> None:
    monkeypatch.setattr(models, "PASS_VALUES", 2 * 4 * 6 * 3)
    model, learner = _model(one_shape)
    assert _means(model.predict(_images(*[(4, 6)] * 5), "cpu")) == [0, 1, 2, 3, 4]
    assert [shape[0] for shape in learner.seen] == passes


def test_an_image_beyond_the_bound_has_a_pass_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "PASS_VALUES", 10)
    model, learner = _model(one_shape=False)
    assert _means(model.predict(_images((4, 6), (4, 6)), "cpu")) == [0, 1]
    assert [shape[0] for shape in learner.seen] == [1, 1]
