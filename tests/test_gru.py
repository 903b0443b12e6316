"""Texts that a network reads: their words, the recurrent unit, and matching that learns them."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from said import IMAGE, completed, reading, run_said, write_said
from torch import Tensor
from two import WORLD, both
from vectors import recipe_of

from imgray.config import validate
from imgray.data.fields import Text, Vector
from imgray.data.pixels import Rejected
from imgray.data.sources import Source
from imgray.errors import UserError
from imgray.features.bags import words_of
from imgray.matching.mmc import MmcSettings
from imgray.matching.settings import MatchingSettings
from imgray.matching.words import PADDING, UNKNOWN, Numbers, Reader, WordSettings
from imgray.training.loop import Loader, Place, Run, in_threads
from imgray.training.task import Arrays, task_of

pytestmark = pytest.mark.usefixtures("undrawn")
ENOUGH = 300
"""An rsum far above that of chance, about 105 among 30 pictures with 2 texts each."""
LAYOUTS: dict[str, dict[str, Any]] = {
    "linear": {},
    "rrf": {"layout": "rrf", "steps": 1, "rate": 0.003, "recipe": {"steps": 100}},
    "cycle": {"layout": "cycle", "words": {"bidirectional": True}},
    "mmc": {
        "task": "imgray.matching.mmc:Mmc", "layout": "linear", "classes": ["one", "other"],
        "classification": 0, "memory": 40,
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_said(tmp_path_factory.mktemp("said") / "t.parquet")


# --- words ------------------------------------------------------------------------------------


def _settings(**changes: Any) -> WordSettings:
    given = {"longest": 5, "dim": 4, "hidden": 3, "vocabulary": ("a", "dog", "犬")}
    return validate(WordSettings, given | changes, "words")


@pytest.mark.parametrize(("size", "least"), [(1000, 1), (1000, 18), (7, 1), (9, 15)])
def test_the_vocabulary_is_that_of_the_texts_to_train_on(data: Path, size: int, least: int) -> None:
    """Those that stand in most texts first, equal ones in alphabetical order."""
    rows = pq.read_table(data).to_pylist()
    texts = [row["text"] for row in rows if row["split"] == "train"]
    counts = Counter(word for text in texts for word in {*words_of(text)})
    expected = sorted(counts, key=lambda word: (-counts[word], word))[:size]
    found = completed(reading(words={"size": size, "least": least}), data).settings["words"]
    assert found["vocabulary"] == [word for word in expected if counts[word] >= least]
    assert "3" not in counts


def test_a_vocabulary_that_is_given_stays(data: Path) -> None:
    recipe = reading(words={"vocabulary": ["dog", "cat"]})
    assert completed(recipe, data) == recipe
    assert task_of(recipe_of(), ()).completed(recipe.data.training(Source(str(data)))) == {}


def test_texts_without_a_common_word_are_refused(data: Path) -> None:
    with pytest.raises(UserError, match=r"words\.least: no word stands in 900 of the texts"):
        completed(reading(words={"least": 900}), data)


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("A dog", [1, 2]), ("dog a", [2, 1]), ("a cat dog", [1, UNKNOWN, 2]), ("cat", [UNKNOWN]),
        ("!?", [UNKNOWN]), ("犬 dog", [3, 2]), ("a a a dog dog dog", [1, 1, 1, 2, 2]),
    ],
)  # fmt: skip
def test_texts_are_the_numbers_of_their_words(text: str, numbers: list[int]) -> None:
    found = Numbers(_settings())(text)
    assert (found.dtype, found.tolist()) == (np.int64, [*numbers, *[PADDING] * (5 - len(numbers))])


def test_without_a_vocabulary_nothing_is_read() -> None:
    with pytest.raises(UserError, match=r"settings\.words\.vocabulary: not known"):
        task_of(reading(), ()).prepare({"text": "a dog"})


# --- the unit ---------------------------------------------------------------------------------


def _state(unit: Any, words: Tensor, suffix: str) -> Tensor:
    """Cho et al. 2014, as torch has it: h = (1 - z) n + z h, n = tanh(W x + b + r (U h + c))."""
    weights = [
        getattr(unit, f"{kind}_{side}_l0{suffix}")
        for kind in ("weight", "bias")
        for side in ("ih", "hh")
    ]
    (wr, wz, wn), (ur, uz, un), (br, bz, bn), (cr, cz, cn) = (w.chunk(3) for w in weights)
    h = torch.zeros(unit.hidden_size)
    for x in words:
        r = torch.sigmoid(wr @ x + br + ur @ h + cr)
        z = torch.sigmoid(wz @ x + bz + uz @ h + cz)
        h = (1 - z) * torch.tanh(wn @ x + bn + r * (un @ h + cn)) + z * h
    return h


@pytest.mark.parametrize("bidirectional", [False, True])
def test_a_text_is_the_state_behind_its_last_word(bidirectional: bool) -> None:
    settings = _settings(bidirectional=bidirectional)
    torch.manual_seed(0)
    reader, numbers = Reader(settings), Numbers(settings)
    texts = ["a dog", "dog a", "dog", "a cat dog 犬 a", "!"]
    found = reader(torch.as_tensor(np.stack([numbers(text) for text in texts])))
    assert found.shape == (len(texts), settings.width)
    for text, state in zip(texts, found, strict=True):
        own = numbers(text)
        words = reader.vectors.weight[own[own != PADDING]]
        ends = [_state(reader.unit, words, "")]
        ends += [_state(reader.unit, words.flip(0), "_reverse")] if bidirectional else []
        torch.testing.assert_close(state, torch.cat(ends), atol=1e-6, rtol=1e-5)
    assert not torch.allclose(found[0], found[1])


@pytest.mark.parametrize("bidirectional", [False, True])
def test_padding_changes_nothing(bidirectional: bool) -> None:
    torch.manual_seed(0)
    reader = Reader(_settings(bidirectional=bidirectional))
    texts = ["a dog", "dog", "a cat dog 犬 a"]
    short, long = (
        reader(torch.as_tensor(np.stack([Numbers(_settings(longest=n))(t) for t in texts])))
        for n in (5, 60)
    )
    assert torch.equal(short, long)


def test_the_vectors_of_words_begin_as_those_of_vse() -> None:
    reader = Reader(_settings(dim=1000))
    assert reader.vectors.weight.shape == (4, 1000)
    assert 0.099 < reader.vectors.weight.abs().max() <= 0.1


# --- the task ---------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=LAYOUTS)
def run(
    request: pytest.FixtureRequest, data: Path, tmp_path_factory: pytest.TempPathFactory
) -> Run:
    """A finished run of each layout."""
    changes = dict(LAYOUTS[request.param])
    path = _labelled(data) if "classes" in changes else data
    found = run_said(reading(**changes), path, tmp_path_factory.mktemp("run"))
    found.fit()
    return found


def _labelled(data: Path) -> Path:
    table = pq.read_table(data)
    labels = [[1.0, 0.0]] * len(table)
    pq.write_table(table.append_column("labels", [labels]), data.with_name("labelled.parquet"))
    return data.with_name("labelled.parquet")


def test_it_learns_what_is_said_in_two_scripts(run: Run) -> None:
    assert run.lines[-1]["rsum"] > ENOUGH
    assert run.lines[-1]["t2i_median_rank"] < 5
    weights = run.learner.modules["net"].readers["text"].vectors.weight
    words = run.recipe.settings["words"]["vocabulary"]
    assert len(weights) == 1 + len(words)
    assert {"dog", "犬", "赤", "red"} <= {*words}


def test_a_text_has_one_vector_in_any_batch(run: Run) -> None:
    task, learner = run.examples.task, run.learner
    for net in learner.modules.values():
        net.eval()
    texts = ["a red dog", "白い猫がいる", "fish", "zebra", "a white horse and two brown bears"]
    batch = np.stack([task.prepare({"text": text})["text"] for text in texts])
    with torch.inference_mode():
        whole = learner.embed({"text": torch.as_tensor(batch)})["text"]
        for n in range(len(texts)):
            alone = learner.embed({"text": torch.as_tensor(batch[n : n + 1])})["text"]
            torch.testing.assert_close(alone[0], whole[n], atol=1e-6, rtol=0)


def test_it_takes_texts_where_vectors_were_taken(data: Path) -> None:
    task = task_of(completed(reading(), data), ())
    assert task.inputs == {"image": Vector(IMAGE, optional=True), "text": Text(optional=True)}
    assert task.fields == {"image": Vector(IMAGE), "text": Text()}
    with pytest.raises(Rejected, match=r"^text: an empty text"):
        task.prepare({"text": "\u200b"})
    with pytest.raises(Rejected, match="image or text is needed"):
        task.prepare({})


def test_texts_of_equal_words_are_one_text(data: Path) -> None:
    """Also of words that are not known, or not read, which have no number of their own."""
    task = task_of(completed(reading(), data), ())
    image = np.ones(IMAGE, np.float32)
    texts = ["a zebra", "A  zebra!", "a lion", " ".join("a" * 9) + " dog", " ".join("a" * 9)]
    found = [task.example({"id": "1", "image": image, "text": text}, None) for text in texts]
    ids = [int(one["text_id"]) for one in found]
    assert ids[0] == ids[1]
    assert len(set(ids)) == 4
    assert np.array_equal(found[0]["text"], found[2]["text"])
    assert len({int(one["image_id"]) for one in found}) == 1


class _Stopped(BaseException):
    pass


def _four(load: Loader, numbers: range) -> Iterator[Arrays]:
    yield from in_threads(load, numbers[:4])
    raise _Stopped


def test_it_goes_on_as_if_it_had_never_stopped(data: Path, tmp_path: Path) -> None:
    recipe = completed(reading(memory=30, recipe={"steps": 8, "checkpoint_every": 3}), data)
    whole = run_said(recipe, data, tmp_path / "whole")
    whole.fit()
    with pytest.raises(_Stopped):
        run_said(recipe, data, tmp_path / "parts", Place(batches=_four)).fit()
    again = run_said(recipe, data, tmp_path / "parts")
    again.fit()
    assert again.lines == whole.lines
    for key, tensor in whole.nets["net"].state_dict().items():
        assert torch.equal(tensor, again.nets["net"].state_dict()[key]), key


def _fit(rank: int, folder: Path) -> Any:
    """What each of two workers does."""
    folder.mkdir(exist_ok=True)
    data = write_said(folder / f"{rank}.parquet")
    run = run_said(reading(), data, folder / "run", Place(rank, WORLD))
    run.fit()
    return run.nets["net"].state_dict(), run.lines


def test_two_workers_stay_alike(tmp_path: Path) -> None:
    (state, lines), (other, others) = both({"fit": _fit}, tmp_path)["fit"]
    assert lines == others
    assert all(torch.equal(state[name], other[name]) for name in state)
    assert lines[-1]["rsum"] > ENOUGH


def test_half_precision_reads_too(data: Path) -> None:
    task = task_of(completed(reading(), data), ())
    torch.manual_seed(0)
    learner = task.learner()
    batch = {"text": torch.as_tensor(task.prepare({"text": "a red dog"})["text"][None])}
    exact = learner.embed(batch)["text"]
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(learner.embed(batch)["text"], exact, atol=0.05, rtol=0)


@pytest.mark.parametrize(
    ("settings", "fault"),
    [
        ({"layout": "cca"}, "words: layout cca needs vectors of texts; leave one away"),
        ({"layout": "ridge"}, "words: layout ridge needs vectors of texts"),
        ({"layout": "linear", "first": "cca"}, "words: first cca needs vectors of texts"),
        ({"first": "ridge"}, "words: first ridge needs vectors of texts"),
        ({"dims": {"image": 4, "text": 4}}, "leave dims.text or --features text=URI away"),
        ({"words": {"vocabulary": ["a", "a"]}}, "vocabulary: a word stands there twice"),
        ({"words": {"size": 0}}, r"words\.size"),
        ({"words": {"longest": 0}}, r"words\.longest"),
    ],
)
@pytest.mark.parametrize("kind", [MatchingSettings, MmcSettings])
def test_settings_that_cannot_be_meant(
    settings: dict[str, Any], fault: str, kind: type[MatchingSettings]
) -> None:
    with pytest.raises(UserError, match=fault) as error:
        validate(kind, {"words": {}, **settings}, "recipe: settings")
    assert "\n" not in str(error.value)


def test_the_length_of_pictures_must_be_known() -> None:
    recipe = recipe_of(dims=False, words={})
    with pytest.raises(UserError, match=r"--features image=URI, or .* settings\.dims={image: N}$"):
        task_of(recipe, ())


def test_a_network_of_vectors_is_what_it_was() -> None:
    torch.manual_seed(0)
    net = task_of(recipe_of(layout="linear"), ()).learner().modules["net"]
    assert list(net.state_dict()) == [
        "solved", "first.image.weight", "first.image.bias", "first.text.weight", "first.text.bias",
    ]  # fmt: skip
