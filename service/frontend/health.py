"""grpc.health.v1: whether the server, a service or a model serves, for any transport."""

import asyncio
from collections import defaultdict

from google.protobuf.message import Message
from grpc_health.v1 import health_pb2 as pb

from convoy.service.access import NO, Caller
from convoy.service.errors import BadRequest, ConvoyError, NotPermitted, UnknownCaller, UnknownService
from convoy.service.frontend.transport.interface import Received, Service, Stream
from convoy.service.frontend.wire import Parser

HEALTH = pb.DESCRIPTOR.services_by_name["Health"]
_CHECK = Parser(HEALTH.methods_by_name["Check"].input_type, None)
_NAME = 200  # characters of a name that is repeated in a message
_STATES = {
    True: pb.HealthCheckResponse.SERVING,
    False: pb.HealthCheckResponse.NOT_SERVING,
    None: pb.HealthCheckResponse.SERVICE_UNKNOWN,
}


class Health:
    """The state of each name; the empty one is the server. One writer: the front end's loop."""

    def __init__(self) -> None:
        self._serving: dict[str, bool] = {"": True}
        self._changes: defaultdict[str, set[asyncio.Event]] = defaultdict(set)  # of those who watch
        self.service = Service(
            HEALTH.full_name, {"Check": self._check, "List": self._list}, {"Watch": self._watch}, vital=True
        )

    def set(self, name: str, serving: bool) -> None:
        """Sets the state of a name, and lets its watchers know."""
        if self._serving.get(name) != serving:
            self._serving[name] = serving
            for change in self._changes.get(name, ()):
                change.set()

    async def _check(self, received: Received, deadline: float) -> bytes | ConvoyError:
        try:
            name = _name(received)
        except BadRequest as error:
            return error
        if not _sees(received.caller, name):
            return NotPermitted(NO)
        if name not in self._serving:
            return UnknownService(f"service {name[:_NAME]!r} is unknown")
        return _encoded(self._response(name))

    async def _list(self, received: Received, deadline: float) -> bytes:
        statuses = {name: self._response(name) for name in self._serving if _sees(received.caller, name)}
        return _encoded(pb.HealthListResponse(statuses=statuses))

    async def _watch(self, stream: Stream) -> ConvoyError | None:
        received = await stream.read()
        if received is None:
            return BadRequest("call has no message, want 1")
        try:
            name = _name(received)
        except BadRequest as error:
            return error
        caller = received.caller
        if not _sees(caller, name):
            return NotPermitted(NO)
        change = asyncio.Event()
        self._changes[name].add(change)
        try:
            while True:
                change.clear()
                if caller is not None:
                    caller.check()
                await stream.write(_encoded(self._response(name)))
                await change.wait()
        except UnknownCaller as error:
            return error
        finally:
            self._changes[name].discard(change)
            if not self._changes[name]:
                del self._changes[name]

    def _response(self, name: str) -> pb.HealthCheckResponse:
        return pb.HealthCheckResponse(status=_STATES[self._serving.get(name)])


def _sees(caller: Caller | None, name: str) -> bool:
    """Returns whether a caller may ask for a name: that of the server, of a service, of a model or of its version."""
    if caller is None or caller.public or not name or "." in name:  # models have no dots in their names
        return True
    return caller.sees(name.partition("/")[0])


def _name(received: Received) -> str:
    name: str = _CHECK.parse(received.data)[0].service
    return name


def _encoded(message: Message) -> bytes:
    return message.SerializeToString()
