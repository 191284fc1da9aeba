"""The least that a grpc.aio server can do. `python -m tests.performance.echo BYTES SECONDS` prints its port, and
answers so many bytes after so long."""

import asyncio
import sys
from typing import Any

import grpc
import uvloop

METHOD = "/echo.Echo/Echo"


async def _serve(answer: bytes, seconds: float) -> None:
    async def echo(request: bytes, context: Any) -> bytes:
        if seconds:
            await asyncio.sleep(seconds)
        return answer

    handler = grpc.method_handlers_generic_handler("echo.Echo", {"Echo": grpc.unary_unary_rpc_method_handler(echo)})
    server = grpc.aio.server(options=[("grpc.max_receive_message_length", -1)])
    server.add_generic_rpc_handlers((handler,))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(port, flush=True)
    await server.wait_for_termination()


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(bytes(int(sys.argv[1])), float(sys.argv[2])))
