"""Rules that the whole OpenAPI document keeps."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import jsonschema_rs
import pytest

from app.core.settings import Settings
from app.jobs.schemas.requests import NEVER_NULL
from app.main import create_app

DOCUMENT = create_app(Settings()).openapi()
SCHEMAS: dict[str, Any] = DOCUMENT["components"]["schemas"]
OPERATIONS = {operation["operationId"]: operation for item in DOCUMENT["paths"].values() for operation in item.values()}


def nodes(node: Any, path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every object of the document, with its place."""
    if isinstance(node, dict):
        yield path, node
        for key, value in node.items():
            if key not in ("example", "examples", "default"):
                yield from nodes(value, f"{path}/{key}")
    elif isinstance(node, list):
        for number, value in enumerate(node):
            yield from nodes(value, f"{path}/{number}")


def fields() -> Iterator[tuple[str, dict[str, Any]]]:
    """Every field of every schema."""
    for place, node in nodes(SCHEMAS):
        for name, field in node.get("properties", {}).items() if isinstance(node.get("properties"), dict) else ():
            if not place.endswith("/properties"):
                yield f"{place}.{name}", field


def described(node: dict[str, Any]) -> bool:
    """In its own words, or in those of the one schema that it refers to."""
    target = SCHEMAS.get(node.get("$ref", "").rpartition("/")[2], {})
    return bool(node.get("description") or target.get("description"))


def test_every_schema_and_every_field_is_described() -> None:
    assert len(list(fields())) > 700
    assert [name for name, field in fields() if not described(field)] == []
    objects = {name: schema for name, schema in SCHEMAS.items() if "properties" in schema}
    assert [name for name, schema in objects.items() if not schema.get("description")] == []


def test_every_operation_parameter_answer_header_and_link_is_described() -> None:
    for name, operation in OPERATIONS.items():
        parts = {name: operation}
        parts |= {f"{name} {one['name']}": one for one in operation.get("parameters", ())}
        parts |= {f"{name} body": operation["requestBody"]} if "requestBody" in operation else {}
        for status, response in operation["responses"].items():
            parts[f"{name} {status}"] = response
            parts |= {f"{name} {status} {key}": one for key, one in response["headers"].items()}
            parts |= {f"{name} {status} {key}": one for key, one in response.get("links", {}).items()}
        undescribed = [part for part, node in parts.items() if not node.get("description")]
        assert undescribed == []
        assert "Successful Response" not in [node["description"] for node in parts.values()]


def validator(schema: dict[str, Any]) -> Any:
    return jsonschema_rs.Draft202012Validator({**schema, "components": DOCUMENT["components"]}, validate_formats=True)


def contents() -> Iterator[tuple[str, dict[str, Any]]]:
    """Every body in JSON, of requests and of answers."""
    for name, operation in OPERATIONS.items():
        bodies = {name: operation.get("requestBody", {})}
        bodies |= {f"{name} {status}": response for status, response in operation["responses"].items()}
        for place, body in bodies.items():
            if "application/json" in body.get("content", {}):
                yield place, body["content"]["application/json"]


def test_every_body_has_an_example_that_its_own_schema_accepts() -> None:
    assert len(list(contents())) > 200
    for place, content in contents():
        errors = [error.message for error in validator(content["schema"]).iter_errors(content["example"])]
        assert errors == [], place


def test_the_example_of_a_job_is_one() -> None:
    body = OPERATIONS["validate_job"]["requestBody"]["content"]["application/json"]["example"]
    schema = {"$ref": "#/components/schemas/JobSpec"}
    assert list(validator(schema).iter_errors(body)) == []


def test_the_examples_of_parameters_are_as_their_schemas_say() -> None:
    for name, operation in OPERATIONS.items():
        for parameter in operation.get("parameters", ()):
            if "example" in parameter:
                assert validator(parameter["schema"]).is_valid(parameter["example"]), (name, parameter["name"])
                assert parameter["in"] != "header" or parameter["example"].isascii()


def test_no_parameter_may_be_null() -> None:
    for operation in OPERATIONS.values():
        for parameter in operation.get("parameters", ()):
            assert not validator(parameter["schema"]).is_valid(None), parameter["name"]


def test_what_a_clone_can_not_set_to_null_is_not_said_to_be_nullable() -> None:
    clone = validator({"$ref": "#/components/schemas/CloneOverrides"})
    for name in SCHEMAS["CloneOverrides"]["properties"]:
        assert clone.is_valid({name: None}) == (name not in NEVER_NULL)


def test_times_digests_and_ids_say_their_form() -> None:
    for name, field in fields():
        if "View" not in name.split(".")[0]:
            continue
        texts = [one for one in (field, *field.get("anyOf", ())) if one.get("type") == "string"]
        last = name.rpartition(".")[2]
        if last.endswith("_at"):
            assert [text.get("format") for text in texts] == ["date-time"], name
        elif last == "sha256" or last.endswith("_id") or (last == "id" and "Deleted" not in name):
            assert all("pattern" in text for text in texts), name
            assert texts, name


def test_every_list_that_a_request_may_hold_has_an_end() -> None:
    """A list without an end would make as many errors as it has wrong items."""
    reached: set[str] = set()
    waiting = [node["requestBody"]["content"] for node in OPERATIONS.values() if "requestBody" in node]
    waiting.append({"$ref": "#/components/schemas/JobSpec"})
    while waiting:
        for place, node in nodes(waiting.pop()):
            name = node.get("$ref", "").rpartition("/")[2] if isinstance(node.get("$ref"), str) else ""
            if name and name not in reached:
                reached.add(name)
                waiting.append(SCHEMAS[name])
            if node.get("type") == "array":
                assert "maxItems" in node, place
            if node.get("type") == "object" and "patternProperties" in node:
                assert "maxProperties" in node, place
    assert len(reached) > 100


@pytest.mark.parametrize("name", ["get_file_content", "get_model_file", "download_artifact"])
def test_a_download_says_what_it_reads_and_sends(name: str) -> None:
    operation = OPERATIONS[name]
    assert {"Range", "If-Range", "If-None-Match"} <= {one["name"] for one in operation["parameters"]}
    assert {"ETag", "Accept-Ranges", "Repr-Digest"} <= operation["responses"]["200"]["headers"].keys()
    assert "Content-Range" in operation["responses"]["206"]["headers"]
    assert "Content-Range" in operation["responses"]["416"]["headers"]


def test_every_answer_has_an_id_and_what_may_be_repeated_says_when() -> None:
    for operation in OPERATIONS.values():
        for status, response in operation["responses"].items():
            assert "X-Request-Id" in response["headers"]
            assert ("Retry-After" in response["headers"]) == (status == "503")
            assert ("WWW-Authenticate" in response["headers"]) == (status == "401")


def test_a_made_thing_links_to_what_can_be_done_with_it() -> None:
    for name in ("create_job", "clone_job"):
        made = OPERATIONS[name]["responses"]["201"]
        assert {"get_job", "cancel_job", "list_events", "get_metrics", "list_artifacts"} <= made["links"].keys()
        assert "Location" in made["headers"]
    for operation in OPERATIONS.values():
        for response in operation["responses"].values():
            for link in response.get("links", {}).values():
                target = OPERATIONS[link["operationId"]]
                taken = [one["name"] for one in target["parameters"] if one["in"] == "path"]
                assert taken == list(link["parameters"])


def test_a_stream_of_events_says_how_it_is_framed() -> None:
    content = OPERATIONS["list_events"]["responses"]["200"]["content"]["text/event-stream"]
    assert content["schema"]["x-data"] == {"$ref": "#/components/schemas/EventView"}
    [data] = re.findall(r"^data: (.*)$", content["example"], re.MULTILINE)
    event = jsonschema_rs.Draft202012Validator({**content["schema"]["x-data"], "components": DOCUMENT["components"]})
    assert event.is_valid(json.loads(data))
