"""The table from errors to HTTP statuses, and the body of a refusal."""

import math

import msgspec
from starlette.responses import Response

from convoy.service.errors import (
    BadImage,
    BadRequest,
    BadTensor,
    ConvoyError,
    DeadlinePassed,
    EngineDied,
    ModelUnavailable,
    NotOffered,
    NotPermitted,
    PredictedLate,
    QueueFull,
    QuotaExceeded,
    RunFailed,
    UnknownCaller,
    UnknownModel,
    UnknownRegion,
    UnknownService,
)

STATUS: dict[type[ConvoyError], int] = {
    BadRequest: 400,  # fix the request
    BadImage: 400,
    BadTensor: 400,
    UnknownRegion: 400,
    UnknownCaller: 401,
    NotPermitted: 403,
    UnknownModel: 404,
    UnknownService: 404,
    QueueFull: 429,  # back off
    QuotaExceeded: 429,
    PredictedLate: 429,
    RunFailed: 500,
    EngineDied: 500,
    NotOffered: 501,
    ModelUnavailable: 503,  # loading or draining: another replica may answer
    DeadlinePassed: 504,
}
JSON = "application/json"  # exactly: clients of KServe compare it


class HttpRefused(ConvoyError):
    """A refusal that only HTTP has, with its status and headers."""

    reason = "BAD_REQUEST"

    def __init__(self, status: int, message: str, **headers: str) -> None:
        super().__init__(message)
        self.status = status
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}


class UnknownPath(HttpRefused):
    """Nothing is there."""

    reason = "UNKNOWN_PATH"

    def __init__(self, path: str) -> None:
        super().__init__(404, f"path {path[:100]!r} is unknown, want one of those in /openapi.json")


def status_of(error: ConvoyError) -> int:
    """Returns the HTTP status of an error."""
    return error.status if isinstance(error, HttpRefused) else STATUS.get(type(error), 500)


def said(status: int, text: str) -> bytes:
    """Returns the body of a refusal by the connection itself, before there is a request."""
    reason = "TOO_LONG" if status in (413, 431) else "BAD_REQUEST"
    return msgspec.json.encode({"error": text, "reason": reason}) + b"\n"


def refusal(error: ConvoyError) -> Response:
    """Returns the answer to a request that is refused: `{"error": message, "reason": its name}`."""
    body: dict[str, object] = {"error": error.message, "reason": error.reason}
    headers = dict(error.headers) if isinstance(error, HttpRefused) else {}
    if isinstance(error, UnknownCaller):
        headers["www-authenticate"] = "Bearer"
    if error.retry_after is not None:
        body["retry_after"] = error.retry_after
        headers["retry-after"] = str(max(1, math.ceil(error.retry_after)))
    return Response(msgspec.json.encode(body), status_of(error), headers, JSON)
