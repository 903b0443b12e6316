"""MMC-Net: it matches and classifies, in stages, from a picture, a text or both."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from vectors import IMAGE, TEXT, recipe_of, run_of, write_pairs

from imgray.config import validate
from imgray.errors import UserError
from imgray.matching.mmc import Classifier, Mmc, MmcLearner, MmcSettings
from imgray.matching.nets import SIDES
from imgray.training.loop import Run
from imgray.training.task import At, task_of

pytestmark = pytest.mark.usefixtures("undrawn")
TASK = "imgray.matching.mmc:Mmc"
CLASSES = 4
NAMES = tuple(f"class {n}" for n in range(CLASSES))
SETTINGS: dict[str, Any] = {"optimizer": "adam", "rate": 0.05, "dropout": 0.0, "joint_rate": 0.5}


def _several(source: Path) -> Path:
    """Records of which each has the class of before, and every other one the next class too."""
    rows = pq.read_table(source).to_pylist()
    for row in rows:
        own = NAMES.index(row.pop("label"))
        more = int(row["group"][1:]) // CLASSES % 2
        labels = np.zeros(CLASSES, np.float32)
        labels[[own, (own + more) % CLASSES]] = 1
        row["labels"] = labels
        hint = np.zeros(TEXT, np.float32)
        hint[0] = 3 * more
        row["text"] = row["text"] + hint
    path = source.with_name("several.parquet")
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


KINDS: dict[str, dict[str, Any]] = {
    "one": {},
    "one by product": {"join": "product", "first": "cca"},
    "several": {"classes": list(NAMES)},
}


@pytest.fixture(scope="module", params=KINDS)
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("mmc")
    data = write_pairs(folder / "pairs.parquet", classes=CLASSES)
    if request.param == "several":
        data = _several(data)
    found = run_of(recipe_of(TASK, **SETTINGS, **KINDS[request.param]), data, folder / "run")
    found.fit()
    return found


def _batch(run: Run) -> dict[str, Tensor]:
    return {k: torch.as_tensor(v) for k, v in run.examples.validation(0, 0, 1).items()}


def test_it_matches_and_classifies(run: Run) -> None:
    found = run.lines[-1]
    name = "map" if run.examples.task.settings.classes else "accuracy"
    assert found["rsum"] > 250
    assert found["i2t_map"] > 0.7
    assert found["t2i_map"] > 0.7
    assert all(found[f"{shown}_{name}"] > 0.55 for shown in ("both", "image", "text"))


def test_its_metrics_are_those_of_its_predictions(run: Run) -> None:
    if run.examples.task.settings.classes:
        pytest.skip("of one label alone")
    learner, task = run.learner, run.examples.task
    for net in learner.modules.values():
        net.eval()
    records = [run.examples.val[n] for n in range(len(run.examples.val))]
    for shown, sides in (("both", SIDES), ("image", ["image"]), ("text", ["text"])):
        arrays = [task.prepare({side: record[side] for side in sides}) for record in records]
        batch = {side: torch.as_tensor(np.stack([one[side] for one in arrays])) for side in sides}
        with torch.inference_mode():
            rows = [prediction.row for prediction in learner.predict(batch)]
        hits = [
            row["labels"][0] == task.classes[record["label"]]
            for row, record in zip(rows, records, strict=True)
        ]
        assert run.lines[-1][f"{shown}_accuracy"] == pytest.approx(np.mean(hits))
        assert task.words(rows[0])[0][0] == rows[0]["labels"][0]
        assert ("score" in rows[0]) == (shown == "both")
        shares = [sum(row["labels_scores"]) for row in rows]
        assert shares == pytest.approx([1] * len(rows), abs=1e-5)


def test_losses_come_in_stages(run: Run) -> None:
    trained = [line for line in run.lines if line["part"] == "train"]
    steps = run.steps
    for line in trained:
        if line["step"] <= 0.4 * steps:
            assert "classification" not in line
    assert "classification" in trained[-1]
    assert "rank" in trained[-1]


def _learner(**settings: Any) -> MmcLearner:
    torch.manual_seed(0)
    learner = task_of(recipe_of(TASK, **SETTINGS | settings), NAMES).learner()
    assert isinstance(learner, MmcLearner)
    return learner


def _vectors(count: int = 24, seed: int = 0) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    found = {"image": torch.randn(count, IMAGE), "text": torch.randn(count, TEXT)}
    ids = torch.arange(count)
    return {**found, "image_id": ids, "text_id": ids, "truth": ids % CLASSES}


def _moved(learner: MmcLearner, step: int) -> tuple[bool, bool]:
    """Whether a step of 10 changes the matching component, and the classifier."""
    before = {
        name: [t.clone() for t in net.state_dict().values()]
        for name, net in learner.modules.items()
    }
    for net in learner.modules.values():
        net.train()
    learner.step(_vectors(), At(step, 10, 0.0))
    net, classifier = (
        any(
            not torch.equal(old, new)
            for old, new in zip(
                before[name], learner.modules[name].state_dict().values(), strict=True
            )
        )
        for name in ("net", "classifier")
    )
    return net, classifier


def test_each_stage_learns_its_part() -> None:
    """Also batch statistics stay while the matching component is frozen."""
    learner = _learner(stages=[0.3, 0.6], weight_decay=0.1)
    assert [_moved(learner, step) for step in (0, 2)] == [(True, False)] * 2
    assert [_moved(learner, step) for step in (3, 5)] == [(False, True)] * 2
    rates = [group["lr"] for group in learner.optimizers["net"].param_groups]
    assert [_moved(learner, 6)] == [(True, True)]
    assert [g["lr"] for g in learner.optimizers["net"].param_groups] == [r * 0.5 for r in rates]


def test_each_loss_may_be_alone() -> None:
    assert [_moved(_learner(matching=0), step) for step in (0, 9)] == [(True, True)] * 2
    assert [_moved(_learner(classification=0), step) for step in (0, 9)] == [(True, False)] * 2


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_the_loss_is_the_weighted_sum(stage: int) -> None:
    weights = {"matching": 0.5, "classification": 3.0}
    settings = {"stages": [0.3, 0.6], "drop": 0.0, "norm": False, "norm_inputs": False}
    learner, plain = _learner(**settings, **weights), _learner(**settings)
    batch, at = _vectors(), At(3 * stage - 3, 10, 0.0)
    found = learner.objective(batch, at)
    assert set(found) == {1: {"rank"}, 2: {"classification"}, 3: {"rank", "classification"}}[stage]
    if stage > 1:
        logits = plain.classifier(plain.embed(batch))
        torch.testing.assert_close(
            found["classification"], 3 * F.cross_entropy(logits, batch["truth"])
        )
    if stage != 2:
        expected = 0.5 * plain.ranked(plain.terms(batch), batch["image_id"])["rank"]
        torch.testing.assert_close(found["rank"], expected)


@pytest.mark.parametrize("product", [False, True])
def test_what_is_not_shown_is_as_what_is_absent(product: bool) -> None:
    torch.manual_seed(0)
    classifier = Classifier(6, 3, product)
    both = {side: F.normalize(torch.randn(5, 6), dim=1) for side in SIDES}
    for side, other in (SIDES, SIDES[::-1]):
        shown = {
            side: torch.ones(5, 1, dtype=torch.bool),
            other: torch.zeros(5, 1, dtype=torch.bool),
        }
        alone = classifier({side: both[side]})
        torch.testing.assert_close(classifier(both, shown), alone)
        assert not torch.allclose(classifier(both), alone)


def test_some_examples_lack_one_of_the_two_in_training() -> None:
    learner = _learner(drop=0.5)
    shown = learner._shown(_vectors(4000))
    image, text = (float(shown[side].float().mean()) for side in SIDES)
    assert bool((shown["image"] | shown["text"]).all())
    assert image == pytest.approx(0.75, abs=0.03)
    assert text == pytest.approx(0.75, abs=0.03)


@pytest.mark.parametrize(
    ("settings", "fault"),
    [
        ({"stages": [0.6, 0.4]}, "stages"),
        ({"stages": [0, 1.5]}, "stages"),
        ({"layout": "cca"}, "layout: cca is not trained"),
        ({"matching": 0, "classification": 0}, "nothing to learn"),
        ({"drop": 2}, "drop"),
    ],
)
def test_settings_that_cannot_be_meant(settings: dict[str, Any], fault: str) -> None:
    with pytest.raises(UserError, match=fault) as error:
        validate(MmcSettings, settings, "recipe: settings")
    assert "\n" not in str(error.value)


def test_classes_are_those_of_the_data_or_of_the_recipe() -> None:
    assert task_of(recipe_of(TASK), NAMES).classes == NAMES
    several = task_of(recipe_of(TASK, classes=["a", "b", "c"]), ())
    assert isinstance(several, Mmc)
    assert several.classes == ("a", "b", "c")
    assert several.truth["labels"].dim == 3
