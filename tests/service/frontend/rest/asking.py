"""HTTP requests for handlers alone: what they send to gRPC's methods is recorded, and answered as a test says."""

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from google.protobuf.message import Message
from starlette.responses import Response

from convoy.service.errors import ConvoyError
from convoy.service.frontend.rest.asked import Arriving, Asked, Means
from convoy.service.frontend.threads import NOBODY, Threads
from convoy.service.frontend.transport.interface import Received
from convoy.service.pb import inference_pb2
from convoy.service.pb.convoy.v1 import vision_pb2 as pb

REQUESTS: Mapping[str, type[Message]] = {
    "Classify": pb.ClassifyRequest,
    "Segment": pb.SegmentRequest,
    "ModelConfig": inference_pb2.ModelConfigRequest,
    "ModelInfer": inference_pb2.ModelInferRequest,
}
THREADS = Threads(2, "asking")
Method = Callable[[Any], Message | ConvoyError]


class Methods:
    """gRPC's methods, each with the answer that a test gives it. `asked` are the requests so far."""

    def __init__(self, **methods: Method) -> None:
        self.asked: list[Any] = []
        self.by_name = {name: self._method(REQUESTS[name], answer) for name, answer in methods.items()}

    def _method(self, kind: type[Message], answer: Method) -> Any:
        async def call(received: Received, deadline: float) -> bytes | ConvoyError:
            request = kind.FromString(received.data)
            self.asked.append(request)
            result = answer(request)
            return result if isinstance(result, ConvoyError) else result.SerializeToString()

        return call


def ask(
    handler: Callable[[Asked], Awaitable[Response]],
    methods: Methods,
    body: bytes = b"",
    query: str = "",
    model: str = "letters",
    version: str = "",
    **headers: str,
) -> Response:
    """A handler's answer. Raises what it raises."""
    scope = {
        "path": "/v1/models",
        "query_string": query.encode(),
        "path_params": {"model": model} | ({"version": version} if version else {}),
        "headers": [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()],
    }

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body}

    async def run() -> Response:
        means = Means(methods.by_name, THREADS, Arriving(1 << 30), 1 << 26)
        return await handler(Asked(scope, receive, means, None, None, NOBODY))

    return asyncio.run(run())


def value(response: Response) -> Any:
    """The JSON of an answer."""
    assert response.headers["content-type"] == "application/json"
    return json.loads(bytes(response.body))
