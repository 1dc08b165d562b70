"""The addresses of the application: their methods, and their entries in the OpenAPI document."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from fastapi import FastAPI, Request
from fastapi.routing import iter_route_contexts

from app.core.errors import MAX_ERRORS, Invalid
from app.core.field_errors import MAX_HINTS, describe


class _Route(NamedTuple):
    pattern: re.Pattern[str]
    methods: frozenset[str]
    template: str
    """The address as the OpenAPI document writes it."""


def _routes(app: FastAPI) -> list[_Route]:
    """All routes in the order of matching; built once."""
    if not hasattr(app.state, "addresses"):
        app.state.addresses = [
            _Route(route.path_regex, frozenset(route.methods), str(route.path_format))
            for route in iter_route_contexts(app.routes)
            if route.methods
        ]
    found: list[_Route] = app.state.addresses
    return found


def _matching(request: Request) -> Iterator[_Route]:
    path = request.scope["path"]
    return (route for route in _routes(request.app) if route.pattern.match(path))


def allowed_methods(request: Request) -> list[str]:
    """The methods of the request's address, for `Allow`; none if there is no such address.

    An address that is a route by itself, such as `/v1/jobs/validate`, has none of those of `/v1/jobs/{job_id}`.
    """
    found = list(_matching(request))
    named = [route for route in found if "{" not in route.template]
    methods = {method for route in named or found for method in route.methods}
    if "GET" in methods:
        methods.add("HEAD")
    return sorted(methods | {"OPTIONS"}) if methods else []


def operation(request: Request) -> Mapping[str, Any]:
    """The OpenAPI operation of this request's address and method; empty if there is none."""
    method = request.method
    for route in _matching(request):
        if method in route.methods:
            found: Mapping[str, Any] = request.app.openapi()["paths"].get(route.template, {}).get(method.lower(), {})
            return found
    return {}


def parameters(of: Mapping[str, Any], place: str) -> dict[str, Any]:
    """The parameters of an operation in one place (`query`, `path`, `header`) as the schema of an object."""
    return {"properties": {one["name"]: one["schema"] for one in of.get("parameters", ()) if one["in"] == place}}


async def known_query(request: Request) -> None:
    """A dependency that rejects query parameters which the route does not have, such as a mistyped filter."""
    if not request.scope["query_string"]:
        return
    known = parameters(operation(request), "query")
    unknown = [name for name in request.query_params if name not in known["properties"]]
    if unknown:
        detail = {"type": "extra_forbidden"}
        errors = [
            describe(detail, (name,), known, known, hint=number < MAX_HINTS)
            for number, name in enumerate(unknown[:MAX_ERRORS])
        ]
        raise Invalid.fields(errors, more_errors=len(unknown) - len(errors))
