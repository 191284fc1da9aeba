"""inference.GRPCInferenceService: the Open Inference Protocol, version 2, over the same slots and engine."""

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib.metadata import version as package_version
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from convoy.service import metadata, metric_files, metrics
from convoy.service.config import LimitsConfig
from convoy.service.dtypes import DATATYPES
from convoy.service.errors import BadRequest, BadTensor, ConvoyError, NotOffered, PredictedLate, named
from convoy.service.frontend import encoding, tensors
from convoy.service.frontend.call import Call, observe
from convoy.service.frontend.catalogue import Catalogue
from convoy.service.frontend.coalescing import Row, pays
from convoy.service.frontend.engine_client import EngineClient, Lease
from convoy.service.frontend.prepare import to_its_end
from convoy.service.frontend.shared import Shared
from convoy.service.ipc.channel import Answer
from convoy.service.ipc.slots import COPIED_AT_ONCE
from convoy.service.metrics import Duration, Statistics
from convoy.service.pb import inference_pb2 as pb
from convoy.service.repository import MODEL_FILE, TensorSpec, Version

# Extensions of the protocol's core, by the names that clients use.
EXTENSIONS = ("classification", "model_configuration", "parameters", "statistics")

_PLATFORM = "onnxruntime_onnx"
_DATA_TYPES = {name: f"TYPE_{datatype}" for name, datatype in DATATYPES.items()}
_NO_SHARED_MEMORY = "shared memory is not offered: send tensors in the request, and read them from the response"


class _NotOffered:
    """Methods of the protocol that are refused, or that always return the same."""

    async def RepositoryModelLoad(self, request: pb.RepositoryModelLoadRequest, call: Call) -> NoReturn:
        """Raises NotOffered."""
        raise NotOffered(
            "models are not loaded on request: put a file at MODEL/VERSION/model.onnx in the server's repository, "
            "which is watched, and poll ModelReady or RepositoryIndex until it serves"
        )

    async def RepositoryModelUnload(self, request: pb.RepositoryModelUnloadRequest, call: Call) -> NoReturn:
        """Raises NotOffered."""
        raise NotOffered(
            "models are not unloaded on request: remove MODEL/VERSION from the server's repository, which is watched, "
            "and the version stops serving once its requests are answered"
        )

    async def SystemSharedMemoryStatus(
        self, request: pb.SystemSharedMemoryStatusRequest, call: Call
    ) -> pb.SystemSharedMemoryStatusResponse:
        """Returns no region: none can be registered."""
        return pb.SystemSharedMemoryStatusResponse()

    async def SystemSharedMemoryRegister(self, request: pb.SystemSharedMemoryRegisterRequest, call: Call) -> NoReturn:
        """Raises NotOffered."""
        raise NotOffered(_NO_SHARED_MEMORY)

    async def SystemSharedMemoryUnregister(
        self, request: pb.SystemSharedMemoryUnregisterRequest, call: Call
    ) -> pb.SystemSharedMemoryUnregisterResponse:
        """Does nothing, because nothing is registered. Clients call this first."""
        return pb.SystemSharedMemoryUnregisterResponse()

    async def CudaSharedMemoryStatus(
        self, request: pb.CudaSharedMemoryStatusRequest, call: Call
    ) -> pb.CudaSharedMemoryStatusResponse:
        """Returns no region: none can be registered."""
        return pb.CudaSharedMemoryStatusResponse()

    async def CudaSharedMemoryRegister(self, request: pb.CudaSharedMemoryRegisterRequest, call: Call) -> NoReturn:
        """Raises NotOffered."""
        raise NotOffered(_NO_SHARED_MEMORY)

    async def CudaSharedMemoryUnregister(
        self, request: pb.CudaSharedMemoryUnregisterRequest, call: Call
    ) -> pb.CudaSharedMemoryUnregisterResponse:
        """Does nothing, because nothing is registered."""
        return pb.CudaSharedMemoryUnregisterResponse()

    async def LogSettings(self, request: pb.LogSettingsRequest, call: Call) -> pb.LogSettingsResponse:
        """Returns no settings: none can be changed while the server runs."""
        if request.settings:
            raise NotOffered("the log is not set on request: server.log_level of the configuration, read at the start")
        return pb.LogSettingsResponse()


class InferenceService(_NotOffered):
    """The servicer. `ready` returns whether this front end accepts requests; `transport` is an extension of its own."""

    joinable = ("ModelInfer",)

    def __init__(
        self,
        *,
        catalogue: Catalogue,
        client: EngineClient,
        limits: LimitsConfig,
        threads: ThreadPoolExecutor,
        metrics_directory: Path,
        ready: Callable[[], bool],
        transport: str,
    ) -> None:
        self._catalogue = catalogue
        self._client = client
        self._limits = limits
        self._threads = threads
        self._statistics = Shared(lambda: metrics.statistics(metric_files.collect(metrics_directory)))
        self._ready = ready
        self._extensions = (*EXTENSIONS, transport)

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
            read = tensors.read(request, row, self._limits.max_input_pixels, call.payloads)
            requested = tensors.requested_outputs(request, row)
            numbers = sorted({number for number, _ in requested})
            call.check_deadline()
            began = time.monotonic()
            with self._client.preparing(row.model):
                lease = self._client.claim(
                    [(spec.dtype, values.shape) for spec, values in zip(row.inputs, read.arrays, strict=True)],
                    [(number, tensors.output_bytes(row, read.arrays, number)) for number in numbers],
                    call.landing,
                    [[values] for values in read.arrays],
                )
            with lease:
                await self._fill(lease, read.arrays)
                lease.prepared = (began, began, time.monotonic())  # nothing is decoded
                answer, outputs = await lease.run(
                    row,
                    rows=read.rows,
                    in_flight=self._catalogue.users(row),
                    deadline=call.deadline,
                    low_priority=call.low_priority,
                )
                response = pb.ModelInferResponse(model_name=row.model, model_version=str(row.version), id=request.id)
                for number, classes in requested:
                    _put(response, row, number, outputs[number], classes)
            _put_timings(response, observe(call, lease.prepared, answer.times), answer.batch_size)
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

    async def TraceSetting(self, request: pb.TraceSettingRequest, call: Call) -> pb.TraceSettingResponse:
        """Returns no settings. A setting without a value resets one that was never set. Otherwise raises NotOffered."""
        if request.model_name:
            self._serving(request.model_name, "", call)
        if any(setting.value for setting in request.settings.values()):
            raise NotOffered("requests are not traced: each response has the times of its stages as parameters")
        return pb.TraceSettingResponse()

    def row(self, request: pb.ModelInferRequest, call: Call) -> Row | None:
        """See Joinable: tensors of one row can be one."""
        version = self._serving(request.model_name, request.model_version, call)
        if not version.batched or request.parameters:
            return None
        read = tensors.read(request, version, self._limits.max_input_pixels, call.payloads)
        requested = tensors.requested_outputs(request, version)
        numbers = sorted({number for number, _ in requested})
        outputs = [(number, tensors.output_bytes(version, read.arrays, number)) for number in numbers]
        if call.landing is not None and len(read.arrays) > 1:
            return None  # not all of them may lie as they should: copying the others takes long
        if read.rows != 1 or any(classes for _, classes in requested) or not all(nbytes for _, nbytes in outputs):
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
        order = [number for number, _ in requested]
        heads = [encoding.infer_output(version.outputs[number], (1, *outputs[number].shape[1:])) for number in order]
        contents = [outputs[number].tobytes() for number in order]
        sizes = [len(content) // len(rows) for content in contents]
        failed = answer.errors()
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
        row = self._catalogue.table.serving(name, _version(version))
        call.serves(row)
        return row

    async def _fill(self, lease: Lease, arrays: Sequence[NDArray[np.generic]]) -> None:
        """Copies the tensors that have not landed."""
        copies = [(lease.inputs[number], arrays[number]) for number in lease.unfilled]
        if sum(values.nbytes for _, values in copies) <= COPIED_AT_ONCE:
            _copy(copies)
        else:
            await to_its_end(self._threads, partial(_copy, copies))


def _copy(copies: Sequence[tuple[NDArray[np.generic], NDArray[np.generic]]]) -> None:
    for view, values in copies:
        view[...] = values


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


def _put(response: pb.ModelInferResponse, row: Version, number: int, values: NDArray[np.generic], classes: int) -> None:
    spec = row.outputs[number]
    if not classes:
        response.outputs.add(name=spec.name, datatype=DATATYPES[spec.dtype], shape=values.shape)
        response.raw_output_contents.append(values.tobytes())
        return
    if values.ndim < 2:
        raise BadTensor(f"output {named(spec.name)} has rank {values.ndim}, want 2 or more for classification")
    labels = row.document.labels if row.document is not None and spec.name == metadata.PROBABILITIES else []
    texts = tensors.ranked(values, classes, labels)
    response.outputs.add(name=spec.name, datatype="BYTES", shape=texts.shape)
    response.raw_output_contents.append(tensors.byte_strings(texts))


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
