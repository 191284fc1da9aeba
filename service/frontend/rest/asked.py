"""One HTTP request while it is answered: what its head says, its body, and the calls that it makes."""

import asyncio
import math
import time
import zlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeVar

from google.protobuf.message import Message
from starlette.datastructures import QueryParams

from convoy.service.access import Caller
from convoy.service.errors import BadRequest, ConvoyError, DeadlinePassed, QueueFull, named
from convoy.service.frontend.prepare import to_its_end
from convoy.service.frontend.rest.refusals import HttpRefused
from convoy.service.frontend.threads import Threads, Who
from convoy.service.frontend.trace import Trace
from convoy.service.frontend.transport.interface import Received, Unary

T = TypeVar("T")

_WINDOW = {b"gzip": 31, b"deflate": 15}  # zlib's wbits
_AT_ONCE = 1 << 16  # bytes that take less time to inflate than a hop to a thread
_MOST_DIGITS = 18
_MOST_SECONDS = 10**9


class Arriving:
    """Bytes of bodies that arrive, or whose requests are not answered yet, of all connections. One writer: the front
    end's loop."""

    def __init__(self, most: int) -> None:
        self.bytes = 0
        self._most = most

    def add(self, nbytes: int) -> None:
        """Counts bytes. Raises QueueFull if there are too many."""
        if self.bytes + nbytes > self._most:
            raise QueueFull(f"{self.bytes} bytes of requests have arrived, want at most {self._most}", retry_after=0.1)
        self.bytes += nbytes

    def remove(self, nbytes: int) -> None:
        """Undoes `add`."""
        self.bytes -= nbytes


class Means(NamedTuple):
    """What all requests share.

    methods        those of gRPC by name, such as Classify
    max_body_bytes of a request, before and after it is inflated
    """

    methods: Mapping[str, Unary]
    threads: Threads
    arriving: Arriving
    max_body_bytes: int


class Asked:
    """An HTTP request. One writer: the task that answers it."""

    def __init__(
        self, scope: Any, receive: Any, means: Means, caller: Caller | None, trace: Trace | None, source: Who
    ) -> None:
        # As it was sent: in a refusal, a decoded path might be taken for one of ours.
        self.path: str = (scope.get("raw_path") or scope["path"].encode()).decode("latin-1")
        self.scheme: str = scope.get("scheme", "http")
        self.path_parameters: Mapping[str, str] = scope.get("path_params", {})
        self.headers: Mapping[bytes, bytes] = dict(scope["headers"])
        self.query = QueryParams(scope["query_string"])
        self.caller = caller
        self.trace = trace
        self.source = source
        self.began = self.arrived = time.monotonic()  # `arrived`: until its body has
        self.logged = False  # one of its calls has been refused, which the log says where that is on
        self._held = 0  # bytes of its body that count as arriving
        self._receive = receive
        self._means = means

    @property
    def model(self) -> str:
        """The name in the path; "": there is none."""
        return self.path_parameters.get("model", "")

    @property
    def version(self) -> str:
        """The version in the path; "": there is none."""
        return self.path_parameters.get("version", "")

    @property
    def content_type(self) -> str:
        """The media type of the body in lower case, without parameters."""
        return self.headers.get(b"content-type", b"").partition(b";")[0].strip().lower().decode("latin-1")

    def accepts(self, media_type: str) -> bool:
        """Returns whether the caller asks for a media type by its name."""
        names = self.headers.get(b"accept", b"").decode("latin-1").lower().split(",")
        return any(name.partition(";")[0].strip() == media_type for name in names)

    async def body(self) -> bytes:
        """Reads the body, which has arrived then, and inflates it. Raises HttpRefused, BadRequest, QueueFull."""
        encoding = self.headers.get(b"content-encoding", b"identity").strip().lower()
        if encoding != b"identity" and encoding not in _WINDOW:
            shown = encoding[:32].decode("ascii", "replace")
            raise HttpRefused(
                415, f"content-encoding is {shown!r}, want gzip or deflate", accept_encoding="gzip, deflate"
            )
        data = await self._read()
        if encoding == b"identity":
            return data
        if len(data) <= _AT_ONCE:
            return _inflated(data, encoding, self._means.max_body_bytes)
        return await self.aside(lambda: _inflated(data, encoding, self._means.max_body_bytes), 1e-9 * len(data))

    def release(self) -> None:
        """Ends the request: its body is gone."""
        self._means.arriving.remove(self._held)
        self._held = 0

    async def aside(self, work: Callable[[], T], seconds: float = 0.0) -> T:
        """Returns the result of long work, which runs in a thread when the caller's turn has come."""
        return await to_its_end(self._means.threads, self.who, work, seconds)

    @property
    def who(self) -> Who:
        """Whose turn it is."""
        caller = self.caller
        return self.source if caller is None or caller.public else self.source._replace(caller=caller.name)

    async def call(self, method: str, request: Message) -> bytes:
        """Returns the encoded answer of one of gRPC's methods. Raises ConvoyError: the caller's refusal, and
        DeadlinePassed at the deadline, when the call is cancelled as a transport of gRPC does it."""
        message = request.SerializeToString()
        trace = self.trace and self.trace.of_call()
        received = Received(message, self.arrived, self.caller, trace, self.source)
        deadline = self._deadline()
        try:
            async with asyncio.timeout(None if deadline == math.inf else deadline - time.monotonic()):
                answer = await self._means.methods[method](received, deadline)
        except TimeoutError:
            self.logged = True
            raise DeadlinePassed("deadline passed before the answer was there") from None
        if isinstance(answer, ConvoyError):
            self.logged = True
            raise answer
        return answer

    def _deadline(self) -> float:
        """The earliest of the deadlines that the headers set; inf: none."""
        seconds = [math.inf]
        if (value := self.headers.get(b"x-request-timeout")) is not None:
            seconds.append(_number("x-request-timeout", value, "seconds"))
        # Envoy's, which has taken the time that it grants already.
        if (value := self.headers.get(b"x-envoy-expected-rq-timeout-ms")) is not None:
            seconds.append(_number("x-envoy-expected-rq-timeout-ms", value, "milliseconds") / 1000)
        return self.arrived + min(seconds)

    async def _read(self) -> bytes:
        most = self._means.max_body_bytes
        length = self.headers.get(b"content-length", b"")
        if length.isdigit() and (len(length) > _MOST_DIGITS or int(length) > most):
            raise _too_long(most)
        parts: list[bytes] = []
        while True:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise Gone
            part = message.get("body", b"")
            self._means.arriving.add(len(part))
            self._held += len(part)
            if self._held > most:
                raise _too_long(most)
            parts.append(part)
            if not message.get("more_body"):
                break
        self.arrived = time.monotonic()
        return parts[0] if len(parts) == 1 else b"".join(parts)


class Gone(Exception):
    """The client has gone: nobody waits for the answer."""


def _too_long(most: int) -> HttpRefused:
    return HttpRefused(413, f"request body is too long, want at most {most} bytes", connection="close")


def _inflated(data: bytes, encoding: bytes, most: int) -> bytes:
    inflating = zlib.decompressobj(_WINDOW[encoding])
    try:
        plain = inflating.decompress(data, most + 1)
    except zlib.error:
        raise BadRequest(f"request body is not {encoding.decode()}, which its content-encoding says") from None
    if len(plain) > most:
        raise _too_long(most)
    if not inflating.eof or inflating.unused_data:
        raise BadRequest(f"request body is cut off or goes on after the end of its {encoding.decode()}")
    return plain


def _number(name: str, value: bytes, unit: str) -> float:
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not 0 < number <= _MOST_SECONDS:
        raise BadRequest(f"header {name} is {named(value.decode('latin-1'))}, want {unit} above 0")
    return number
