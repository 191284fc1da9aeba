"""The Open Inference Protocol over HTTP: its routes, each of which calls the method of gRPC with the same meaning."""

import zlib
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import msgspec
from starlette.responses import Response

from convoy.service.errors import BadRequest, ModelUnavailable, named
from convoy.service.frontend.rest import schemas_v2 as schemas
from convoy.service.frontend.rest import tensors
from convoy.service.frontend.rest.asked import Asked
from convoy.service.frontend.rest.plain import plain
from convoy.service.frontend.rest.refusals import JSON
from convoy.service.frontend.rest.routes import Route, versioned
from convoy.service.frontend.transport.interface import LEAST_COMPRESSED
from convoy.service.pb import inference_pb2 as pb

_LENGTH = b"inference-header-content-length"
_BINARY = "application/octet-stream"
_GRPC = "/inference.GRPCInferenceService/"
_AT_ONCE = 1 << 18  # bytes of JSON that take less time than a hop to a thread pays for
_SECONDS = 2e-8  # that a byte of JSON takes


def answer(value: Any, status: int = 200) -> Response:
    """Returns a value as JSON."""
    return Response(msgspec.json.encode(value), status, media_type=JSON)


async def live(asked: Asked) -> Response:
    """Answers whether the server answers."""
    return answer(plain(pb.ServerLiveResponse.FromString(await asked.call("ServerLive", pb.ServerLiveRequest()))))


async def ready(asked: Asked) -> Response:
    """Answers whether the server accepts requests."""
    found = pb.ServerReadyResponse.FromString(await asked.call("ServerReady", pb.ServerReadyRequest()))
    return answer(plain(found), 200 if found.ready else 503)


async def server(asked: Asked) -> Response:
    """Answers with the server's name, version and extensions."""
    found = await asked.call("ServerMetadata", pb.ServerMetadataRequest())
    value = plain(pb.ServerMetadataResponse.FromString(found))
    value["extensions"] = [*value["extensions"], "binary_tensor_data"]
    return answer(value)


async def metadata(asked: Asked) -> Response:
    """Answers with a model's tensors."""
    return answer(plain(await _metadata(asked)))


async def model_ready(asked: Asked) -> Response:
    """Answers whether a model serves. Raises UnknownModel, ModelUnavailable."""
    request = pb.ModelReadyRequest(name=asked.model, version=asked.version)
    if not pb.ModelReadyResponse.FromString(await asked.call("ModelReady", request)).ready:
        await _metadata(asked)  # raises why
        raise ModelUnavailable("the server is not ready")
    return answer({"name": asked.model, "ready": True})


async def config(asked: Asked) -> Response:
    """Answers with the part of a model's configuration that clients read."""
    request = pb.ModelConfigRequest(name=asked.model, version=asked.version)
    return answer(plain(pb.ModelConfigResponse.FromString(await asked.call("ModelConfig", request)).config))


async def statistics(asked: Asked) -> Response:
    """Answers with counts and times of one model or all."""
    request = pb.ModelStatisticsRequest(name=asked.model, version=asked.version)
    return answer(plain(pb.ModelStatisticsResponse.FromString(await asked.call("ModelStatistics", request))))


async def index(asked: Asked) -> Response:
    """Answers with every version of the repository."""
    body = await asked.body()
    ready_only = False
    if body.strip():
        ready_only = _json(body, schemas.Index).ready
    found = await asked.call("RepositoryIndex", pb.RepositoryIndexRequest(ready=ready_only))
    return answer(plain(pb.RepositoryIndexResponse.FromString(found))["models"])


async def names(asked: Asked) -> Response:
    """Answers with the names of the models that serve."""
    found = await asked.call("RepositoryIndex", pb.RepositoryIndexRequest(ready=True))
    models = pb.RepositoryIndexResponse.FromString(found).models
    return answer({"models": sorted({model.name for model in models})})


async def load(asked: Asked) -> Response:
    """Loads a model, where that is offered."""
    await asked.call("RepositoryModelLoad", pb.RepositoryModelLoadRequest(model_name=asked.model))
    return Response(status_code=200)


async def unload(asked: Asked) -> Response:
    """Unloads a model, where that is offered."""
    await asked.call("RepositoryModelUnload", pb.RepositoryModelUnloadRequest(model_name=asked.model))
    return Response(status_code=200)


async def infer(asked: Asked) -> Response:
    """Runs any model on tensors."""
    body = await asked.body()
    length = tensors.json_length(asked.headers.get(_LENGTH), body)
    if _LENGTH in asked.headers and not length:
        request = tensors.raw_request(asked.model, asked.version, body, await _metadata(asked))
        binary = tensors.Binary({}, others=True)
    else:
        read = partial(tensors.request, asked.model, asked.version, body, length)
        request, binary = await _long(asked, read, length)
    found = pb.ModelInferResponse.FromString(await asked.call("ModelInfer", request))
    # JSON of a number takes about as many bytes as twenty of these.
    size = sum(len(contents) for contents in found.raw_output_contents)
    written, json_bytes = await _long(asked, partial(tensors.response, found, binary), size)
    headers = {} if json_bytes is None else {_LENGTH.decode(): str(json_bytes)}
    encoding = asked.headers.get(b"accept-encoding", b"").strip().lower()
    if encoding in _COMPRESSED and len(written) >= LEAST_COMPRESSED:
        headers |= {"content-encoding": encoding.decode(), "vary": "accept-encoding"}
        written = await _long(asked, partial(_COMPRESSED[encoding], written), len(written))
    return Response(written, 200, headers, JSON if json_bytes is None else _BINARY)


def _gzip(data: bytes) -> bytes:
    packing = zlib.compressobj(1, wbits=31)
    return packing.compress(data) + packing.flush()


# Only for clients that ask for one of them alone: others name several that they could read, and it costs CPU time.
_COMPRESSED: Mapping[bytes, Callable[[bytes], bytes]] = {b"gzip": _gzip, b"deflate": partial(zlib.compress, level=1)}


async def _metadata(asked: Asked) -> pb.ModelMetadataResponse:
    request = pb.ModelMetadataRequest(name=asked.model, version=asked.version)
    return pb.ModelMetadataResponse.FromString(await asked.call("ModelMetadata", request))


async def _long(asked: Asked, work: Any, nbytes: int) -> Any:
    return work() if nbytes <= _AT_ONCE else await asked.aside(work, _SECONDS * nbytes)


def _json(body: bytes, kind: Any) -> Any:
    try:
        return msgspec.json.decode(body, type=kind)
    except (msgspec.DecodeError, RecursionError, ValueError) as error:
        raise BadRequest(f"request body is no JSON that fits: {named(str(error))}") from None


_ANSWER: Mapping[str, Mapping[str, Any]] = {JSON: schemas.RESPONSE, _BINARY: schemas.BINARY}
_ASK: Mapping[str, Mapping[str, Any]] = {JSON: schemas.REQUEST, _BINARY: schemas.BINARY}
_HEADERS = {
    _LENGTH.decode(): {"type": "integer", "minimum": 0, "description": "Bytes of JSON before the binary tensors"}
}


def _get(path: str, handler: Any, summary: str, schema: Mapping[str, Any], *statuses: int, **more: Any) -> Route:
    return Route("GET", path, handler, summary, {JSON: schema}, statuses=statuses, **more)


ROUTES = [
    _get("/v2", server, "Name, version and extensions of the server", schemas.SERVER),
    _get("/v2/", server, "Name, version and extensions of the server", schemas.SERVER),
    _get("/v2/health/live", live, "Whether the server answers", schemas.LIVE, public="health"),
    _get("/v2/health/ready", ready, "Whether the server accepts requests", schemas.READY, public="health"),
    _get("/v2/models", names, "The models that serve", schemas.NAMES_OF_MODELS),
    _get("/v1/models", names, "The models that serve", schemas.NAMES_OF_MODELS),
    _get("/v1/models/{model}", model_ready, "Whether a model serves", schemas.MODEL_READY, 404),
    _get("/v2/models/stats", statistics, "Counts and times of all models", schemas.STATISTICS),
    *versioned(_get("/v2/models/{model}", metadata, "The tensors of a model", schemas.METADATA, 404)),
    *versioned(_get("/v2/models/{model}/ready", model_ready, "Whether a model serves", schemas.MODEL_READY, 404)),
    *versioned(
        _get("/v2/models/{model}/config", config, "What clients read of its configuration", schemas.CONFIG, 404)
    ),
    *versioned(_get("/v2/models/{model}/stats", statistics, "Counts and times of a model", schemas.STATISTICS, 404)),
    *versioned(
        Route(
            "POST",
            "/v2/models/{model}/infer",
            infer,
            "Run a model on tensors",
            _ANSWER,
            _ASK,
            headers=_HEADERS,
            statuses=(404, 413, 415),
        )
    ),
    Route(
        "POST",
        "/v2/repository/index",
        index,
        "Every version of the repository",
        {JSON: schemas.INDEX},
        {JSON: schemas.INDEX_REQUEST},
        statuses=(413, 415),
    ),
    *(
        Route(
            "POST",
            f"/v2/repository/models/{{model}}/{what}",
            handler,
            f"{what.capitalize()} a model, where that is offered",
            statuses=(404,),
            method_of_grpc=f"{_GRPC}RepositoryModel{what.capitalize()}",
        )
        for what, handler in (("load", load), ("unload", unload))
    ),
]
