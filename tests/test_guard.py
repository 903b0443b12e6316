"""Keys, limits and errors of the service, without Ray: an application of one route."""

import asyncio
from pathlib import Path

import pytest
from fastapi import FastAPI, Request
from fastapi.testclient import TestClient

from imgray.errors import UserError
from imgray.serving.app import build
from imgray.serving.guard import Admission, Counted, Keys, Refusal, answer_errors, check_key, whole
from imgray.serving.metrics import metrics
from imgray.serving.options import SearchOptions
from imgray.serving.requests import read
from imgray.serving.settings import ServiceSettings

LONGEST = 20_000
KEY = {"X-API-Key": "one"}


def _client(keys: Keys) -> TestClient:
    app = FastAPI()
    app.add_middleware(Counted)
    answer_errors(app)

    @app.post("/")
    async def answer(request: Request) -> dict[str, object]:
        check_key(request, (keys,))
        options, pictures = await read(request, SearchOptions, LONGEST, most=2)
        return {**options.model_dump(), "bytes": [len(one) for one in pictures]}

    @app.get("/")
    async def shown() -> None:
        return None

    @app.post("/fails")
    async def fails() -> None:
        raise RuntimeError("a secret of the house")

    return TestClient(app, raise_server_exceptions=False)


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> TestClient:
    file = tmp_path / "keys"
    file.write_text("# of the team\nfrom-file\n\n")
    monkeypatch.setenv("IMGRAY_API_KEYS", "one, two")
    return _client(Keys(str(file), "IMGRAY_API_KEYS"))


@pytest.mark.parametrize("key", ["one", "two", "from-file"])
def test_every_key_opens_in_either_header(client: TestClient, key: str) -> None:
    for headers in ({"Authorization": f"Bearer {key}"}, {"X-API-Key": key}):
        assert client.post("/", content=b"x", headers=headers).status_code == 200


@pytest.mark.parametrize("key", ["", "On", "one, two", "# of the team", "three", "öne"])
def test_no_other_key_does(client: TestClient, key: str) -> None:
    sent = f"Bearer {key}".encode()
    answer = client.post("/", content=b"x", headers={b"Authorization": sent})
    assert (answer.status_code, answer.json()["error"]["field"]) == (401, "Authorization")
    assert answer.headers["WWW-Authenticate"] == "Bearer"


def test_no_keys_are_none_and_a_lost_file_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("IMGRAY_API_KEYS", raising=False)
    none = Keys(None, "IMGRAY_API_KEYS")
    assert not none
    assert _client(none).post("/", content=b"x", headers=KEY).status_code == 401
    with pytest.raises(UserError, match="/no/such/file"):
        Keys("/no/such/file", "IMGRAY_API_KEYS")


def test_nothing_is_built_without_keys_that_is_not_open(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("IMGRAY_API_KEYS", raising=False)
    with pytest.raises(UserError, match="set IMGRAY_API_KEYS or keys_file, or open: true"):
        build(ServiceSettings(index="/no/such/index"))
    with pytest.raises(UserError, match="/no/such/index"):
        build(ServiceSettings(index="/no/such/index", open=True))


@pytest.mark.parametrize("size", [LONGEST, LONGEST + 1])
def test_a_body_is_bounded_declared_or_streamed(client: TestClient, size: int) -> None:
    def parts() -> object:
        yield from (b"x" * 100 for _ in range(size // 100))
        yield b"x" * (size % 100)

    for content in (b"x" * size, parts()):
        answer = client.post("/", content=content, headers=KEY)  # type: ignore[arg-type]
        if size > LONGEST:
            assert (answer.status_code, answer.json()["error"]["field"]) == (413, "body")
        else:
            assert answer.json()["bytes"] == [size]


def test_a_request_is_read_as_often_as_wanted() -> None:
    async def receive() -> dict[str, object]:
        return {"type": "http.request", "body": b"abc", "more_body": False}

    async def twice() -> list[bytes]:
        request = await whole(Request({"type": "http", "headers": []}, receive), 3)
        return [await request.body(), await request.body()]

    assert asyncio.run(twice()) == [b"abc", b"abc"]


def test_too_many_pictures_are_refused(client: TestClient) -> None:
    for count in (2, 3):
        files = [("image", b"x")] * count
        answer = client.post("/", files=files, headers=KEY)
        assert answer.status_code == (200 if count == 2 else 400), answer.text


def test_a_fault_tells_a_client_nothing_but_its_number(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is counted and guarded as every answer is."""
    counted: list[dict[str, str]] = []
    monkeypatch.setattr(metrics().requests, "inc", lambda _, tags: counted.append(tags))
    answer = client.post("/fails")
    assert answer.status_code == 500
    assert "secret" not in answer.text
    assert "internal error" in answer.json()["error"]["message"]
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert counted == [{"endpoint": "/fails", "status": "500"}]


def test_admission_counts_those_in_work() -> None:
    async def crowd() -> tuple[list[object], int]:
        admitted, inside = Admission(2), asyncio.Event()

        async def one() -> None:
            async with admitted():
                await inside.wait()

        asking = [asyncio.create_task(one()) for _ in range(5)]
        await asyncio.sleep(0)
        inside.set()
        return await asyncio.gather(*asking, return_exceptions=True), admitted.count

    ends, left = asyncio.run(crowd())
    refusals = [end for end in ends if isinstance(end, Refusal)]
    assert (ends[:2], len(refusals), left) == ([None, None], 3, 0)
    assert {(one.status, one.headers["Retry-After"]) for one in refusals} == {(503, "1")}


def test_closed_admission_refuses_and_waits_for_those_in_work() -> None:
    async def close() -> tuple[bool, int, bool]:
        admitted, inside = Admission(9), asyncio.Event()

        async def one() -> None:
            async with admitted():
                await inside.wait()

        working = asyncio.create_task(one())
        await asyncio.sleep(0)
        closing = asyncio.create_task(admitted.close())
        await asyncio.sleep(0.05)
        early = closing.done()
        with pytest.raises(Refusal) as refused:
            await one()
        inside.set()
        await asyncio.gather(working, closing)
        return early, refused.value.status, closing.done()

    assert asyncio.run(close()) == (False, 503, True)
    asyncio.run(Admission(1).close())


def test_a_wrong_method_is_told_those_of_every_route(client: TestClient) -> None:
    answer = client.delete("/")
    assert answer.status_code == 405
    assert answer.headers["Allow"] == "GET, POST"
    assert client.post("/nothing").status_code == 404


@pytest.mark.parametrize("query", ["top=3&top=4", "top=3"])
def test_an_option_given_twice_is_refused(client: TestClient, query: str) -> None:
    content = {"json": {"top": 5}} if query == "top=3" else {"content": b"x"}
    answer = client.post(f"/?{query}", headers={"X-API-Key": "one"}, **content)
    assert (answer.status_code, answer.json()["error"]["field"]) == (422, "top")


DEEP = "[" * 10_000
FORM = "multipart/form-data; boundary=B"
MALFORMED = {
    "weights nested deeply": (f"/?weights={DEEP}", b"x", "", 422, "weights"),
    "a field of a form nested deeply": ("/", DEEP, FORM, 422, "weights"),
    "a name that is no text": ("/", b'{"\\ud800": 1}', "application/json", 400, "body"),
    "weights of no text": ("/?weights={%22\\ud800%22:-1}", b"x", "", 422, "weights"),
    "a form of no encoding": ("/", "{}", f"{FORM}; charset=undefined", 400, "body"),
    "a form that escapes": ("/", '{"\\ud800": -1}', f"{FORM}; charset=unicode_escape", 400, "body"),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_what_is_malformed_is_the_clients_fault(client: TestClient, name: str) -> None:
    path, content, kind, status, field = MALFORMED[name]
    if isinstance(content, str):
        head = 'Content-Disposition: form-data; name="weights"'
        content = f"--B\r\n{head}\r\n\r\n{content}\r\n--B--\r\n".encode()
    answer = client.post(path, content=content, headers={**KEY, "Content-Type": kind})
    assert (answer.status_code, answer.json()["error"]["field"]) == (status, field), answer.text
    assert len(answer.text) < 200


def test_a_form_may_say_that_it_is_in_utf_8(client: TestClient) -> None:
    content = b'--B\r\nContent-Disposition: form-data; name="prefix"\r\n\r\n\xc3\xb6\r\n--B--\r\n'
    for charset in ("utf-8", '"UTF-8"'):
        headers = {**KEY, "Content-Type": f"{FORM}; charset={charset}"}
        assert client.post("/", content=content, headers=headers).json()["prefix"] == "ö"


@pytest.mark.parametrize("content", [b"", b"# none yet\n\n", b"\xff\xfe\x00"])
def test_a_file_without_keys_is_no_reason_to_be_open(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "keys").write_bytes(content)
    with pytest.raises(UserError, match=r"keys: (holds no key|cannot be read \(not UTF-8\))"):
        Keys(str(tmp_path / "keys"), "IMGRAY_API_KEYS")


def test_a_mark_at_the_start_of_a_file_belongs_to_no_key(tmp_path: Path) -> None:
    (tmp_path / "keys").write_bytes("first\nsecond\n".encode("utf-8-sig"))
    assert Keys(str(tmp_path / "keys"), "IMGRAY_API_KEYS").know("first")
