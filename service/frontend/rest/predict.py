"""Predictions as KServe's protocol v1 has them: `{"instances": [..]}` to `{"predictions": [..]}`, one each, in order.

An instance is a nested list, or `{name: nested list}` for each input of the model. For a model that classifies or
segments images it is a file, too: `{"b64": ..}`, alone or as `{"image_bytes": {"b64": ..}}`.
"""

import asyncio
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import msgspec
import numpy as np
from msgspec import UNSET, Raw, UnsetType
from numpy.typing import NDArray
from starlette.responses import Response

from convoy.service import metadata
from convoy.service.config import LimitsConfig
from convoy.service.dtypes import DATATYPES, DTYPES, NAMES
from convoy.service.errors import BadRequest, BadTensor, NotOffered, RunFailed, listed, named
from convoy.service.frontend.rest import answers, bodies, nested, query, schemas
from convoy.service.frontend.rest.asked import Asked
from convoy.service.frontend.rest.refusals import JSON
from convoy.service.frontend.rest.routes import Route, versioned
from convoy.service.pb import inference_pb2
from convoy.service.pb.convoy.v1 import vision_pb2 as pb

Array = NDArray[Any]

_CLOUD_EVENT = "application/cloudevents+json"


class _Body(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    instances: Raw | UnsetType = UNSET
    inputs: Raw | UnsetType = UNSET


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An instance that is a file. One of the three is there."""

    b64: str | UnsetType = UNSET
    image_bytes: bodies.Base64 | UnsetType = UNSET
    image: bodies.Base64 | UnsetType = UNSET  # the input by its name


_BODY = msgspec.json.Decoder(_Body)
_OBJECTS = msgspec.json.Decoder(list[dict[str, Raw]])
_FILES = msgspec.json.Decoder(list[_File])


class Model(NamedTuple):
    """What a prediction depends on.

    inputs    the dtype of each, by name
    rows      most instances in a run; 0: a run has no batch dimension
    images    whether it accepts files, which it classifies, or
    segments  of which it makes class maps
    """

    inputs: dict[str, np.dtype[np.generic]]
    rows: int
    images: bool
    segments: bool


class Predictions:
    """The handlers."""

    def __init__(self, limits: LimitsConfig) -> None:
        self._most = limits.max_images

    def routes(self) -> list[Route]:
        """Returns the routes of the handlers."""
        of = "/v1/models/{model}"
        predict = Route(
            "POST",
            f"{of}:predict",
            self.predict,
            "Predictions of KServe's protocol v1",
            {JSON: schemas.PREDICTIONS},
            {JSON: schemas.INSTANCES},
            statuses=(404,),
        )
        return [*versioned(predict), *versioned(Route("POST", f"{of}:explain", self.explain, "Is not offered"))]

    async def predict(self, asked: Asked) -> Response:
        """Answers with the prediction for each instance. One that fails fails the request."""
        query.check(asked)
        if asked.content_type == _CLOUD_EVENT or b"ce-specversion" in asked.headers:
            raise NotOffered('CloudEvents are not offered: send {"instances": [..]} as application/json')
        model, found = await self._read(asked)
        if isinstance(found, dict):
            return await self._tensors(asked, model, found)
        return await self._images(asked, model, found)

    async def explain(self, asked: Asked) -> Response:
        """Refuses: KServe's explainers are servers of their own."""
        raise NotOffered("explanations are not offered: want :predict")

    async def _read(self, asked: Asked) -> tuple[Model, list[bytes] | dict[str, Array]]:
        body = await asked.body()
        model = await self._model(asked)
        read_ = partial(read, body, model, self._most)
        return model, await bodies.sized(asked, len(body), read_, nested.READ_SECONDS)

    async def _model(self, asked: Asked) -> Model:
        request = inference_pb2.ModelConfigRequest(name=asked.model, version=asked.version)
        config = inference_pb2.ModelConfigResponse.FromString(await asked.call("ModelConfig", request)).config
        types = inference_pb2.DataType
        inputs = {each.name: DTYPES[NAMES[types.Name(each.data_type).removeprefix("TYPE_")]] for each in config.input}
        outputs = {each.name for each in config.output}
        takes_image = any(each.format == inference_pb2.ModelInput.FORMAT_NHWC for each in config.input)
        segments = metadata.MASK in outputs
        classifies = metadata.PROBABILITIES in outputs
        return Model(inputs, config.max_batch_size, takes_image and (segments or classifies), segments)

    async def _images(self, asked: Asked, model: Model, files: Sequence[bytes]) -> Response:
        kind = pb.SegmentRequest if model.segments else pb.ClassifyRequest
        images = [pb.Image(encoded=file) for file in files]
        request = kind(model=asked.model, version=query.version(asked), images=images)
        del images, files
        if isinstance(request, pb.SegmentRequest):
            request.format = pb.MASK_FORMAT_PNG
            answer = await asked.call("Segment", request)
            form = answers.predicted_masks
        else:
            answer = await asked.call("Classify", request)
            form = answers.predicted_labels
        body = await bodies.sized(asked, len(answer), lambda: form(answer), answers.SECONDS)
        return Response(body, media_type=JSON)

    async def _tensors(self, asked: Asked, model: Model, inputs: dict[str, Array]) -> Response:
        requests = [_request(asked, rows) for rows in _runs(model, inputs)]
        calls = [asked.call("ModelInfer", request) for request in requests]
        encoded = await asyncio.gather(*calls, return_exceptions=True)
        found = []
        for each in encoded:
            if isinstance(each, BaseException):
                raise each
            found.append(each)
        nbytes = sum(map(len, found))
        body = await bodies.sized(asked, nbytes, lambda: write(found, model), nested.WRITE_SECONDS)
        return Response(body, media_type=JSON)


def read(body: bytes, model: Model, most: int) -> list[bytes] | dict[str, Array]:
    """Returns the instances of a request, at most `most`: files, or each of the model's inputs as an array (n, ...).

    Raises BadRequest, BadTensor.
    """
    # Before an object is created for each.
    bodies.check_members(body, b":", 1 + most * max(2, len(model.inputs)), "instances", most)
    found = bodies.decoded(_BODY, body)
    if found.inputs is not UNSET:
        raise BadRequest(
            "request body has inputs, TensorFlow Serving's columnar form, which is not offered: want instances"
        )
    if found.instances is UNSET:
        raise BadRequest('request body has no instances, want {"instances": [..]}')
    text = bytes(found.instances)
    if b'"b64"' in text and "b64" not in model.inputs:
        return _files(text, model, most)
    return _of_objects(text, model, most) if b'"' in text else _of_lists(text, model, most)


def write(encoded: Sequence[bytes], model: Model) -> bytes:
    """Returns the outputs in encoded ModelInferResponses as JSON. Raises BadRequest if JSON cannot express them."""
    predictions: list[bytes] = []
    for answer in encoded:
        outputs = _outputs(inference_pb2.ModelInferResponse.FromString(answer))
        if model.rows:
            columns = [values for _, values in outputs]
            if len({len(values) for values in columns}) != 1:
                raise RunFailed("the outputs of the network differ in their number of rows")
            predictions += [
                _prediction([(name, values[row]) for name, values in outputs]) for row in range(len(columns[0]))
            ]
        else:
            predictions.append(_prediction(outputs))
    return b'{"predictions":[' + b",".join(predictions) + b"]}"


def _files(text: bytes, model: Model, most: int) -> list[bytes]:
    if not model.images:
        raise BadTensor("instances contain b64, but the model accepts no files of images: want nested lists")
    files = []
    instances = bodies.decoded(_FILES, text, "instances")
    for number, instance in enumerate(instances):
        of_name = {"image_bytes": instance.image_bytes, "image": instance.image}
        found = [(f"instances[{number}].{name}.b64", each) for name, each in of_name.items() if each is not UNSET]
        if instance.b64 is not UNSET:
            found.append((f"instances[{number}].b64", bodies.Base64(instance.b64)))
        if len(found) != 1:
            raise BadRequest(f'instances[{number}] has {len(found)} files, want one: {{"b64": ".."}}')
        ((place, encoded),) = found
        files.append(bodies.file(encoded, place))
    _check_count(len(files), most)
    return files


def _of_lists(text: bytes, model: Model, most: int) -> dict[str, Array]:
    if len(model.inputs) != 1:
        raise BadTensor(f"instances are lists, want an object with [{listed(map(repr, model.inputs))}] for each")
    ((name, dtype),) = model.inputs.items()
    if text == b"[]":
        _check_count(0, most)

    def check(shape: Sequence[int]) -> None:
        if not shape:
            raise BadRequest("instances is no list, want one with an element for each instance")
        _check_count(shape[0], most)

    return {name: nested.read(text, dtype, "instances", check)}


def _of_objects(text: bytes, model: Model, most: int) -> dict[str, Array]:
    instances = bodies.decoded(_OBJECTS, text, "instances")
    _check_count(len(instances), most)
    for number, instance in enumerate(instances):
        if instance.keys() != model.inputs.keys():
            got, want = (listed(map(repr, names)) for names in (instance, model.inputs))
            raise BadTensor(f"instances[{number}] has [{got}], want [{want}]")
    inputs = {}
    for name, dtype in model.inputs.items():
        values = [
            nested.read(bytes(instance[name]), dtype, f"instances[{number}].{name}")
            for number, instance in enumerate(instances)
        ]
        for number, each in enumerate(values):
            if each.shape != values[0].shape:
                shapes = f"shape {list(each.shape)}, instances[0].{name} has {list(values[0].shape)}"
                raise BadTensor(f"instances[{number}].{name} has {shapes}: want one shape in a request")
        inputs[name] = np.stack(values)
    return inputs


def _check_count(count: int, most: int) -> None:
    if not 1 <= count <= most:
        raise BadRequest(f"request has {count} instances, want 1 to {most}")


def _runs(model: Model, inputs: dict[str, Array]) -> Iterator[dict[str, Array]]:
    """Yields the inputs of each run."""
    (count, *_) = (len(values) for values in inputs.values())
    for start in range(0, count, model.rows or 1):
        rows = slice(start, start + model.rows) if model.rows else start
        yield {name: values[rows] for name, values in inputs.items()}


def _request(asked: Asked, inputs: dict[str, Array]) -> inference_pb2.ModelInferRequest:
    request = inference_pb2.ModelInferRequest(model_name=asked.model, model_version=asked.version)
    for name, values in inputs.items():
        request.inputs.add(name=name, datatype=DATATYPES[values.dtype.name], shape=values.shape)
        request.raw_input_contents.append(values.tobytes())
    return request


def _outputs(response: inference_pb2.ModelInferResponse) -> list[tuple[str, Array]]:
    outputs = []
    for output, contents in zip(response.outputs, response.raw_output_contents, strict=True):
        values = np.frombuffer(contents, DTYPES[NAMES[output.datatype]]).reshape(tuple(output.shape))
        if values.dtype.kind == "f" and not np.isfinite(values).all():
            path = "/v2/models/MODEL/infer"
            raise BadRequest(
                f"output {named(output.name)} has NaN or infinite values, which JSON cannot express: want {path}"
            )
        outputs.append((output.name, values))
    return outputs


def _prediction(outputs: Sequence[tuple[str, Array]]) -> bytes:
    if len(outputs) == 1:
        return nested.write(outputs[0][1])
    members = [msgspec.json.encode(name) + b":" + nested.write(values) for name, values in outputs]
    return b"{" + b",".join(members) + b"}"
