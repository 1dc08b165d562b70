"""What a request may cost: nothing without a key, and little with one, whatever it holds."""

from __future__ import annotations

import difflib
import json
from typing import Any

import httpx
import pytest

from app.core import json_body
from app.core.errors import MAX_ERRORS, ErrorBody, FieldError
from app.core.field_errors import MAX_HINTS
from app.core.http import MAX_HEADER_BYTES, MAX_HEADERS, MAX_PATH_CHARACTERS, MAX_QUERY_BYTES, MAX_QUERY_PARAMETERS
from app.core.json_body import MAX_DEPTH
from tests.app.conftest import Api
from tests.app.core.test_http import JSON, error_of

LARGEST_ERROR = 256 << 10
"""Bytes that an answer with an error stays below: fifty errors that say a lot each."""
JOB: dict[str, Any] = {
    "data": {"train": "file_1"},
    "student": {"architecture": "mlp"},
    "recipe": {"losses": [{"kind": "cross-entropy"}]},
}


@pytest.fixture
def compared(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names that were compared with the known ones."""
    names: list[str] = []

    def counted(name: str, *args: Any, **kwargs: Any) -> list[str]:
        names.append(name)
        return original(name, *args, **kwargs)

    original = difflib.get_close_matches
    monkeypatch.setattr(difflib, "get_close_matches", counted)
    return names


def bounded(answer: httpx.Response) -> dict[str, Any]:
    assert len(answer.content) < LARGEST_ERROR
    error: dict[str, Any] = error_of(answer)
    assert len(error["errors"]) <= MAX_ERRORS
    return error


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"])
@pytest.mark.parametrize(
    "path",
    [
        "/v1/jobs?" + "&".join(f"statsu{number}=1" for number in range(4000)),
        "/v1/nothing",
        "/v1/files/" + "x" * 8000,
        "/v1/jobs/validate",
        "/v1/uploads/upload_1/parts/zero",
    ],
    ids=["query", "unknown", "path", "validate", "part"],
)
async def test_without_a_key_nothing_but_the_key_is_looked_at(
    api: Api, compared: list[str], method: str, path: str
) -> None:
    nobody = await api.anonymous()

    async def body() -> Any:
        raise AssertionError("the body was read")
        yield b""

    for headers in ({}, {"Authorization": "Bearer still_wrong"}, {"Authorization": "Basic eDp5"}):
        answer = await nobody.request(method, path, content=body(), headers=headers)
        assert answer.status_code == 401
        assert answer.headers["www-authenticate"] == "Bearer"
        assert len(answer.content) < 500
    assert not compared


async def test_of_many_unknown_parameters_fifty_are_told_and_the_rest_is_counted(api: Api, compared: list[str]) -> None:
    answer = await api.client.get("/v1/jobs?" + "&".join(f"statsu{number}=1" for number in range(90)))
    error = bounded(answer)
    assert (answer.status_code, len(error["errors"]), error["more_errors"]) == (422, 50, 40)
    assert len(compared) == MAX_HINTS


async def test_a_long_name_is_compared_with_nothing_and_repeated_in_part(api: Api, compared: list[str]) -> None:
    error = bounded(await api.client.get("/v1/jobs?" + "s" * 10_000 + "=1"))
    assert len(error["param"]) <= 256
    assert not compared


@pytest.mark.parametrize(
    ("path", "headers", "status", "code"),
    [
        ("/v1/jobs?name=" + "x" * MAX_QUERY_BYTES, {}, 414, "query_too_long"),
        ("/v1/jobs?" + "a&" * MAX_QUERY_PARAMETERS, {}, 414, "too_many_parameters"),
        ("/v1/jobs/" + "x" * MAX_PATH_CHARACTERS, {}, 414, "path_too_long"),
        ("/v1/jobs", {"X-Long": "x" * MAX_HEADER_BYTES}, 431, "headers_too_large"),
        ("/v1/jobs", {f"X-{number}": "x" for number in range(MAX_HEADERS)}, 431, "too_many_headers"),
        ("/healthz", {"X-Long": "x" * MAX_HEADER_BYTES}, 431, "headers_too_large"),
    ],
    ids=["query", "parameters", "path", "headers", "many headers", "open"],
)
async def test_what_is_too_large_is_refused_in_the_envelope(
    api: Api, path: str, headers: dict[str, str], status: int, code: str
) -> None:
    answer = await api.client.get(path, headers=headers)
    assert (answer.status_code, bounded(answer)["code"]) == (status, code)


async def test_an_id_of_any_length_is_repeated_in_part(api: Api) -> None:
    for path in ("/v1/jobs/", "/v1/files/", "/v1/models/", "/v1/keys/", "/v1/uploads/", "/v1/catalog/"):
        answer = await api.client.get(path + "x" * 1000)
        assert answer.status_code in (404, 422)
        bounded(answer)


BODIES: dict[str, tuple[bytes, int]] = {
    "unknown fields": (json.dumps(JOB | {f"k{n}": 1 for n in range(3000)}).encode(), 422),
    "misspelt formats": (json.dumps(JOB | {"export": ["onx"] * 8000}).encode(), 422),
    "misspelt losses": (json.dumps(JOB | {"recipe": {"losses": [{"kind": "kdd"}] * 2000}}).encode(), 422),
    "a long kind": (json.dumps(JOB | {"student": {"architecture": "x" * 50_000}}).encode(), 422),
    "a long name": (json.dumps(JOB | {"name": "x" * 50_000}).encode(), 422),
    "a long key": (json.dumps(JOB | {"x" * 50_000: 1}).encode(), 422),
    "a huge number": (json.dumps(JOB).encode().replace(b'"file_1"', b"1" * 4000), 422),
    "too many digits": (b'{"seed": ' + b"1" * 50_000 + b"}", 400),
    "deep": (b'{"name": ' + b"[" * (MAX_DEPTH + 1) + b"]" * (MAX_DEPTH + 1) + b"}", 400),
    "deeper": (b'{"name": ' + b"[" * 20_000 + b"]" * 20_000 + b"}", 400),
    "half a character": (b'{"\\ud800": 1, "name": "\\udfff"}', 422),
    "no text": (b'\xff\xfe{"a": 1}', 400),
}


@pytest.mark.parametrize("path", ["/v1/jobs", "/v1/jobs/validate", "/v1/models", "/v1/keys", "/v1/uploads"])
async def test_whatever_a_body_holds_the_answer_is_short(api: Api, compared: list[str], path: str) -> None:
    for name, (body, status) in BODIES.items():
        compared.clear()
        answer = await api.client.post(path, content=body, headers=JSON)
        assert len(compared) <= MAX_HINTS
        if path == "/v1/jobs/validate" and answer.status_code == 200:
            told = answer.json()
            assert not told["valid"]
            assert len(told["errors"]) <= MAX_ERRORS
            assert len(answer.content) < LARGEST_ERROR
        else:
            bounded(answer)
            assert answer.status_code == status, name


async def test_a_body_of_too_many_parts_is_refused_before_it_is_validated(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(json_body, "MAX_KEYS", 100)
    monkeypatch.setattr(json_body, "MAX_COUNTS", {b"[": 100, b"{": 100, b":": 1000, b",": 1000})
    for document in ({f"k{n}": 1 for n in range(101)}, [{"a": 1, "b": 2}] * 51, [[]] * 101, [1] * 1002, [":" * 1001]):
        error = bounded(await api.client.post("/v1/keys", json=document))
        assert (error["code"], error["param"]) == ("body_too_complex", "body")


async def test_validation_counts_the_errors_that_it_leaves_out(api: Api) -> None:
    document = JOB | {f"k{number}": 1 for number in range(80)}
    told = (await api.client.post("/v1/jobs/validate", json=document)).json()
    assert (len(told["errors"]), told["more_errors"]) == (50, 30)


def test_what_an_error_repeats_is_cut_and_fit_to_be_sent() -> None:
    field = FieldError(param="a\ud800" * 1000, message="b" * 10_000, accepted="c" * 10_000)
    body = ErrorBody(type="t", code="c", message="d" * 10_000, param="\udfff")
    texts = (field.param, field.message, field.accepted or "", body.message, body.param or "")
    assert all(len(text.encode()) < 6000 for text in texts)
