"""A server of the Open Inference Protocol that is not Convoy, on a real socket: for tests of the load generator."""

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import grpc
from google.protobuf.message_factory import GetMessageClass

from convoy.service.pb import inference_pb2 as pb


class FakeInference:
    """Answers every request with an empty response and keeps the request; `inputs` are what it says of any model.

    The model `unknown` is NOT_FOUND. From the request of number `stall_at` on nothing is answered for `stall` seconds.
    """

    def __init__(self, *inputs: tuple[str, str, tuple[int, ...]]) -> None:
        self.inputs = inputs
        self.requests: list[Any] = []
        self.stall_at = -1
        self.stall = 0.0
        self._one_at_a_time = threading.Lock()

    def metadata(self, request: pb.ModelMetadataRequest, context: grpc.ServicerContext) -> pb.ModelMetadataResponse:
        if request.name == "unknown":
            context.abort(grpc.StatusCode.NOT_FOUND, "no model 'unknown' here")
        kind = pb.ModelMetadataResponse.TensorMetadata
        tensors = [kind(name=name, datatype=datatype, shape=shape) for name, datatype, shape in self.inputs]
        return pb.ModelMetadataResponse(name=request.name, versions=["1"], platform="fake", inputs=tensors)

    def infer(self, request: pb.ModelInferRequest, context: grpc.ServicerContext) -> pb.ModelInferResponse:
        with self._one_at_a_time:
            self.requests.append(request)
            if len(self.requests) == self.stall_at:
                time.sleep(self.stall)
        return pb.ModelInferResponse(model_name=request.model_name)


@contextmanager
def serving(fake: FakeInference) -> Iterator[str]:
    """Lets `fake` answer at the target that is given."""
    service = pb.DESCRIPTOR.services_by_name["GRPCInferenceService"]
    implementations = {"ModelMetadata": fake.metadata, "ModelInfer": fake.infer}
    handlers = {
        name: grpc.unary_unary_rpc_method_handler(
            implementation,
            request_deserializer=GetMessageClass(service.methods_by_name[name].input_type).FromString,
            response_serializer=GetMessageClass(service.methods_by_name[name].output_type).SerializeToString,
        )
        for name, implementation in implementations.items()
    }
    server = grpc.server(ThreadPoolExecutor(8), options=[("grpc.max_receive_message_length", -1)])
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service.full_name, handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(None).wait()
