"""The service over HTTP: what it answers equals what the jobs answer, and bad input ends in 4xx."""

import base64
import io
import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import requests
import torch
from PIL import Image
from service import ADMIN, KINDS, Artifacts, Service

from imgray.artifacts.folder import Folder
from imgray.artifacts.manifest import read_manifest
from imgray.engine.search import SearchEngine, encode
from imgray.features.columns import columns_of, from_table
from imgray.library import open_model
from imgray.retrieval.modalities import Blend
from imgray.training.joint import load_joint
from imgray.training.models import load_model

pytestmark = pytest.mark.slow
ADMINS = {"Authorization": f"Bearer {ADMIN}"}


@pytest.fixture(scope="module")
def engine(artifacts: Artifacts) -> SearchEngine:
    return SearchEngine(artifacts.indexes[0])


@pytest.fixture(scope="module")
def pictures(artifacts: Artifacts) -> dict[str, bytes]:
    """The collection by id."""
    files = sorted(path for path in artifacts.images.rglob("*") if path.is_file())
    return {path.relative_to(artifacts.images).as_posix(): path.read_bytes() for path in files}


def _post(url: str, path: str, data: bytes, **options: Any) -> Any:
    """The answer to a picture in the body, as JSON."""
    answer = requests.post(f"{url}{path}", data, params=options, timeout=60)
    assert answer.status_code == 200, answer.text
    return answer.json()


def _ranked(answer: Any) -> list[tuple[str, float]]:
    return [(row["id"], row["score"]) for row in answer["results"]]


def _expected(engine: SearchEngine, data: bytes, top: int, **options: Any) -> list[Any]:
    vectors = engine.extractor.run([engine.extractor.prepare(data)])
    stored = {n: v.astype(np.float16).astype(np.float32) for n, v in vectors.items()}
    hits = engine.index.search(stored, top, **options)[0]
    return [(id, round(float(s), 6)) for id, s in zip(hits.ids, hits.scores, strict=True)]


def test_a_search_ranks_as_the_job_does(
    served: str, engine: SearchEngine, pictures: dict[str, bytes]
) -> None:
    for data in list(pictures.values())[::9]:
        expected = engine.search_images({"query": data}, 7)[0]
        answer = _post(served, "/v1/search", data, top=7)
        assert [row["id"] for row in answer["results"]] == expected.ids
        found = [row["score"] for row in answer["results"]]
        np.testing.assert_allclose(found, expected.scores, atol=1e-5)
        assert answer["version"] == engine.manifest.digest
        assert answer["shards"] == {"total": 2, "answered": 2, "missing": []}


def test_bytes_a_form_and_an_id_are_one_question(served: str, pictures: dict[str, bytes]) -> None:
    id, data = next((id, data) for id, data in pictures.items() if "/" in id)
    weights = {"test_efficientnet.mid": 0.5}
    as_bytes = _post(served, "/v1/search", data, top=5, weights=json.dumps(weights))
    form = {"top": "5", "weights": json.dumps(weights)}
    files = {"image": ("any name", data)}
    as_form = requests.post(f"{served}/v1/search", form, files=files, timeout=60).json()
    fields = {"id": id, "top": 5, "weights": weights}
    as_id = requests.post(f"{served}/v1/search", json=fields, timeout=60).json()
    assert as_bytes == as_form == as_id
    assert as_id["results"][0]["id"] == id


def test_weights_and_a_prefix_reach_the_index(
    served: str, engine: SearchEngine, pictures: dict[str, bytes]
) -> None:
    data = next(iter(pictures.values()))
    weights = {"test_efficientnet.mid": 0.0, "test_efficientnet.high": 2.0}
    for options in ({"weights": weights}, {"prefix": "b/"}, {"weights": weights, "prefix": "a/"}):
        sent = {k: json.dumps(v) if k == "weights" else v for k, v in options.items()}
        found = _ranked(_post(served, "/v1/search", data, top=9, **sent))
        expected = _expected(engine, data, 9, **options)
        assert [id for id, _ in found] == [id for id, _ in expected]
        np.testing.assert_allclose([s for _, s in found], [s for _, s in expected], atol=1e-5)


def test_a_batch_answers_each(served: str, pictures: dict[str, bytes]) -> None:
    (id, data), *_ = pictures.items()
    files = [("image", data), ("image", b"no picture")]
    form = {"ids": json.dumps([id]), "top": "3"}
    answer = requests.post(f"{served}/v1/search/batch", form, files=files, timeout=60).json()
    first, broken, third = answer["answers"]
    assert first == third == _post(served, "/v1/search", data, top=3)
    assert broken["error"]["field"] == "image"


TEXTS = ("a photograph of coffee", "rocket, jpg")


def test_words_rank_as_the_job_does(
    served: str, engine: SearchEngine, artifacts: Artifacts, pictures: dict[str, bytes]
) -> None:
    """Alone, with a picture and in a batch; and pictures are compared with them."""
    (id, data), *_ = pictures.items()
    blend = Blend({"text": 2}, "adaptive")
    for text in TEXTS:
        as_json = {"text": text, "top": 7}
        found = requests.post(f"{served}/v1/search", json=as_json, timeout=60).json()
        expected = engine.search(text=text, top=7).results()
        assert _ranked(found) == [(one.id, one.score) for one in expected]
        assert all(len(row["captions"]) == 2 for row in found["results"])
        form = {"text": text, "top": "7", "modalities": '{"text": 2}', "fusion": "adaptive"}
        both = requests.post(f"{served}/v1/search", form, files={"image": data}, timeout=60).json()
        expected = engine.search(data, text, top=7, blend=blend).results()
        assert [row["id"] for row in both["results"]] == [one.id for one in expected]
    of_batch = {"texts": [*TEXTS], "ids": [id], "top": 7}
    answers = requests.post(f"{served}/v1/search/batch", json=of_batch, timeout=60).json()
    assert answers["answers"][2] == found
    asked = {"texts": [*TEXTS], "ids": [id]}
    [scores] = requests.post(f"{served}/v1/match", json=asked, timeout=60).json()["scores"]
    joint = load_joint(f"{artifacts.indexes[0]}/joint/model")
    vectors = joint.pictures(encode(engine.extractor, {id: data}))
    np.testing.assert_allclose(scores, (vectors @ joint.texts(TEXTS).T)[0], atol=1e-4)


def test_an_embedding_is_the_extracted_one(
    served: str, artifacts: Artifacts, pictures: dict[str, bytes]
) -> None:
    folder = Folder(artifacts.features)
    manifest = read_manifest(folder, "features")
    table = pq.read_table([folder.path(e.name) for e in manifest.named("part-")])
    ids = table["id"].to_pylist()
    for id in list(pictures)[::11]:
        found = _post(served, "/v1/embed", pictures[id])["features"]
        for name, info in columns_of(manifest).items():
            stored = from_table(table, name, info)[ids.index(id)]
            vectors = np.array(found[name]["vectors"])
            assert vectors.shape == stored.shape
            cosines = (vectors * stored).sum(1) / np.linalg.norm(vectors, axis=1)
            assert (cosines / np.linalg.norm(stored, axis=1)).min() > 0.9999
            assert found[name]["fingerprint"] == info.fingerprint


def _predicted(uri: str, data: bytes) -> Any:
    model = load_model(uri)
    arrays = model.task.prepare({"image": data})
    with torch.inference_mode():
        batch = {name: torch.tensor(value)[None] for name, value in arrays.items()}
        return model.learner.predict(batch)[0]


def test_models_answer_as_predict_does(
    served: str, artifacts: Artifacts, pictures: dict[str, bytes]
) -> None:
    data = next(iter(pictures.values()))
    row = _predicted(artifacts.models["classify"], data).row
    classes = _post(served, "/v1/classify", data)["classes"]
    assert [one["name"] for one in classes] == row["labels"]
    np.testing.assert_allclose([one["score"] for one in classes], row["scores"], atol=1e-4)
    for kind in ("segment", "edges"):
        expected = _predicted(artifacts.models[kind], data)
        headers = {"Accept": "image/png"}
        answer = requests.post(f"{served}/v1/{kind}", data, headers=headers, timeout=60)
        assert answer.headers["content-type"] == "image/png"
        mask = np.asarray(Image.open(io.BytesIO(answer.content)))
        assert mask.shape == expected.picture.shape
        assert (mask != expected.picture).mean() < 0.01
        described = _post(served, f"/v1/{kind}", data)
        assert (described["height"], described["width"]) == mask.shape
        assert described["picture"] is None
        inlined = _post(served, f"/v1/{kind}", data, picture="true")["picture"]
        assert base64.b64decode(inlined.removeprefix("data:image/png;base64,")) == answer.content
    shares = {one["name"]: one["share"] for one in _post(served, "/v1/segment", data)["classes"]}
    assert sum(shares.values()) == pytest.approx(1, abs=1e-4)


def test_a_model_of_several_inputs_is_asked_by_files_and_by_ids(
    served: str, artifacts: Artifacts, pictures: dict[str, bytes]
) -> None:
    (one, first), (other, second), *_ = pictures.items()
    url, fields = f"{served}/v1/models/pairs", {"caption": "a b", "style": [1, 0, -1]}
    expected = open_model(artifacts.models["pairs"]).predict(first=first, second=second, **fields)
    as_ids = requests.post(url, json={"first": one, "second": other, **fields}, timeout=60).json()
    form = {"caption": "a b", "style": "[1, 0, -1]"}
    files = {"first": first, "second": second}
    as_files = requests.post(url, form, files=files, timeout=60).json()
    mixed = requests.post(url, {"first": one, **form}, files={"second": second}, timeout=60).json()
    assert as_ids == as_files == mixed
    verdict = as_ids["outputs"]["verdict"]
    assert verdict == pytest.approx(expected.row, abs=1e-5)
    headers = {"Accept": "image/png"}
    painted = requests.post(url, form, files=files, headers=headers, timeout=60)
    np.testing.assert_array_equal(
        np.asarray(Image.open(io.BytesIO(painted.content))), expected.picture
    )


def test_an_indexed_image_is_shown_at_a_bounded_size(
    served: str, pictures: dict[str, bytes]
) -> None:
    id = next(id for id in pictures if id.startswith("b/deep/"))
    answer = requests.get(f"{served}/v1/images/{id}", params={"size": 50}, timeout=30)
    picture = Image.open(io.BytesIO(answer.content))
    assert (picture.format, max(picture.size)) == ("JPEG", 50)


def test_the_collection_is_listed_in_pages(served: str, pictures: dict[str, bytes]) -> None:
    pages = [
        requests.get(f"{served}/v1/images", {"offset": at, "limit": 15}, timeout=30).json()["ids"]
        for at in range(0, 60, 15)
    ]
    assert sorted(id for page in pages for id in page) == sorted(pictures)
    assert [len(page) for page in pages] == [15, 15, 10, 0]


def test_the_service_describes_itself(served: str, artifacts: Artifacts) -> None:
    index = requests.get(f"{served}/v1/index", timeout=30).json()
    assert (index["images"], index["shards"]) == (40, 2)
    assert 0 <= index["report"]["recall"]["recall@10"] <= 1
    models = requests.get(f"{served}/v1/models", timeout=30).json()["models"]
    assert {m["name"]: m["kind"] for m in models} == {**{k: k for k in KINDS}, "pairs": ""}
    for model in models:
        assert model["fingerprint"] == load_model(artifacts.models[model["name"]]).fingerprint
    paths = requests.get(f"{served}/openapi.json", timeout=30).json()["paths"]
    assert {"/v1/search", "/v1/classify", "/v1/embed", "/v1/images/{id}"} <= paths.keys()


JSON = {"Content-Type": "application/json"}
FORM = {"Content-Type": "multipart/form-data; boundary=x"}
SECOND = b'{"caption": "a", "second": "../x"}'
LARGE = b"\xff" * (50 * 2**20)
BAD = {
    "empty": ("POST", "/v1/search", b"", {}, 422, "image"),
    "no picture": ("POST", "/v1/search", b"not an image", {}, 422, "image"),
    "50 MB": ("POST", "/v1/classify", LARGE, {}, 413, "body"),
    "bad multipart": ("POST", "/v1/edges", b"--x\r\nrubbish", FORM, (400, 422), None),
    "bad JSON": ("POST", "/v1/search", b"{", JSON, 400, "body"),
    "deep JSON": ("POST", "/v1/search", b"[" * 100_000, JSON, 400, "body"),
    "a JSON list": ("POST", "/v1/search", b"[]", JSON, 422, "body"),
    "NaN": ("POST", "/v1/search", b'{"id": "x", "weights": {"a": NaN}}', JSON, 422, "weights.a"),
    "negative": ("POST", "/v1/search?weights=%7B%22a%22:-1%7D", b"x", {}, 422, "weights.a"),
    "no feature": ("POST", "/v1/search?weights=%7B%22a%22:1%7D", b"x", {}, 422, "weights.a"),
    "top": ("POST", "/v1/search?top=1000000000", b"x", {}, 422, "top"),
    "unknown field": ("POST", "/v1/search?tops=3", b"x", {}, 422, "tops"),
    "blank": ("POST", "/v1/search?text=%20", b"", {}, 422, "text"),
    "unknown words": ("POST", "/v1/search?text=qwertyuiop", b"", {}, 422, "text"),
    "a sound": (
        "POST",
        "/v1/search",
        b'{"text": "a", "modalities": {"sound": 1}}',
        JSON,
        422,
        None,
    ),
    "nothing to match": ("POST", "/v1/match", b"{}", JSON, 422, "image"),
    "unknown model": ("POST", "/v1/classify?model=edges", b"x", {}, 422, "model"),
    "wrong method": ("GET", "/v1/search", b"", {}, 405, None),
    "no route": ("GET", "/v1/nothing", b"", {}, 404, None),
    "an id with ..": ("GET", "/v1/images/..%2F..%2Fetc%2Fpasswd", b"", {}, 404, "id"),
    "an unknown id": ("POST", "/v1/edges", b'{"id": "../x"}', JSON, 404, "id"),
    "a size": ("GET", "/v1/images/x?size=100000", b"", {}, 422, "size"),
    "no admin": ("POST", "/v1/index", b'{"index": "/tmp"}', JSON, 401, "Authorization"),
    "no model": ("POST", "/v1/models/none", b"x", {}, 404, "model"),
    "not all inputs": ("POST", "/v1/models/pairs", b'{"caption": "a"}', JSON, 422, "first"),
    "no id of the second": ("POST", "/v1/models/pairs", SECOND, JSON, 404, "second"),
    "empty batch": ("POST", "/v1/search/batch", b"{}", JSON, 422, "image"),
}


def test_bad_input_is_refused_and_the_replicas_live(running: Service) -> None:
    before = running.replicas()
    assert {"service", "encoder", "texts", "registry", "shards-0", "shards-1"} <= before.keys()
    for name, (method, path, body, headers, status, field) in BAD.items():
        answer = requests.request(
            method, running.url + path, data=body, headers=headers, timeout=30
        )
        wanted = status if isinstance(status, tuple) else (status,)
        assert answer.status_code in wanted, (name, answer.text)
        fault = answer.json()["error"]
        assert field is None or fault["field"] == field, (name, fault)
        assert "Traceback" not in answer.text
    assert running.replicas() == before


def test_without_keys_only_its_own_site_is_answered(served: str) -> None:
    foreign = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"}
    for path in ("/v1/images", "/v1/search", "/openapi.json", "/"):
        for headers, status in (({"Host": "evil.example:8000"}, 421), (foreign, 403)):
            answer = requests.get(served + path, headers=headers, timeout=30)
            assert answer.status_code == status, (path, answer.text)
            assert answer.headers["X-Content-Type-Options"] == "nosniff"
            assert "IMGRAY_API_KEYS" in answer.json()["error"]["message"]


def test_a_bomb_is_refused_by_its_header(served: str) -> None:
    buffer = io.BytesIO()
    Image.new("1", (30_000, 30_000)).save(buffer, "PNG")
    for path in ("search", "classify", "models/segment"):
        answer = requests.post(f"{served}/v1/{path}", buffer.getvalue(), timeout=30)
        assert answer.status_code == 422
        assert "pixels" in answer.json()["error"]["message"]


def _swap(url: str, uri: str) -> None:
    """Swap; from now on every answer is of the version at this URI."""
    answer = requests.post(f"{url}/v1/index", json={"index": uri}, headers=ADMINS, timeout=60)
    assert answer.status_code == 200, answer.text
    assert answer.json()["version"] == read_manifest(Folder(uri), "index").digest
    after = requests.get(f"{url}/v1/index", timeout=30).json()
    assert after["version"] == answer.json()["version"]


def test_the_index_is_swapped_under_load(
    served: str, artifacts: Artifacts, pictures: dict[str, bytes]
) -> None:
    """Every answer under load is wholly that of the version it names."""
    data = next(iter(pictures.values()))
    engines = {e.manifest.digest: e for e in map(SearchEngine, artifacts.indexes)}
    expected = {digest: _expected(e, data, 10) for digest, e in engines.items()}
    assert len({json.dumps(rows) for rows in expected.values()}) == 2
    done, answers = threading.Event(), []

    def ask() -> None:
        while not done.is_set():
            answers.append(requests.post(f"{served}/v1/search", data, timeout=60))

    with ThreadPoolExecutor(3) as pool:
        asking = [pool.submit(ask) for _ in range(3)]
        try:
            for uri in (artifacts.indexes[1], artifacts.indexes[0], *artifacts.indexes[::-1]):
                _swap(served, uri)
                time.sleep(0.5)
        finally:
            done.set()
    for one in asking:
        one.result()
    assert {answer.status_code for answer in answers} == {200}
    found = [answer.json() for answer in answers]
    assert {one["version"] for one in found} == engines.keys()
    for one in found:
        rows = expected[one["version"]]
        assert [row["id"] for row in one["results"]] == [id for id, _ in rows]
        np.testing.assert_allclose(
            [row["score"] for row in one["results"]], [s for _, s in rows], atol=1e-5
        )


def test_an_index_that_cannot_be_served_changes_nothing(
    served: str, artifacts: Artifacts, tmp_path: Path
) -> None:
    before = requests.get(f"{served}/v1/index", timeout=30).json()["version"]
    for uri in (str(tmp_path), artifacts.features, _damaged(artifacts.indexes[1], tmp_path / "d")):
        swap = {"index": uri}
        answer = requests.post(f"{served}/v1/index", json=swap, headers=ADMINS, timeout=120)
        assert (answer.status_code, answer.json()["error"]["field"]) == (422, "index"), answer.text
        assert requests.get(f"{served}/v1/index", timeout=30).json()["version"] == before


def _damaged(uri: str, folder: Path) -> str:
    """A copy of an index with one bit of a shard turned."""
    folder.mkdir()
    for path in Path(uri).rglob("*"):
        if path.is_file():
            data = bytearray(path.read_bytes())
            if path.name == "shard-00001.faiss":
                data[len(data) // 2] ^= 1
            (folder / path.relative_to(uri)).parent.mkdir(parents=True, exist_ok=True)
            (folder / path.relative_to(uri)).write_bytes(data)
    return str(folder)


def test_an_image_that_the_collection_lost_is_no_fault_of_the_service(
    served: str, artifacts: Artifacts, pictures: dict[str, bytes]
) -> None:
    id = next(id for id in pictures if id.startswith("a/"))
    path = artifacts.images / id
    path.rename(path.with_suffix(".lost"))
    try:
        for answer in (
            requests.get(f"{served}/v1/images/{id}", timeout=30),
            requests.post(f"{served}/v1/search", json={"id": id}, timeout=30),
        ):
            assert (answer.status_code, answer.json()["error"]["field"]) == (503, "id")
            assert str(artifacts.images) not in answer.text
    finally:
        path.with_suffix(".lost").rename(path)
