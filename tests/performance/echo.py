"""The least that a gRPC server in Python can do.

`python -m tests.performance.echo BYTES SECONDS [KIND]` prints its port, and answers so many bytes after so long. KIND:
`uvloop` or `asyncio`, the loops under grpc.aio, or `threads`.
"""

import asyncio
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import uvloop

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
    with asyncio.Runner(loop_factory=uvloop.new_event_loop if kind == "uvloop" else None) as runner:
        runner.run(_on_a_loop(answer, seconds))


if __name__ == "__main__":
    main()
