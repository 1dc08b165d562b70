"""The OpenAPI document is true: whatever is sent, the answer is one that it declares, in the form that it declares."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import SecretStr
from safetensors.numpy import save
from schemathesis import GenerationMode
from schemathesis.python import asgi
from schemathesis.specs.openapi.checks import negative_data_rejection, positive_data_acceptance

from app.core.settings import Settings
from app.main import create_app
from app.projects import keys
from tests.app.files.uploads import archive

KEY = keys.new_key()
SMALL, WEIGHTS = archive(3), save({"weight": np.ones((2, 4), np.float32), "bias": np.ones(2, np.float32)})
CONFIG = {
    "architecture": {"architecture": "mlp", "hidden": []},
    "input": {"channels": 1, "height": 2, "width": 2},
    "preprocessing": {"mean": [0.5], "std": [0.25]},
    "classes": 2,
}
DOCUMENT = create_app(Settings()).openapi()
OPERATIONS = [(path, method) for path, operations in DOCUMENT["paths"].items() for method in operations]


@pytest.fixture(scope="module")
def contract(sqlite_template: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The application behind its own document. Small parts, so that the limits are met."""
    folder = tmp_path_factory.mktemp("openapi")
    database = folder / "service.db"
    database.write_bytes(sqlite_template.read_bytes())
    app = create_app(
        Settings(
            data_dir=folder,
            database_url=f"sqlite+aiosqlite:///{database}",
            store_url="memory:///",
            bootstrap_key=SecretStr(KEY),
            max_part_bytes=1024,
            max_file_bytes=4096,
        )
    )
    yield schemathesis.openapi.from_asgi("/openapi.json", app)
    asgi.shutdown_lifespans()


def test_every_operation_has_a_name_of_its_own() -> None:
    names = [DOCUMENT["paths"][path][method]["operationId"] for path, method in OPERATIONS]
    assert len(set(names)) == len(names)
    assert all(name.replace("_", "").isalpha() and name.islower() for name in names)


@pytest.fixture(scope="module")
def session(contract: Any) -> Iterator[requests.Session]:
    """A client of the application, with the key."""
    with asgi.get_client(contract.app) as client:
        client.headers["Authorization"] = f"Bearer {KEY}"
        yield client


def things(session: requests.Session) -> dict[str, str]:
    """Fresh ids for the parameters of a path."""

    def made(path: str, **content: Any) -> str:
        answer = session.post(f"http://testserver{path}", **content)
        assert answer.status_code == 201, answer.text
        return str(answer.json()["id"])

    file = made("/v1/files?name=a", data=SMALL)
    spec = {
        "data": {"train": file},
        "student": {"architecture": "mlp"},
        "recipe": {"losses": [{"kind": "cross-entropy"}]},
    }
    weights = made("/v1/files?name=b", data=WEIGHTS)
    return {
        "job_id": made("/v1/jobs", json=spec),
        "file_id": made("/v1/files?name=c", data=SMALL),
        "upload_id": made("/v1/uploads", json={"name": "a"}),
        "model_id": made("/v1/models", json={"file": weights, "config": CONFIG}),
        "key_id": made("/v1/keys", json={"name": "a"}),
    }


def cases(contract: Any, path: str, method: str) -> st.SearchStrategy[Any]:
    """Requests that keep to the document and requests that break it; without parameters nothing can be broken."""
    operation = contract[path][method]
    right = operation.as_strategy(generation_mode=GenerationMode.POSITIVE)
    documented = DOCUMENT["paths"][path][method]
    if "parameters" not in documented and "requestBody" not in documented:
        return right
    return right | operation.as_strategy(generation_mode=GenerationMode.NEGATIVE)


@pytest.mark.parametrize(("path", "method"), OPERATIONS, ids=[f"{method} {path}" for path, method in OPERATIONS])
def test_every_answer_is_declared(contract: Any, session: requests.Session, path: str, method: str) -> None:
    ids = things(session) if "_id}" in path else {}
    # What keeps to the document may still be refused for what the document can't say.
    excluded = [positive_data_acceptance]
    if any("array" in str(parameter["schema"]) for parameter in DOCUMENT["paths"][path][method].get("parameters", ())):
        excluded.append(negative_data_rejection)  # in a query, text in place of a list is a list of one text

    @settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(case=cases(contract, path, method), real=st.booleans())
    def send(case: Any, real: bool) -> None:
        if real:
            case.path_parameters.update({name: id for name, id in ids.items() if name in case.path_parameters})
        case.call_and_validate(session=session, excluded_checks=excluded)

    send()
