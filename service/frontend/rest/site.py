"""The HTTP API of a front end as an application of ASGI: doors, routes, and a line of JSON for what is refused."""

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from starlette.convertors import Convertor, register_url_convertor
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
from starlette.routing import Route as StarletteRoute
from starlette.routing import Router

from convoy.service.access import Caller
from convoy.service.errors import BadRequest, ConvoyError, NotPermitted, QueueFull, UnknownCaller
from convoy.service.frontend.doors import Doors
from convoy.service.frontend.early import shown
from convoy.service.frontend.quotas import peer_of
from convoy.service.frontend.request_log import REQUESTS
from convoy.service.frontend.rest.asked import Asked, Gone, Means
from convoy.service.frontend.rest.refusals import HttpRefused, UnknownPath, refusal
from convoy.service.frontend.rest.routes import Route
from convoy.service.frontend.spans import SPANS
from convoy.service.frontend.threads import Who
from convoy.service.frontend.trace import read

log = logging.getLogger(__name__)

PAGE = "page"  # what is public as the page is: it has nothing of the server's in it
_SINGLE = (
    b"authorization",
    b"content-encoding",
    b"content-type",
    b"host",
    b"inference-header-content-length",
    b"origin",
    b"x-request-timeout",
)
_SAFE = ("GET", "HEAD", "OPTIONS")
_EXPOSED = (
    *("inference-header-content-length", "x-request-id", "traceresponse"),
    *("convoy-model", "convoy-version", "retry-after"),
)
_LEFT = 499  # a status that is never sent: the client has gone


class _Name(Convertor[str]):
    """A part of a path that ends where the word for an action begins, as in lenet5:classify."""

    regex = "[^/:]+"

    def convert(self, value: str) -> str:
        return value

    def to_string(self, value: str) -> str:
        return value


register_url_convertor("name", _Name())


class Entrance(NamedTuple):
    """Who may come in.

    doors        None: everybody
    public       what needs no caller
    certificate  whether everything else needs a client's certificate, which the connection may lack
    origins      of pages of other sites whose scripts may ask; "*": all
    requests     at a time
    """

    doors: Doors | None = None
    public: Sequence[str] = ()
    certificate: bool = False
    origins: Sequence[str] = ()
    requests: int = 1 << 16


class Site:
    """The application. One writer: the front end's loop."""

    def __init__(self, routes: Sequence[Route], means: Means, entrance: Entrance) -> None:
        self._means = means
        self._entrance = entrance
        self._requests = 0
        self._router = Router(
            [
                StarletteRoute(
                    route.path.replace("{model}", "{model:name}"), _Endpoint(self, route), methods=[route.method]
                )
                for route in routes
            ],
            redirect_slashes=False,
            default=_Endpoint(self, _UNKNOWN),
        )
        self._inner: Callable[..., Any] = self._route
        if entrance.origins:
            self._inner = CORSMiddleware(
                self._route,
                allow_origins=entrance.origins,
                allow_methods=["GET", "POST"],
                allow_headers=["*"],
                expose_headers=_EXPOSED,
            )

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        task = asyncio.current_task()
        assert task is not None
        scope["app"] = self  # the router raises for a wrong method then
        scope["state"]["connection"].on_lost = task.cancel
        self._requests += 1
        try:
            await self._inner(scope, receive, send)
        except asyncio.CancelledError:
            pass  # the client has gone
        finally:
            self._requests -= 1
            scope["state"]["connection"].on_lost = None

    async def _route(self, scope: Any, receive: Any, send: Any) -> None:
        try:
            await self._router(scope, receive, send)
        except HTTPException as error:
            allowed = (error.headers or {}).get("Allow", "")
            wrong = HttpRefused(405, f"method {scope['method'][:20]!r} is not allowed, want {allowed}", allow=allowed)
            await _Endpoint(self, _UNKNOWN._replace(handler=partial(_refuse, wrong)))(scope, receive, send)

    async def serve(self, route: Route, scope: Any, receive: Any) -> Response | None:
        """Answers a request; None if nobody waits for the answer any more."""
        headers = dict(scope["headers"])
        trace = read(headers.get(b"x-request-id"), headers.get(b"traceparent"), headers.get(b"tracestate"))
        if trace is not None and route.public:  # probes and files: nobody looks for them in a trace
            trace = trace.unsampled()
        client = scope["client"]
        source = Who(peer_of(client[0]) if client else "unix", id(scope["state"]["connection"]))
        asked = Asked(scope, receive, self._means, None, trace, source)
        status, refused = _LEFT, None
        try:
            try:
                _check_single(scope["headers"], headers)
                asked.caller = self._admit(route, scope, headers, asked)
                response = await route.handler(asked)
            except ConvoyError as error:
                error.forget_origin()
                response, refused = refusal(error), error
                _log(scope, asked, error)
            except Gone:
                return None
            except Exception:  # the end of a request: what happened is in the log alone
                log.exception("an HTTP request failed", extra={"fields": {} if trace is None else trace.fields()})
                refused = ConvoyError("internal error")
                response = refusal(refused)
            status = response.status_code
        finally:
            asked.release()
            if trace is not None and trace.span is not None:
                SPANS.end_http(trace.span, scope["method"], route.path, asked, status, refused)
        response.headers["x-content-type-options"] = "nosniff"
        if trace is not None:
            response.headers.update(dict(trace.headers()))
        return response

    def _admit(self, route: Route, scope: Any, headers: dict[bytes, bytes], asked: Asked) -> Caller | None:
        """Returns who asks. Raises QueueFull, UnknownCaller, NotPermitted, QuotaExceeded."""
        entrance = self._entrance
        if self._requests > entrance.requests:
            raise QueueFull(
                f"{self._requests} requests are in progress, want at most {entrance.requests}", retry_after=0.1
            )
        if scope["method"] not in _SAFE:
            _check_origin(headers, entrance.origins)
        if route.public == PAGE or route.public in entrance.public:
            return None
        if entrance.certificate and not scope["state"]["certified"]:
            raise UnknownCaller("caller is unknown: want the certificate of a caller")
        if entrance.doors is None:
            return None
        path = route.method_of_grpc or scope["path"]
        authorization, names = headers.get(b"authorization"), scope["state"]["names"]
        try:
            return entrance.doors.admit(path.encode(), authorization, names, asked.source.caller, asked.trace)
        except ConvoyError:
            asked.logged = True
            raise


class _Endpoint:
    """A route as an application of ASGI: starlette calls such an object with the request unread."""

    def __init__(self, site: Site, route: Route) -> None:
        self._site = site
        self._answer = route

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        response = await self._site.serve(self._answer, scope, receive)
        if response is not None:
            await response(scope, receive, send)


def _check_single(pairs: Sequence[tuple[bytes, bytes]], headers: dict[bytes, bytes]) -> None:
    """Raises BadRequest for two headers of one name, of which others might read the other one."""
    if len(pairs) > len(headers):
        counted = Counter(name for name, _ in pairs)
        if double := next((name for name in _SINGLE if counted[name] > 1), None):
            raise BadRequest(f"header {double.decode()} occurs twice")


def _check_origin(headers: dict[bytes, bytes], origins: Sequence[str]) -> None:
    """Raises NotPermitted for what a page of another site sends: its user may not know."""
    origin = headers.get(b"origin")
    if origin is None or "*" in origins:
        return
    text = origin.decode("latin-1")
    if text not in origins and urlsplit(text).netloc != headers.get(b"host", b"").decode("latin-1"):
        raise NotPermitted("a page of another site may not send requests here: see the setting server.cors_origins")


def _log(scope: Any, asked: Asked, error: ConvoyError) -> None:
    """Writes the line of a request that is refused, unless a call of it has one."""
    if REQUESTS.failed and not asked.logged:
        fields: dict[str, object] = {"method": scope["method"][:20], "path": shown(asked.path.encode())}
        fields |= {"reason": error.reason, "detail": error.message, "peer": asked.source.caller}
        REQUESTS.refused_at_door(fields if asked.trace is None else fields | asked.trace.fields())


async def _refuse(error: ConvoyError, asked: Asked) -> Response:
    raise error


async def _unknown(asked: Asked) -> Response:
    raise UnknownPath(asked.path)


_UNKNOWN = Route("GET", "", _unknown, "")
