"""inference.GRPCInferenceService: the Open Inference Protocol, version 2, over the same slots and engine."""

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib.metadata import version as package_version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convoy.service import declared, metadata, metric_files, metrics
from convoy.service.config import LimitsConfig
from convoy.service.dtypes import DATATYPES
from convoy.service.errors import BadRequest, BadTensor, ConvoyError, PredictedLate, RunFailed, named
from convoy.service.frontend import encoding, picture_tensors, tensors
from convoy.service.frontend.call import Call, observe
from convoy.service.frontend.catalogue import Catalogue
from convoy.service.frontend.coalescing import Row, pays
from convoy.service.frontend.decoder import Decoder
from convoy.service.frontend.engine_client import EngineClient, Lease
from convoy.service.frontend.prepare import Preparer, to_its_end
from convoy.service.frontend.regions import Place, Regions
from convoy.service.frontend.shared import Shared
from convoy.service.frontend.tensors import Tensors, Wanted
from convoy.service.frontend.threads import Threads
from convoy.service.ipc.channel import Answer
from convoy.service.ipc.slots import COPIED_AT_ONCE
from convoy.service.metrics import Duration, Statistics
from convoy.service.pb import inference_pb2 as pb
from convoy.service.pb.convoy.v1.vision_pb2 import Image
from convoy.service.repository import MODEL_FILE, TensorSpec, Version

# Extensions of the protocol's core, by the names that clients use.
EXTENSIONS = ("classification", "model_configuration", "parameters", "schedule_policy", "statistics")

_PLATFORM = "onnxruntime_onnx"
_DATA_TYPES = {name: f"TYPE_{datatype}" for name, datatype in DATATYPES.items()}


class InferenceService:
    """The servicer of all that does not manage the server: see management.py.

    ready       returns whether this front end accepts requests
    extensions  of the protocol, beside those of the core
    regions     of shared memory; None: it is not offered
    """

    joinable = ("ModelInfer",)

    def __init__(
        self,
        *,
        catalogue: Catalogue,
        client: EngineClient,
        limits: LimitsConfig,
        threads: Threads,
        metrics_directory: Path,
        ready: Callable[[], bool],
        decoder: Decoder,
        extensions: Sequence[str] = (),
        regions: Regions | None = None,
    ) -> None:
        self._catalogue = catalogue
        self._client = client
        self._limits = limits
        self._threads = threads
        self._preparer = Preparer(client, limits, threads, decoder)
        self._statistics = Shared(lambda: metrics.statistics(metric_files.collect(metrics_directory)))
        self._ready = ready
        self._extensions = (*EXTENSIONS, *extensions)
        self._regions = regions

    async def ServerLive(self, request: pb.ServerLiveRequest, call: Call) -> pb.ServerLiveResponse:
        """Returns true as long as the process answers, also while it drains."""
        return pb.ServerLiveResponse(live=True)

    async def ServerReady(self, request: pb.ServerReadyRequest, call: Call) -> pb.ServerReadyResponse:
        """Returns whether the server accepts requests."""
        return pb.ServerReadyResponse(ready=self._ready())

    async def ModelReady(self, request: pb.ModelReadyRequest, call: Call) -> pb.ModelReadyResponse:
        """Returns whether a version serves; false, not an error, if it does not exist."""
        call.permit(request.name)
        number = _version(request.version)
        rows = self._catalogue.table.versions
        serves = any(row.state == "READY" and row.model == request.name and number in (0, row.version) for row in rows)
        return pb.ModelReadyResponse(ready=serves and self._ready())

    async def ServerMetadata(self, request: pb.ServerMetadataRequest, call: Call) -> pb.ServerMetadataResponse:
        """Returns the name, the version and the extensions of the core."""
        return pb.ServerMetadataResponse(name="convoy", version=package_version("convoy"), extensions=self._extensions)

    async def ModelMetadata(self, request: pb.ModelMetadataRequest, call: Call) -> pb.ModelMetadataResponse:
        """Returns the tensors of the version that serves, its provider, and its metadata document."""
        row = self._serving(request.name, request.version, call)
        properties = {"provider": row.provider}
        if row.document is not None:
            properties |= {"task": row.document.task, metadata.KEY: metadata.encode(row.document)}
        kind = pb.ModelMetadataResponse.TensorMetadata
        inputs, outputs = (
            [kind(name=spec.name, datatype=DATATYPES[spec.dtype], shape=tensors.metadata_shape(spec)) for spec in specs]
            for specs in (row.inputs, row.outputs)
        )
        return pb.ModelMetadataResponse(
            name=row.model,
            versions=[str(row.version)],
            platform=_PLATFORM,
            inputs=inputs,
            outputs=outputs,
            properties=properties,
        )

    async def ModelConfig(self, request: pb.ModelConfigRequest, call: Call) -> pb.ModelConfigResponse:
        """Returns the part of a model's configuration that clients read."""
        row = self._serving(request.name, request.version, call)
        first = 1 if row.batched else 0  # with max_batch_size > 0 the batch dimension is left out
        config = pb.ModelConfig(
            name=row.model,
            platform=_PLATFORM,
            backend="onnxruntime",
            max_batch_size=row.max_batch_size if row.batched else 0,
            default_model_filename=MODEL_FILE,
            input=[
                pb.ModelInput(
                    name=spec.name,
                    data_type=_DATA_TYPES[spec.dtype],
                    format=_format(row, spec),
                    dims=tensors.metadata_shape(spec)[first:],
                )
                for spec in row.inputs
            ],
            output=[
                pb.ModelOutput(
                    name=spec.name, data_type=_DATA_TYPES[spec.dtype], dims=tensors.metadata_shape(spec)[first:]
                )
                for spec in row.outputs
            ],
            parameters={"provider": pb.ModelParameter(string_value=row.provider)},
        )
        if row.batched:
            config.dynamic_batching.max_queue_delay_microseconds = round(row.max_queue_delay_ms * 1000)
        return pb.ModelConfigResponse(config=config)

    async def ModelInfer(self, request: pb.ModelInferRequest, call: Call) -> pb.ModelInferResponse:
        """Runs any model on tensors and returns its output tensors."""
        row = self._serving(request.model_name, request.model_version, call)
        _apply_parameters(request, call)
        with self._catalogue.using(row):
            if (files := picture_tensors.pictures(request, row, call.payloads)) is not None:
                return await self._infer_pictures(request, files, row, call)
            read = tensors.read(request, row, self._limits.max_input_pixels, call.payloads, self._regions)
            requested = tensors.requested_outputs(request, row, self._regions)
            numbers = sorted({wanted.number for wanted in requested})
            sizes = [(number, tensors.output_bytes(row, read.arrays, number)) for number in numbers]
            _check_room(row, requested, dict(sizes))
            call.check_deadline()
            began = time.monotonic()
            with self._client.preparing(row.model):
                lease = self._client.claim(
                    [(spec.dtype, values.shape) for spec, values in zip(row.inputs, read.arrays, strict=True)],
                    sizes,
                    call.landing if not read.shared else None,
                    [[values] for values in read.arrays] if not read.shared else (),
                )
            with lease:
                await self._fill(lease, read, call)
                lease.prepared = (began, began, time.monotonic())  # nothing is decoded
                answer, outputs = await lease.run(
                    row,
                    rows=read.rows,
                    in_flight=self._catalogue.users(row),
                    deadline=call.deadline,
                    low_priority=call.low_priority,
                )
                for number, values in outputs.items():
                    if reason := declared.wrong(row.document, row.outputs[number].name, values):
                        raise RunFailed(reason)
                response = pb.ModelInferResponse(model_name=row.model, model_version=str(row.version), id=request.id)
                for wanted in requested:
                    contents = _put(response, row, wanted, outputs[wanted.number])
                    if wanted.place is not None:
                        await self._hand_over(wanted.place, contents, call)
            _put_timings(response, observe(call, lease, answer), answer.batch_size)
            return response

    async def _infer_pictures(
        self, request: pb.ModelInferRequest, files: list[Image], row: Version, call: Call
    ) -> pb.ModelInferResponse:
        requested = tensors.requested_outputs(request, row, self._regions)
        if any(wanted.place is not None for wanted in requested):
            raise BadTensor("outputs for pictures go into the response, not into shared memory")
        found = await picture_tensors.run(files, call, row, self._preparer, self._catalogue)
        response = pb.ModelInferResponse(model_name=row.model, model_version=str(row.version), id=request.id)
        for wanted in requested:
            _put(response, row, wanted, found.values[wanted.number])
        _put_timings(response, found.seconds, found.batch_size)
        return response

    async def ModelStatistics(self, request: pb.ModelStatisticsRequest, call: Call) -> pb.ModelStatisticsResponse:
        """Returns counts and times of every version that serves, read back from the metrics of all processes."""
        if request.name:
            self._serving(request.name, request.version, call)
        found = await self._statistics.get()
        serving = {
            (row.model, str(row.version))
            for row in self._catalogue.table.versions
            if row.state == "READY" and request.name in ("", row.model) and call.sees(row.model)
        }
        return pb.ModelStatisticsResponse(
            model_stats=[_statistics(*key, found.get(key, Statistics())) for key in sorted(serving)]
        )

    async def RepositoryIndex(self, request: pb.RepositoryIndexRequest, call: Call) -> pb.RepositoryIndexResponse:
        """Returns every version, with the reason if it does not serve."""
        kind = pb.RepositoryIndexResponse.ModelIndex
        return pb.RepositoryIndexResponse(
            models=[
                kind(name=row.model, version=str(row.version), state=row.state, reason=row.reason)
                for row in self._catalogue.table.versions
                if (row.state == "READY" or not request.ready) and call.sees(row.model)
            ]
        )

    def row(self, request: pb.ModelInferRequest, call: Call) -> Row | None:
        """See Joinable: tensors of one row can be one."""
        version = self._serving(request.model_name, request.model_version, call)
        if not version.batched or request.parameters or any(each.datatype == "BYTES" for each in request.inputs):
            return None  # BYTES: pictures, which have to be decoded
        read = tensors.read(request, version, self._limits.max_input_pixels, call.payloads, self._regions)
        requested = tensors.requested_outputs(request, version, self._regions)
        if read.shared or any(wanted.place is not None for wanted in requested):
            return None
        numbers = sorted({wanted.number for wanted in requested})
        outputs = [(number, tensors.output_bytes(version, read.arrays, number)) for number in numbers]
        if call.landing is not None and len(read.arrays) > 1:
            return None  # not all of them may lie as they should: copying the others takes long
        if read.rows != 1 or any(wanted.classes for wanted in requested) or not all(nbytes for _, nbytes in outputs):
            return None
        inputs = [(spec.dtype, values.shape[1:]) for spec, values in zip(version.inputs, read.arrays, strict=True)]
        kind = (tuple(inputs), tuple(requested))
        data = [memoryview(values.reshape(-1).view(np.uint8).data) for values in read.arrays]
        alone = call.landing is not None or not pays(version)
        return Row(kind, inputs, outputs, data, detail=(request.id, requested), alone=alone)

    def learn(self, call: Call, rows: int, deadline: float, error: PredictedLate) -> None:
        """See Joinable: the engine decides on each request."""

    def answers(
        self,
        version: Version,
        rows: Sequence[Row],
        seconds: Sequence[Sequence[float]],
        answer: Answer,
        outputs: dict[int, NDArray[Any]],
    ) -> list[bytes | ConvoyError]:
        """See Joinable."""
        _, requested = rows[0].detail
        order = [wanted.number for wanted in requested]
        heads = [encoding.infer_output(version.outputs[number], (1, *outputs[number].shape[1:])) for number in order]
        contents = [outputs[number].tobytes() for number in order]
        sizes = [len(content) // len(rows) for content in contents]
        failed = _wrong_rows(version, outputs) | answer.errors()
        results: list[bytes | ConvoyError] = []
        for place, (row, spans) in enumerate(zip(rows, seconds, strict=True)):
            if place in failed:
                results.append(failed[place])
                continue
            parts = [content[place * size : (place + 1) * size] for content, size in zip(contents, sizes, strict=True)]
            times = encoding.infer_timings(spans, answer.batch_size)
            results.append(encoding.infer_response(version, row.detail[0], times, heads, parts))
        return results

    def _serving(self, name: str, version: str, call: Call) -> Version:
        call.permit(name)
        row = self._catalogue.table.serving(name, _version(version), call.sees)
        call.serves(row)
        return row

    async def _fill(self, lease: Lease, read: Tensors, call: Call) -> None:
        """Copies the tensors that have not landed."""
        copies, shared = [], []
        for number in lease.unfilled:
            if number in read.shared:
                shared.append((read.shared[number], lease.bytes_of(number)))
            else:
                copies.append((lease.inputs[number], read.arrays[number]))
        nbytes = sum(values.nbytes for _, values in copies) + sum(place.nbytes for place, _ in shared)
        if nbytes <= COPIED_AT_ONCE:
            _copy(copies, shared)
        else:
            await to_its_end(self._threads, call.who, partial(_copy, copies, shared))

    async def _hand_over(self, place: Place, contents: NDArray[np.generic] | bytes, call: Call) -> None:
        """Writes an output into shared memory."""
        if _nbytes(contents) <= COPIED_AT_ONCE:
            place.write(contents)
        else:
            await to_its_end(self._threads, call.who, partial(place.write, contents))


def _wrong_rows(version: Version, outputs: dict[int, NDArray[Any]]) -> dict[int, RunFailed]:
    """Returns the error of each row whose values cannot be what the file's metadata declare."""
    return {
        row: RunFailed(reason)
        for number, values in outputs.items()
        for row, reason in declared.wrong_rows(version.document, version.outputs[number].name, values).items()
    }


def _copy(
    copies: Sequence[tuple[NDArray[np.generic], NDArray[np.generic]]], shared: Sequence[tuple[Place, memoryview]]
) -> None:
    for view, values in copies:
        view[...] = values
    for place, out in shared:
        place.read(out)  # once, because its client may write there meanwhile


def _nbytes(contents: NDArray[np.generic] | bytes) -> int:
    return len(contents) if isinstance(contents, bytes) else contents.nbytes


def _check_room(row: Version, requested: Sequence[Wanted], sizes: Mapping[int, int]) -> None:
    """Raises BadTensor if an output has no room in its shared memory, as far as that is known before the run."""
    for wanted in requested:
        if wanted.place is not None and not wanted.classes:
            _check_fits(row, wanted, wanted.place, sizes[wanted.number])


def _check_fits(row: Version, wanted: Wanted, place: Place, nbytes: int) -> None:
    if nbytes > place.nbytes:
        name = named(row.outputs[wanted.number].name)
        raise BadTensor(f"output {name} has {nbytes} bytes, but {place.nbytes} of shared memory")


def _apply_parameters(request: pb.ModelInferRequest, call: Call) -> None:
    """Applies the request's own deadline and priority to the call."""
    if "timeout" in request.parameters:
        microseconds = tensors.integer("timeout", request.parameters["timeout"])
        if microseconds < 0:
            raise BadRequest(f"parameter 'timeout' is {microseconds} microseconds, want 0 for none, or more")
        if microseconds:
            call.within(microseconds / 1e6)
    if "priority" in request.parameters:
        # 1 is the highest, 0 the default.
        call.low_priority = tensors.integer("priority", request.parameters["priority"]) > 1


def _format(row: Version, spec: TensorSpec) -> pb.ModelInput.Format:
    """Returns the pixel layout of an image input. A file without metadata does not say whether it accepts images."""
    image = row.document is not None and row.document.input is not None and spec.name == metadata.IMAGE
    return pb.ModelInput.FORMAT_NHWC if image else pb.ModelInput.FORMAT_NONE


def _version(text: str) -> int:
    if not text:
        return 0
    if not (text.isascii() and text.isdigit() and len(text) <= 18 and int(text) > 0):
        raise BadRequest(f"version is {text[:32]!r}, want a positive whole number, or nothing")
    return int(text)


def _put(
    response: pb.ModelInferResponse, row: Version, wanted: Wanted, values: NDArray[np.generic]
) -> NDArray[np.generic] | bytes:
    """Adds an output to the response. Its contents are returned, for shared memory if they go there."""
    spec = row.outputs[wanted.number]
    contents: NDArray[np.generic] | bytes = values
    if wanted.classes:
        if values.ndim < 2:
            raise BadTensor(f"output {named(spec.name)} has rank {values.ndim}, want 2 or more for classification")
        labels = row.document.labels if row.document is not None and spec.name == metadata.PROBABILITIES else []
        texts = tensors.ranked(values, wanted.classes, labels)
        output = response.outputs.add(name=spec.name, datatype="BYTES", shape=texts.shape)
        contents = tensors.byte_strings(texts)
    else:
        output = response.outputs.add(name=spec.name, datatype=DATATYPES[spec.dtype], shape=values.shape)
    if wanted.place is None:
        response.raw_output_contents.append(contents if isinstance(contents, bytes) else contents.tobytes())
    else:
        _check_fits(row, wanted, wanted.place, _nbytes(contents))
        response.raw_output_contents.append(b"")  # clients match contents to outputs by their order
        tensors.put_place(output.parameters, wanted.place._replace(nbytes=_nbytes(contents)))
    return contents


def _put_timings(response: pb.ModelInferResponse, timings: Sequence[float], batch_size: int) -> None:
    for stage, seconds in zip((*metrics.STAGES, "total"), timings, strict=True):
        response.parameters[f"convoy_{stage}_seconds"].double_param = seconds
    response.parameters["convoy_batch_size"].int64_param = batch_size


def _statistics(model: str, version: str, found: Statistics) -> pb.ModelStatistics:
    stages = found.stages
    return pb.ModelStatistics(
        name=model,
        version=version,
        last_inference=round(found.last_inference * 1000),
        inference_count=found.images,
        execution_count=found.batches,
        inference_stats=pb.InferStatistics(
            success=_duration(found.success),
            fail=_duration(found.fail),
            queue=_duration(stages["queue"]),
            compute_input=_duration(stages["gather"]),
            compute_infer=_duration(stages["run"]),
            compute_output=_duration(stages["scatter"]),
        ),
        batch_stats=[
            pb.InferBatchStatistics(
                batch_size=size,
                compute_input=_duration(durations["gather"]),
                compute_infer=_duration(durations["run"]),
                compute_output=_duration(durations["scatter"]),
            )
            for size, durations in sorted(found.by_batch_size.items())
        ],
    )


def _duration(duration: Duration) -> pb.StatisticDuration:
    return pb.StatisticDuration(count=duration.count, ns=round(duration.seconds * 1e9))
