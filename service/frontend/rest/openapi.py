"""The OpenAPI document of the HTTP API, made from the table of its routes."""

import re
from collections.abc import Sequence
from http import HTTPStatus
from importlib.metadata import version
from typing import Any

import msgspec

from convoy.service.frontend.rest.refusals import JSON
from convoy.service.frontend.rest.routes import Route, Schema
from convoy.service.frontend.rest.schemas_v2 import ERROR

_ALWAYS = (400, 401, 403, 408, 429, 431, 500, 503)  # of every route, beside its own
_OF_POST = (413, 415, 501, 504)
_NAMES: dict[str, Schema] = {
    "model": {"type": "string", "pattern": "^[a-z0-9_-]{1,64}$"},
    "version": {"type": "string", "pattern": "^[1-9][0-9]{0,17}$"},
    "number": {"type": "integer", "minimum": 1},
}


def document(routes: Sequence[Route]) -> bytes:
    """Returns the document (OpenAPI 3.1) as JSON."""
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route)
    value = {
        "openapi": "3.1.0",
        "info": {
            "title": "Convoy",
            "version": version("convoy"),
            "summary": "Classification and segmentation of images, and tensors by the Open Inference Protocol",
        },
        "paths": paths,
        "components": {
            "schemas": {"Error": ERROR},
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{}, {"token": []}],
    }
    return msgspec.json.encode(value)


def _operation(route: Route) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "operationId": re.sub(r"\W+", "_", f"{route.method.lower()}{route.path}").strip("_"),
        "summary": route.summary,
        "parameters": [
            *(_parameter("path", name, _NAMES[name]) for name in re.findall(r"{(\w+)}", route.path)),
            *(_parameter("query", name, schema) for name, schema in route.query.items()),
            *(_parameter("header", name, schema) for name, schema in route.headers.items()),
        ],
        "responses": {"200": {"description": "OK", **_content(route.answers)}, **_refusals(route)},
    }
    if route.asks:
        operation["requestBody"] = {"required": True, **_content(route.asks)}
    return operation


def _parameter(place: str, name: str, schema: Schema) -> dict[str, Any]:
    return {"in": place, "name": name, "required": place == "path", "schema": schema}


def _content(schemas: Any) -> dict[str, Any]:
    return {"content": {kind: {"schema": schema} for kind, schema in schemas.items()}} if schemas else {}


def _refusals(route: Route) -> dict[str, Any]:
    statuses = {*_ALWAYS, *route.statuses, *(_OF_POST if route.method == "POST" else ())}
    error = {"content": {JSON: {"schema": {"$ref": "#/components/schemas/Error"}}}}
    return {str(status): {"description": HTTPStatus(status).phrase, **error} for status in sorted(statuses)}
