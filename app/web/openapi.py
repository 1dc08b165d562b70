"""The OpenAPI document: what FastAPI reads off the routes, completed by rules that hold everywhere."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from functools import cache
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from app.web import examples

Node = dict[str, Any]
_PREFIXES = {"key": "key", "project": "proj", "job.checkpoint": "ckpt", "job.artifact": "art"}
"""Beginnings of ids where they are not the name of the thing itself."""
_REFERENCES = {
    "job_id": "job",
    "cloned_from": "job",
    "model_id": "model",
    "teacher_id": "model",
    "file_id": "file",
    "upload_id": "upload",
    "key_id": "key",
    "project_id": "proj",
    "checkpoint_id": "ckpt",
}
"""Fields and parameters that hold ids, and how these begin."""
_PARAMETERS = {
    **{f"{kind}_id": f"Id of the {kind}." for kind in ("job", "model", "file", "upload", "key", "project")},
    "name": "Name of the file, with folders.",
    "number": "Number of the part, from 1.",
    "group": "The group.",
}
"""What the parameters of paths are."""
_RANGES: list[tuple[str, str, str]] = [
    (
        "Range",
        "One range of bytes; several, or one beyond the end, are answered with 416.",
        "bytes=0-1023",
    ),
    (
        "If-Range",
        "ETag of the content that the range is of; if it is another by now, the whole is sent.",
        f'"{examples.SHA256}"',
    ),
    (
        "If-None-Match",
        "ETags of the contents that the client has; if it is one of them, the answer is 304.",
        f'"{examples.SHA256}"',
    ),
]
"""Headers that a download reads."""
_DOWNLOAD_HEADERS = {
    "ETag": ("SHA-256 of the content, in quotes.", {"type": "string", "pattern": '^"[0-9a-f]{64}"$'}),
    "Repr-Digest": ("RFC 9530: `sha-256=:<base64>:` of the whole content.", {"type": "string"}),
    "Accept-Ranges": ("That ranges of bytes can be asked for.", {"const": "bytes", "type": "string"}),
    "Content-Disposition": ("The name to save it as.", {"type": "string"}),
    "Cache-Control": ("Who may keep it, and that it must be asked for again.", {"type": "string"}),
}
_HEADERS: dict[str, dict[str, tuple[str, Node]]] = {
    "401": {"WWW-Authenticate": ("How to authenticate.", {"type": "string"})},
    "416": {"Content-Range": ("Size of the content: `bytes */<size>`.", {"type": "string"})},
    "503": {"Retry-After": ("Seconds to wait before the next try.", {"type": "string", "pattern": "^[0-9]+$"})},
}
"""Headers of answers, by status."""
_OF_THINGS = {
    "JobView": "job_id",
    "FileDetailView": "file_id",
    "UploadView": "upload_id",
    "ModelView": "model_id",
    "ModelDetailView": "model_id",
    "NewKeyView": "key_id",
    "KeyView": "key_id",
}
"""Answers that have an id with which other operations go on, and the parameter that takes it."""
_DOCUMENTS = {"validate_job": "JobSpec", "recommend_recipes": "JobWithoutRecipe"}
"""Operations that check their body themselves, and what it is."""
_FRAMING = """Server-sent events. Of each event `id` is its number, `event` its type, and `data` one line of JSON, an
`EventView`. A comment (`: …`) comes when nothing else has for a while. The stream ends after the last event of a job
that is final; a client that was cut off goes on with the header `Last-Event-ID`."""


_MADE: list[Node] = []


def document(app: FastAPI) -> Node:
    """The whole document; made once in a process, whose applications all have the same routes."""
    if not _MADE:
        made = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
        _complete(made)
        _MADE.append(made)
    return _MADE[0]


@cache
def written() -> tuple[bytes, str]:
    """The document, which must have been made, as JSON, and its ETag."""
    body = json.dumps(_MADE[0], ensure_ascii=False, separators=(",", ":")).encode()
    return body, f'"{hashlib.sha256(body).hexdigest()[:32]}"'


def _complete(made: Node) -> None:
    schemas = made["components"]["schemas"]
    for name, schema in schemas.items():
        _complete_schema(schema)
        if name.startswith("Page_"):
            _complete_page(schema, schemas[name.removeprefix("Page_").removesuffix("_")])
    operations = list(_operations(made))
    for path, operation in operations:
        _complete_parameters(path, operation)
        _complete_body(operation)
        for status, response in operation["responses"].items():
            _complete_response(made, status, response)
        _add_links(operation, [(each, one) for each, one in operations if one is not operation])
    _describe_stream(made["paths"]["/v1/jobs/{job_id}/events"]["get"])


def _operations(made: Node) -> Iterator[tuple[str, Node]]:
    for path, item in made["paths"].items():
        for operation in item.values():
            yield path, operation


def _complete_page(schema: Node, item: Node) -> None:
    schema["description"] = "One page of a list. Go on with `after` = `last_id` while there is more."
    for field in ("first_id", "last_id"):
        _restrict(schema["properties"][field], _id_pattern(_kind(item)))


def _kind(schema: Node) -> str:
    """What the ids of a kind of thing begin with; empty for what has none."""
    kind = schema.get("properties", {}).get("object", {}).get("const", "")
    return _PREFIXES.get(kind, str(kind))


def _complete_schema(schema: Node) -> None:
    fields = schema.get("properties", {})
    for field, node in fields.items():
        if "const" in node:
            node.setdefault("description", f"Always `{node['const']}`.")
        if field == "sha256":
            _restrict(node, "^[0-9a-f]{64}$")
        elif field == "request_id":
            _restrict(node, "^[A-Za-z0-9._-]{8,64}$")
        elif field in _REFERENCES:
            _restrict(node, _id_pattern(_REFERENCES[field]))
        elif field == "id" and _kind(schema):
            _restrict(node, _id_pattern(_kind(schema)))


def _id_pattern(prefix: str) -> str:
    return f"^{prefix}_[0-9a-z]+$"


def _restrict(node: Node, pattern: str) -> None:
    """Say what form a text has, or that of the alternatives which is a text."""
    for option in [node, *node.get("anyOf", ())]:
        if option.get("type") == "string":
            option.setdefault("pattern", pattern)


def without_null(node: Node) -> Node:
    """A schema without the alternative null and without a default: for what may be left out, but not be null."""
    options = [option for option in node.get("anyOf", ()) if option.get("type") != "null"]
    rest = {key: value for key, value in node.items() if key not in ("anyOf", "default")}
    return {**options[0], **rest} if len(options) == 1 else {**rest, "anyOf": options} if options else node


def _complete_parameters(path: str, operation: Node) -> None:
    for parameter in operation.get("parameters", ()):
        name = parameter["name"]
        if parameter["in"] != "path" and "anyOf" in parameter["schema"]:
            parameter["schema"] = without_null(parameter["schema"])
        if parameter["in"] == "path":
            parameter.setdefault("description", _PARAMETERS[name])
            if name in _REFERENCES:
                parameter["example"] = f"{_REFERENCES[name]}_01k9zq3f8t5v7w9x1y3z5a7b9c"
    if "206" in operation["responses"]:
        operation.setdefault("parameters", []).extend(
            {
                "name": name,
                "in": "header",
                "required": False,
                "description": description,
                "schema": {"type": "string"},
                "example": example,
            }
            for name, description, example in _RANGES
        )


def _reference(content: Node) -> str:
    """Name of the schema of a JSON body; empty where it is none of the components."""
    schema = content.get("application/json", {}).get("schema", {})
    options = [schema, *schema.get("anyOf", ())]
    return next((option["$ref"].rpartition("/")[2] for option in options if "$ref" in option), "")


def _complete_body(operation: Node) -> None:
    body = operation.get("requestBody")
    if body is None:
        return
    name = _reference(body["content"])
    name = _DOCUMENTS.get(operation["operationId"], name)
    if name:
        body["content"]["application/json"]["example"] = examples.BODIES[name]
        body.setdefault("description", "In JSON; unknown keys are refused.")
        if not body.get("required"):
            schema = body["content"]["application/json"]["schema"]
            body["content"]["application/json"]["schema"] = without_null(schema)
    else:
        body.setdefault("description", "The bytes themselves.")


def _complete_response(made: Node, status: str, response: Node) -> None:
    name = _reference(response.get("content", {}))
    if name == "ErrorEnvelope":
        response["content"]["application/json"]["example"] = _error(int(status))
    elif name:
        response["description"] = made["components"]["schemas"][name]["description"].partition("\n\n")[0]
        response["content"]["application/json"]["example"] = examples.ANSWERS[name]
    headers = response.setdefault("headers", {})
    told = {"X-Request-Id": ("Id of the request, which finds it in the service's log.", {"type": "string"})}
    told |= _HEADERS.get(status, {})
    if "application/octet-stream" in response.get("content", {}) or status == "304":
        told |= _DOWNLOAD_HEADERS
    if status == "206":
        told["Content-Range"] = ("The range that is sent, and the size of the whole.", {"type": "string"})
    for header, (description, schema) in told.items():
        headers.setdefault(header, {"description": description, "schema": schema})


def _error(status: int) -> Node:
    type, code, message, param = examples.ERRORS[status]
    field = {"param": param, "message": "input should be less than or equal to 100", "accepted": "an integer <= 100"}
    return {
        "error": {
            "type": type,
            "code": code,
            "message": message,
            "param": param,
            "errors": [field] if status == 422 else [],
            "more_errors": 0,
            "request_id": "req_01k9zq3f8t5v7w9x1y3z5a7b9c",
        }
    }


def _add_links(operation: Node, others: list[tuple[str, Node]]) -> None:
    for status, response in operation["responses"].items():
        parameter = _OF_THINGS.get(_reference(response.get("content", {}))) if status[0] == "2" else None
        if parameter is None:
            continue
        response["links"] = {
            other["operationId"]: {
                "operationId": other["operationId"],
                "description": str(other["description"]).partition("\n")[0],
                "parameters": {parameter: "$response.body#/id"},
            }
            for path, other in others
            if path.count("{") == 1 and f"{{{parameter}}}" in path
        }
        if status == "201" and parameter == "job_id":
            response["headers"]["Location"] = {
                "description": "Address of the job.",
                "schema": {"type": "string", "pattern": f"^/v1/jobs/{_id_pattern('job')[1:]}"},
            }


def _describe_stream(operation: Node) -> None:
    event = {"$ref": "#/components/schemas/EventView"}
    operation["responses"]["200"]["content"]["text/event-stream"] = {
        "schema": {"type": "string", "description": _FRAMING, "x-data": event},
        "example": examples.EVENTS,
    }
