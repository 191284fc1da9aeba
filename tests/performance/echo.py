"""The least that a gRPC server in Python can do.

`python -m tests.performance.echo BYTES SECONDS [KIND]` prints its port, and answers so many bytes after so long. KIND:
`uvloop` or `asyncio`, the loops under grpc.aio; `threads`; or `nghttp2`, our own transport on uvloop.
"""

import asyncio
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import uvloop

from convoy.service.frontend.transport.http2 import Http2
from convoy.service.frontend.transport.interface import Limits, Received, Service, Stream
from convoy.service.frontend.transport.nghttp2 import Library

METHOD = "/echo.Echo/Echo"
STREAM = "/echo.Echo/Stream"
_OPTIONS = [("grpc.max_receive_message_length", -1)]
_THREADS = 4


def _handler(unary: Any, stream: Any) -> grpc.GenericRpcHandler:
    methods = {
        "Echo": grpc.unary_unary_rpc_method_handler(unary),
        "Stream": grpc.stream_stream_rpc_method_handler(stream),
    }
    return grpc.method_handlers_generic_handler("echo.Echo", methods)


async def _on_a_loop(answer: bytes, seconds: float) -> None:
    async def echo(request: bytes, context: Any) -> bytes:
        if seconds:
            await asyncio.sleep(seconds)
        return answer

    async def stream(_: Any, context: Any) -> None:
        while await context.read() is not grpc.aio.EOF:
            await context.write(answer)

    server = grpc.aio.server(options=_OPTIONS)
    server.add_generic_rpc_handlers((_handler(echo, stream),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(port, flush=True)
    await server.wait_for_termination()


async def _on_nghttp2(answer: bytes, seconds: float) -> None:
    async def echo(received: Received, deadline: int) -> bytes:
        if seconds:
            await asyncio.sleep(seconds)
        return answer

    async def stream(both: Stream) -> None:
        while await both.read() is not None:
            await both.write(answer)

    limits = Limits(message_bytes=1 << 30, metadata_bytes=1 << 16, calls=10_000, min_ping_seconds=0)
    service = Service("echo.Echo", {"Echo": echo}, {"Stream": stream})
    server = Http2("127.0.0.1:0", [service], limits, library=Library())
    await server.start()
    print(server.addresses[0].rpartition(":")[2], flush=True)
    await asyncio.Event().wait()


def _in_threads(answer: bytes, seconds: float) -> None:
    def echo(request: bytes, context: Any) -> bytes:
        time.sleep(seconds)
        return answer

    def stream(requests: Iterator[bytes], context: Any) -> Iterator[bytes]:
        for _ in requests:
            yield answer

    server = grpc.server(ThreadPoolExecutor(_THREADS), options=_OPTIONS)
    server.add_generic_rpc_handlers((_handler(echo, stream),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    print(port, flush=True)
    server.wait_for_termination()


def main() -> None:
    """Serve until killed."""
    answer, seconds, kind = bytes(int(sys.argv[1])), float(sys.argv[2]), (*sys.argv[3:], "uvloop")[0]
    if kind == "threads":
        _in_threads(answer, seconds)
        return
    with asyncio.Runner(loop_factory=None if kind == "asyncio" else uvloop.new_event_loop) as runner:
        runner.run(_on_nghttp2(answer, seconds) if kind == "nghttp2" else _on_a_loop(answer, seconds))


if __name__ == "__main__":
    main()
