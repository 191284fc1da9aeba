"""A client of the Open Inference Protocol, for the commands."""

from collections.abc import Callable, Sequence
from typing import Any, Self

import grpc
import numpy as np
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from numpy.typing import NDArray

from convoy.service import address, metadata
from convoy.service.client import trace
from convoy.service.client.credentials import PLAIN, Credentials
from convoy.service.client.results import read_error
from convoy.service.dtypes import NAMES
from convoy.service.metadata import Document
from convoy.service.pb import inference_pb2 as pb

_SERVICE = pb.DESCRIPTOR.services_by_name["GRPCInferenceService"]


class TensorClient:
    """Calls a server; close it, or use it in `with`. `deadline` is in seconds per call."""

    def __init__(self, target: str, deadline: float, credentials: Credentials = PLAIN) -> None:
        self._target, self._deadline = address.target(target), deadline
        self._channel = credentials.channel(self._target)
        self._metadata = credentials.metadata()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._channel.close()

    def metadata(self, model: str, version: int = 0) -> pb.ModelMetadataResponse:
        """The metadata of a version of a model, by default of the serving one. Raises ServerError."""
        request = pb.ModelMetadataRequest(name=model, version=str(version) if version else "")
        answer: pb.ModelMetadataResponse = self._call("ModelMetadata", request)
        return answer

    def document(self, model: str) -> Document | None:
        """The document in a model's metadata, or None. Raises ServerError, BadMetadata."""
        return metadata.decode(dict(self.metadata(model).properties))

    def infer(
        self, model: str, name: str, values: NDArray[np.uint8], outputs: Sequence[str]
    ) -> dict[str, NDArray[np.generic]]:
        """The named outputs for one uint8 input. Raises ServerError."""
        kind = pb.ModelInferRequest
        request = kind(
            model_name=model,
            inputs=[kind.InferInputTensor(name=name, datatype="UINT8", shape=values.shape)],
            outputs=[kind.InferRequestedOutputTensor(name=output) for output in outputs],
            raw_input_contents=[values.tobytes()],
        )
        answer = self._call("ModelInfer", request)
        return {
            tensor.name: np.frombuffer(data, NAMES[tensor.datatype]).reshape(tensor.shape)
            for tensor, data in zip(answer.outputs, answer.raw_output_contents, strict=True)
        }

    def _call(self, name: str, request: Message) -> Any:
        method = _SERVICE.methods_by_name[name]
        call: Callable[..., Any] = self._channel.unary_unary(
            f"/{_SERVICE.full_name}/{name}",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=GetMessageClass(method.output_type).FromString,
        )
        try:
            return call(request, timeout=self._deadline, metadata=trace.headers(self._metadata))
        except grpc.RpcError as error:
            raise read_error(error, self._target, self._deadline) from None
