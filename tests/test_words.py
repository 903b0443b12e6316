"""Words over HTTP, without Ray: searched with, compared with pictures, and refused."""

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import inprocess
import numpy as np
import pytest
import words
from conftest import TinyNet
from fastapi.testclient import TestClient

from imgray.engine.extract import extract
from imgray.engine.index import build_index
from imgray.engine.search import SearchEngine, encode
from imgray.engine.settings import ExtractConfig, IndexConfig
from imgray.errors import UserError
from imgray.library import open_model
from imgray.retrieval.modalities import Blend
from imgray.serving.captions import LONGEST, MOST, Captions
from imgray.serving.settings import Batching, CaptionSettings
from imgray.training.joint import load_joint

TEXTS = ("a photograph of coffee", "rocket", "page text, jpg")


@dataclass(frozen=True)
class Made:
    """Photographs with captions, a model that matches them, and indexes with and without it."""

    photos: Path
    captions: Path
    model: str
    index: str
    deaf: str
    """An index without a joint part."""

    @property
    def columns(self) -> CaptionSettings:
        return CaptionSettings(table=str(self.captions), columns={"id": "image", "text": "caption"})


@pytest.fixture(scope="module")
def made(photos: Path, tiny_net: TinyNet, tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("words")
    features, layers = str(folder / "features"), [f"{tiny_net.name}.{n}" for n in ("mid", "high")]
    captions = words.write_captions(photos, folder / "captions.csv")
    with inprocess.jobs():
        extract(
            ExtractConfig(
                images=str(photos), output=features, extractor=layers, regions="pyramid",
                weights=[tiny_net.weights], size=tiny_net.size,
            )
        )  # fmt: skip
        model = words.train_matcher(folder, captions, features, tiny_net.name)
        for name, joint in (("index", model), ("deaf", None)):
            build_index(
                IndexConfig(
                    features=features, output=str(folder / name), feature=layers, shards=3,
                    codewords=[8], probes=[20], sample=300, dim=16, joint=joint,
                )
            )  # fmt: skip
    return Made(photos, captions, model, str(folder / "index"), str(folder / "deaf"))


@pytest.fixture(scope="module")
def client(made: Made) -> Iterator[TestClient]:
    batching = Batching(size=4, wait_ms=2)
    settings = {"captions": made.columns, "batching": batching, "limits": {"batch": 4}}
    with inprocess.client({}, made.index, 2, **settings) as found:
        yield found


@pytest.fixture(scope="module")
def deaf(made: Made) -> Iterator[TestClient]:
    """Of a service whose index knows no words, with a model that matches."""
    with inprocess.client({"matcher": made.model}, made.deaf) as found:
        yield found


@pytest.fixture(scope="module")
def engine(made: Made) -> SearchEngine:
    return SearchEngine(made.index)


@pytest.fixture(scope="module")
def picture(made: Made) -> bytes:
    return min(made.photos.rglob("*.jpg")).read_bytes()


def _ask(client: TestClient, path: str, **sent: Any) -> Any:
    answer = client.post(path, **sent)
    assert answer.status_code == 200, answer.text
    return answer.json()


def _rows(answer: Any) -> list[tuple[str, float]]:
    return [(row["id"], row["score"]) for row in answer["results"]]


@pytest.mark.parametrize("fusion", ["average", "adaptive"])
@pytest.mark.parametrize("weights", [{}, {"image": 0.3}, {"text": 0}, {"image": 0, "text": 2}])
@pytest.mark.parametrize("text", TEXTS)
def test_a_search_is_that_of_the_engine_to_the_digit(
    client: TestClient, engine: SearchEngine, picture: bytes, text: str, weights: Any, fusion: Any
) -> None:
    """Over two groups of three shards, with a picture and words, as with either alone."""
    blend, asked = Blend(weights, fusion), {"modalities": weights, "fusion": fusion, "top": 7}
    expected = engine.search(picture, text, top=7, blend=blend).results()
    form = {name: json.dumps(v) if isinstance(v, dict) else v for name, v in asked.items()}
    files = {"image": ("x", picture)}
    found = _ask(client, "/v1/search", data={"text": text, **form}, files=files)
    assert _rows(found) == [(one.id, one.score) for one in expected]
    in_query = _ask(client, "/v1/search", params={"text": text, **form}, content=picture)
    assert in_query == found


@pytest.mark.parametrize("text", TEXTS)
def test_words_alone_rank_by_the_joint_part(
    client: TestClient, engine: SearchEngine, text: str
) -> None:
    expected = engine.search(text=text, top=5, prefix="a/").results()
    assert {one.id[:2] for one in expected} == {"a/"}
    found = _ask(client, "/v1/search", json={"text": text, "top": 5, "prefix": "a/"})
    assert _rows(found) == [(one.id, one.score) for one in expected]
    assert found["shards"] == {"total": 3, "answered": 3, "missing": []}
    assert _ask(client, f"/v1/search?top=5&prefix=a/&text={text}") == found


def test_one_group_of_shards_answers_as_several(client: TestClient, made: Made) -> None:
    id = _ask(client, "/v1/search", json={"text": TEXTS[0]})["results"][0]["id"]
    with inprocess.client({}, made.index, captions=made.columns) as one:
        for asked in ({"text": TEXTS[0]}, {"text": TEXTS[1], "id": id}, {"id": id, "top": 3}):
            assert _ask(one, "/v1/search", json=asked) == _ask(client, "/v1/search", json=asked)


def test_a_batch_answers_pictures_then_ids_then_texts(client: TestClient, picture: bytes) -> None:
    id = _ask(client, "/v1/search", content=picture)["results"][0]["id"]
    form = {"text": [TEXTS[1], "qwertyuiop"], "id": id, "top": "2"}
    answer = _ask(client, "/v1/search/batch", data=form, files={"image": ("x", picture)})
    first, second, third, refused = answer["answers"]
    assert first == second == _ask(client, "/v1/search?top=2", content=picture)
    assert third == _ask(client, "/v1/search", json={"text": TEXTS[1], "top": 2})
    assert refused["error"]["field"] == "text"
    as_json = _ask(client, "/v1/search/batch", json={"ids": [id], "texts": [TEXTS[1]], "top": 2})
    assert as_json["answers"] == [second, third]


def test_captions_stand_beside_the_scores(client: TestClient, made: Made) -> None:
    for row in _ask(client, "/v1/search", json={"text": TEXTS[0]})["results"]:
        name = Path(row["id"]).stem.replace("-", " ")
        assert row["captions"][0] == f"a photograph of {name}"
        assert len(row["captions"]) == 2


# --- matching ------------------------------------------------------------------------------------


def _expected(made: Made, pictures: list[bytes], texts: list[str]) -> np.ndarray:
    """Of each picture with each text, as the library's model says it."""
    model = open_model(made.model)
    records = [{"image": one, "text": text} for one in pictures for text in texts]
    scores = [found.row["score"] for found in model.predict(records)]
    return np.reshape(scores, (len(pictures), len(texts)))


def test_pictures_are_compared_with_texts(client: TestClient, deaf: TestClient, made: Made) -> None:
    """By a served model and by the index's own part; as files, by id, and mixed."""
    paths = sorted(made.photos.rglob("*.jpg"))[:3]
    pictures = [path.read_bytes() for path in paths]
    ids = [path.relative_to(made.photos).as_posix() for path in paths]
    expected = _expected(made, pictures, [*TEXTS])
    files, form = [("image", ("x", one)) for one in pictures], {"text": [*TEXTS]}
    for asked in (client, deaf):
        as_files = _ask(asked, "/v1/match", files=files, data=form)
        np.testing.assert_allclose(as_files["scores"], expected, atol=2e-3)
        as_ids = _ask(asked, "/v1/match", json={"ids": ids, "texts": [*TEXTS]})
        mixed = _ask(asked, "/v1/match", files=files[:1], data={**form, "id": ids[1:]})
        np.testing.assert_allclose(as_ids["scores"], as_files["scores"], atol=1e-5)
        np.testing.assert_allclose(mixed["scores"], as_files["scores"], atol=1e-5)
        assert as_files["fingerprint"] == load_joint(made.model).fingerprint
        assert as_files["model"] == ("matcher" if asked is deaf else None)
    named = _ask(deaf, "/v1/match?model=matcher&text=rocket", content=pictures[0])
    assert named["model"] == "matcher"


def test_a_text_is_embedded_as_the_model_does(client: TestClient, made: Made) -> None:
    joint, index = load_joint(made.model), client.get("/v1/index").json()
    assert index["joint"] == {"fingerprint": joint.fingerprint, "dim": joint.dim}
    for text in TEXTS:
        found = _ask(client, "/v1/embed", json={"text": text})["features"]["joint"]
        np.testing.assert_allclose(found["vectors"], joint.texts([text]), atol=1e-6)
        assert (found["dim"], found["fingerprint"]) == (joint.dim, joint.fingerprint)


def test_the_score_of_an_image_is_that_of_its_embedding(
    client: TestClient, engine: SearchEngine, made: Made
) -> None:
    """What a search by words gives, but for the code of the index."""
    text = TEXTS[0]
    ids = [
        row["id"] for row in _ask(client, "/v1/search", json={"text": text, "top": 3})["results"]
    ]
    data = {id: (made.photos / id).read_bytes() for id in ids}
    joint = load_joint(made.model)
    exact = joint.pictures(encode(engine.extractor, data)) @ joint.texts([text])[0]
    found = _ask(client, "/v1/match", json={"ids": ids, "texts": [text]})["scores"]
    np.testing.assert_allclose(np.ravel(found), exact, atol=1e-5)


# --- what is refused -----------------------------------------------------------------------------

X = {"image": ("x", b"no picture")}
MANY = [f"word {n}" for n in range(5)]
BAD: dict[str, tuple[str, dict[str, Any], int, str | None]] = {
    "nothing": ("search", {"json": {}}, 422, "image"),
    "empty": ("search", {"json": {"text": ""}}, 422, "text"),
    "blank": ("search", {"params": {"text": " \n\t"}}, 422, "text"),
    "100,000 characters": ("search", {"files": {"text": (None, "x" * 100_000)}}, 422, "text"),
    "a number": ("search", {"json": {"text": 5}}, 422, "text"),
    "a list": ("search", {"json": {"text": ["a"]}}, 422, "text"),
    "a surrogate": ("search", {"content": b'{"text": "\\ud800"}'}, 400, "body"),
    "unknown words": ("search", {"json": {"text": "qwertyuiop"}}, 422, "text"),
    "twice": ("search", {"params": {"text": ["a", "b"]}}, 422, "text"),
    "a file for a text": ("search", {"files": {"text": ("x", b"a")}}, 422, "text"),
    "no modality": ("search", {"json": {"text": "a", "modalities": {"sound": 1}}}, 422, None),
    "negative": ("search", {"json": {"text": "a", "modalities": {"text": -1}}}, 422, None),
    "no weight": ("search", {"json": {"text": "a", "modalities": {"text": 0}}}, 422, "modalities"),
    "no fusion": ("search", {"json": {"text": "a", "fusion": "best"}}, 422, "fusion"),
    "no picture": ("search", {"data": {"text": "a"}, "files": X}, 422, "image"),
    "too many": ("search/batch", {"json": {"texts": MANY}}, 422, "image"),
    "one is blank": ("search/batch", {"json": {"texts": ["a", " "]}}, 422, "texts.1"),
    "no list": ("search/batch", {"json": {"texts": "a"}}, 422, "texts"),
    "one of a list": ("search/batch", {"json": {"text": "a"}}, 422, "text"),
    "both lists": ("search/batch?text=a", {"json": {"texts": ["b"]}}, 422, "texts"),
    "a picture and a text": ("embed", {"params": {"text": "a"}, "content": b"x"}, 422, "text"),
    "no text": ("match", {"content": b"x"}, 422, "text"),
    "no image": ("match", {"json": {"texts": ["a"]}}, 422, "image"),
    "too many texts": ("match", {"params": {"text": MANY}, "content": b"x"}, 422, "text"),
    "a broken picture": ("match", {"data": {"text": "rocket"}, "files": X}, 422, "image.0"),
    "no id": ("match", {"json": {"ids": ["no"], "texts": ["rocket"]}}, 404, "ids.0"),
    "no model": ("match?model=x", {"json": {"ids": ["no"], "texts": ["a"]}}, 422, "model"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused_by_its_name(client: TestClient, name: str) -> None:
    path, sent, status, field = BAD[name]
    if "content" in sent and sent["content"].startswith(b"{"):
        sent = {**sent, "headers": {"Content-Type": "application/json"}}
    answer = client.post(f"/v1/{path}", **sent)
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert field in (None, error["field"]), error
    assert "\n" not in error["message"]
    assert len(answer.text) < 300


@pytest.mark.parametrize(
    ("path", "sent"),
    [
        ("search", {"text": "a"}),
        ("search", {"text": "a", "id": "a/x.jpg"}),
        ("embed", {"text": "a"}),
    ],
)
def test_an_index_without_a_joint_part_refuses_words(
    deaf: TestClient, made: Made, path: str, sent: dict[str, str]
) -> None:
    id = next(made.photos.rglob("a/*.jpg")).relative_to(made.photos).as_posix()
    sent = sent | ({"id": id} if "id" in sent else {})
    answer = deaf.post(f"/v1/{path}", json=sent)
    assert (answer.status_code, answer.json()["error"]["field"]) == (422, "text")
    assert "imgray index --joint" in answer.json()["error"]["message"]
    [of_batch] = _ask(deaf, "/v1/search/batch", json={"texts": ["a"]})["answers"]
    assert of_batch["error"]["field"] == "text"
    assert deaf.get("/v1/index").json()["joint"] is None


def test_words_come_and_go_with_the_index(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    """As it is swapped: the deployment that reads them is there all the time."""
    monkeypatch.setenv("IMGRAY_ADMIN_KEYS", "a-key")
    with inprocess.client({}, made.deaf) as client:
        for uri, status in ((made.index, 200), (made.deaf, 422), (made.index, 200)):
            swap = {"json": {"index": uri}, "headers": {"X-API-Key": "a-key"}}
            assert bool(_ask(client, "/v1/index", **swap)["joint"]) == (status == 200)
            found = client.post("/v1/search", json={"text": TEXTS[0]})
            assert found.status_code == status, found.text


def test_without_words_no_torch_is_loaded() -> None:
    code = "import sys, imgray.serving.texts; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_nothing_to_match_by_is_told(made: Made) -> None:
    with inprocess.client({}, made.deaf) as neither:
        answer = neither.post("/v1/match", json={"ids": ["x"], "texts": ["a"]})
    assert answer.status_code == 404
    assert "no model for match" in answer.json()["error"]["message"]


def test_a_picture_whose_features_the_index_lacks_is_not_matched(
    made: Made, tiny_net: TinyNet, tmp_path: Path, picture: bytes
) -> None:
    features = str(Path(made.index).parent / "features")
    with inprocess.jobs():
        build_index(
            IndexConfig(
                features=features, output=str(tmp_path / "i"), feature=[f"{tiny_net.name}.mid"],
                codewords=[8], sample=300, dim=16, joint=made.model,
            )
        )  # fmt: skip
    with inprocess.client({}, str(tmp_path / "i")) as found:
        answer = found.post("/v1/match?text=rocket", content=picture)
        assert (answer.status_code, answer.json()["error"]["field"]) == (422, "image.0")
        assert f"needs {tiny_net.name}.high" in answer.json()["error"]["message"]
        assert _ask(found, "/v1/search", json={"text": "rocket"})["results"]


# --- captions ------------------------------------------------------------------------------------


def test_captions_are_found_by_id_whatever_their_order(tmp_path: Path) -> None:
    random = np.random.default_rng(3)
    ids = [f"{n}é.jpg" for n in random.integers(0, 30, 200)]
    rows = [f"{id},{n} said" for n, id in enumerate(ids)]
    path = tmp_path / "t.csv"
    path.write_text("\n".join(["id,text", *rows, "long.jpg," + "x" * 999, "none.jpg,"]), "utf-8")
    captions = Captions.of(CaptionSettings(table=str(path)))
    for id in (*set(ids), "no", ""):
        expected = [f"{n} said" for n, one in enumerate(ids) if one == id][:MOST]
        assert captions.about(id) == expected, id
    assert [len(one) for one in captions.about("long.jpg")] == [LONGEST + 1]
    assert captions.about("none.jpg") == []
    assert Captions.of(None).about("x") == []


@pytest.mark.parametrize(
    ("head", "columns", "message"),
    [
        ("id,caption", {}, "no column 'text'"),
        ("name,text", {}, "no column 'id'"),
        ("id,text", {"id": "image"}, "image"),
        ("id,text", {"words": "text"}, "nothing is called 'words'"),
    ],
)
def test_a_table_that_holds_no_captions_is_named(
    tmp_path: Path, head: str, columns: dict[str, str], message: str
) -> None:
    path = tmp_path / "t.csv"
    path.write_text(f"{head}\na,b\n")
    with pytest.raises(UserError, match=message) as error:
        Captions.of(CaptionSettings(table=str(path), columns=columns))
    assert "t.csv" in str(error.value) or "--columns" in str(error.value)
