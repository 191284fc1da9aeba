"""What a route of the HTTP API is: the router and the OpenAPI document are made from the same table."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

from starlette.responses import Response

from convoy.service.frontend.rest.asked import Asked

Handler = Callable[[Asked], Awaitable[Response]]
Schema = Mapping[str, Any]  # JSON Schema 2020-12
_NOTHING: Mapping[str, Any] = MappingProxyType({})


class Route(NamedTuple):
    """A route, and what the OpenAPI document says of it.

    method   GET stands for HEAD as well
    path     with {model}, {version}, {number} in the places of names
    answers  by media type, what it answers with status 200: a schema; empty: nothing
    asks     by media type, what it takes as its body; empty: nothing
    query    schemas of its query parameters by name
    headers  schemas of the headers that it takes
    public   needs no caller: "page" never does, "probes" and "health" where `access.public` has them
    method_of_grpc  the path of the method whose permission it needs; "": that of an inference
    """

    method: str
    path: str
    handler: Handler
    summary: str
    answers: Mapping[str, Schema] = _NOTHING
    asks: Mapping[str, Schema] = _NOTHING
    query: Mapping[str, Schema] = _NOTHING
    headers: Mapping[str, Schema] = _NOTHING
    statuses: Sequence[int] = ()  # beside 200 and those that each may have
    public: str = ""
    method_of_grpc: str = ""


def versioned(route: Route) -> list[Route]:
    """Returns a route of a model, and the same for one of its versions."""
    return [route, route._replace(path=route.path.replace("{model}", "{model}/versions/{version}", 1))]
