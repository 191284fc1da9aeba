"""gRPC calls by hand, for what the client does not let one do."""

from typing import Any

import grpc
import numpy as np
from google.protobuf.message_factory import GetMessageClass
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from numpy.typing import NDArray

from convoy.service.pb import inference_pb2
from convoy.service.pb.convoy.v1 import vision_pb2

VISION = vision_pb2.DESCRIPTOR.services_by_name["Vision"]
INFERENCE = inference_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"]


def method(channel: grpc.Channel, name: str) -> Any:
    """The unary method of either service with this name."""
    service = VISION if name in VISION.methods_by_name else INFERENCE
    found = service.methods_by_name[name]
    return channel.unary_unary(
        f"/{service.full_name}/{name}",
        request_serializer=lambda request: request if isinstance(request, bytes) else request.SerializeToString(),
        response_deserializer=GetMessageClass(found.output_type).FromString,
    )


def stream(channel: grpc.Channel, name: str) -> Any:
    """The stream of this name: called with an iterator of requests, it is an iterator of responses."""
    service = VISION if name in VISION.methods_by_name else INFERENCE
    found = service.methods_by_name[name]
    return channel.stream_stream(
        f"/{service.full_name}/{name}",
        request_serializer=lambda request: request if isinstance(request, bytes) else request.SerializeToString(),
        response_deserializer=GetMessageClass(found.output_type).FromString,
    )


def infer_request(
    model: str, values: NDArray[np.generic], name: str = "x", datatype: str = "FP32"
) -> inference_pb2.ModelInferRequest:
    """One tensor for a model, raw."""
    tensor = inference_pb2.ModelInferRequest.InferInputTensor(name=name, datatype=datatype, shape=values.shape)
    return inference_pb2.ModelInferRequest(
        model_name=model, id="17", inputs=[tensor], raw_input_contents=[values.tobytes()]
    )


def outputs(response: inference_pb2.ModelInferResponse) -> dict[str, NDArray[np.generic]]:
    """Its tensors by name."""
    types = {"FP32": np.float32, "UINT8": np.uint8, "INT64": np.int64, "FP16": np.float16}
    return {
        tensor.name: np.frombuffer(raw, types[tensor.datatype]).reshape(tensor.shape)
        for tensor, raw in zip(response.outputs, response.raw_output_contents, strict=True)
    }


def reason(error: grpc.RpcError) -> str:
    """The machine-readable reason that travels with an error."""
    return _detail(error, error_details_pb2.ErrorInfo()).reason


def retry_delay(error: grpc.RpcError) -> float:
    """Seconds after which the server says trying again makes sense."""
    return _detail(error, error_details_pb2.RetryInfo()).retry_delay.ToNanoseconds() / 1e9


def _detail(error: grpc.RpcError, message: Any) -> Any:
    status = rpc_status.from_call(error)
    for detail in status.details if status else ():
        if detail.Unpack(message):
            return message
    raise AssertionError(f"no {type(message).__name__} in {status}")
