"""The methods of the Open Inference Protocol that manage a server: what each port answers to them."""

import logging
import os
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from convoy.service import log
from convoy.service.config import LogLevel
from convoy.service.errors import BadRequest, NotOffered, UnknownModel, UnknownRegion, listed, named
from convoy.service.frontend.call import Call
from convoy.service.frontend.catalogue import Catalogue
from convoy.service.frontend.changes import Orders
from convoy.service.frontend.regions import Regions, open_region
from convoy.service.frontend.tracing import Traces
from convoy.service.ipc import messages
from convoy.service.pb import inference_pb2 as pb
from convoy.service.repository import NAME

logger = logging.getLogger(__name__)

EXTENSIONS = ("model_repository", "model_repository(unload_dependents)", "logging", "trace")
SHARED_MEMORY = "system_shared_memory"  # an extension, too

_SWITCH = "an operator may allow it on a port of its own: admin.enabled"
_NO_SHARED_MEMORY = "shared memory is not offered: send tensors in the request, and read them from the response"
_ELSEWHERE = "this is offered on the administration port only: see admin.port and admin.socket of the configuration"
_LEVELS: tuple[LogLevel, ...] = ("debug", "info", "warning", "error")
_OF_LOG = ("log_level", "log_verbose_level", "log_info", "log_warning", "log_error")
_OF_TRACES = ("trace_level", "trace_rate")
_MOST_RATE = 10**9


class NoCuda:
    """The methods for memory of GPUs, which is never offered."""

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
        """Does nothing, because nothing is registered. Clients call this first."""
        return pb.CudaSharedMemoryUnregisterResponse()


class NoManagement(NoCuda):
    """Of a server without an administration port: the methods are refused, or always return the same."""

    async def RepositoryModelLoad(self, request: pb.RepositoryModelLoadRequest, call: Call) -> NoReturn:
        """Raises NotOffered."""
        raise NotOffered(
            "models are not loaded on request: put a file at MODEL/VERSION/model.onnx in the server's repository, "
            f"which is watched, and poll ModelReady or RepositoryIndex until it serves; {_SWITCH}"
        )

    async def RepositoryModelUnload(self, request: pb.RepositoryModelUnloadRequest, call: Call) -> NoReturn:
        """Raises NotOffered."""
        raise NotOffered(
            "models are not unloaded on request: remove MODEL/VERSION from the server's repository, which is watched, "
            f"and the version stops serving once its requests are answered; {_SWITCH}"
        )

    async def SystemSharedMemoryStatus(
        self, request: pb.SystemSharedMemoryStatusRequest, call: Call
    ) -> pb.SystemSharedMemoryStatusResponse:
        """Returns no region: none can be registered."""
        return pb.SystemSharedMemoryStatusResponse()

    async def SystemSharedMemoryRegister(self, request: pb.SystemSharedMemoryRegisterRequest, call: Call) -> NoReturn:
        """Raises NotOffered."""
        raise NotOffered(f"{_NO_SHARED_MEMORY}; {_SWITCH} and admin.shared_memory")

    async def SystemSharedMemoryUnregister(
        self, request: pb.SystemSharedMemoryUnregisterRequest, call: Call
    ) -> pb.SystemSharedMemoryUnregisterResponse:
        """Does nothing, because nothing is registered. Clients call this first."""
        return pb.SystemSharedMemoryUnregisterResponse()

    async def TraceSetting(self, request: pb.TraceSettingRequest, call: Call) -> pb.TraceSettingResponse:
        """Returns no settings. A setting without a value resets one that was never set. Otherwise raises NotOffered."""
        if any(setting.value for setting in request.settings.values()):
            raise NotOffered(
                f"requests are not traced: each response has the times of its stages as parameters; {_SWITCH}"
            )
        return pb.TraceSettingResponse()

    async def LogSettings(self, request: pb.LogSettingsRequest, call: Call) -> pb.LogSettingsResponse:
        """Returns no settings: none can be changed while the server runs."""
        if request.settings:
            raise NotOffered(
                "the log is not set on request: server.log_level of the configuration, read at the start; " + _SWITCH
            )
        return pb.LogSettingsResponse()


class ManagementElsewhere(NoCuda):
    """Of the gRPC port of a server that has an administration port."""

    async def RepositoryModelLoad(self, request: Any, call: Call) -> NoReturn:
        """Raises NotOffered, as all methods here."""
        raise NotOffered(_ELSEWHERE)

    RepositoryModelUnload = RepositoryModelLoad
    SystemSharedMemoryStatus = RepositoryModelLoad
    SystemSharedMemoryRegister = RepositoryModelLoad
    SystemSharedMemoryUnregister = RepositoryModelLoad
    TraceSetting = RepositoryModelLoad
    LogSettings = RepositoryModelLoad


class Management(NoCuda):
    """Of the administration port. `regions`: None if shared memory is not offered."""

    def __init__(self, catalogue: Catalogue, orders: Orders, traces: Traces, regions: Regions | None) -> None:
        self._catalogue = catalogue
        self._orders = orders
        self._traces = traces
        self._regions = regions

    async def RepositoryModelLoad(
        self, request: pb.RepositoryModelLoadRequest, call: Call
    ) -> pb.RepositoryModelLoadResponse:
        """Looks at a model's folder now. Returns once its newest version serves; raises why it does not."""
        model = _model(request)
        for name in request.parameters:
            raise BadRequest(f"parameter {named(name)} is not accepted: models come only from the server's repository")
        await self._make(call, messages.Load(model))
        return pb.RepositoryModelLoadResponse()

    async def RepositoryModelUnload(
        self, request: pb.RepositoryModelUnloadRequest, call: Call
    ) -> pb.RepositoryModelUnloadResponse:
        """Ends a model's service. Returns once no request can reach it; those in flight are answered."""
        model = _model(request)
        for name in request.parameters:
            if name != "unload_dependents":  # no model depends on another
                raise BadRequest(f"parameter {named(name)} is unknown, want none or 'unload_dependents'")
        await self._make(call, messages.Unload(model))
        return pb.RepositoryModelUnloadResponse()

    async def SystemSharedMemoryStatus(
        self, request: pb.SystemSharedMemoryStatusRequest, call: Call
    ) -> pb.SystemSharedMemoryStatusResponse:
        """Returns the registered regions. Raises UnknownRegion if the one that is named is not among them."""
        found = [] if self._regions is None else self._regions.described()
        wanted = [each for each in found if request.name in ("", each.name)]
        if request.name and not wanted:
            raise UnknownRegion(f"region {named(request.name)} is not registered")
        response = pb.SystemSharedMemoryStatusResponse()
        for each in wanted:
            region = response.regions[each.name]
            region.name, region.key, region.offset, region.byte_size = each.name, each.key, each.offset, each.nbytes
        return response

    async def SystemSharedMemoryRegister(
        self, request: pb.SystemSharedMemoryRegisterRequest, call: Call
    ) -> pb.SystemSharedMemoryRegisterResponse:
        """Registers a region. Returns once every front end knows it."""
        if self._regions is None:
            raise NotOffered(f"{_NO_SHARED_MEMORY}; an operator may allow it: admin.shared_memory")
        region, descriptor = open_region(request.name, request.key, request.offset, request.byte_size)
        try:
            await self._make(call, region, [descriptor])
        finally:
            os.close(descriptor)
        return pb.SystemSharedMemoryRegisterResponse()

    async def SystemSharedMemoryUnregister(
        self, request: pb.SystemSharedMemoryUnregisterRequest, call: Call
    ) -> pb.SystemSharedMemoryUnregisterResponse:
        """Ends the use of a region by requests to come; without a name, of all regions. An unknown one is none."""
        if self._regions is not None:
            await self._make(call, messages.Forget(request.name))
        return pb.SystemSharedMemoryUnregisterResponse()

    async def TraceSetting(self, request: pb.TraceSettingRequest, call: Call) -> pb.TraceSettingResponse:
        """Changes the settings of traces, for one model or for all others, and returns what they then are."""
        model = request.model_name
        if model:
            model = self._catalogue.table.serving(model).model
        if request.settings:
            await self._make(call, _tracing(self._traces.of(model), request.settings))
        response = pb.TraceSettingResponse()
        response.settings["trace_level"].value.append("TIMESTAMPS" if self._traces.is_on(model) else "OFF")
        response.settings["trace_rate"].value.append(str(self._traces.rate(model)))
        return response

    async def LogSettings(self, request: pb.LogSettingsRequest, call: Call) -> pb.LogSettingsResponse:
        """Changes the level of the log in every process, and returns what it then is."""
        if request.settings:
            await self._make(call, messages.Logging(_level(log.level(), request.settings)))
        level = log.level()
        response = pb.LogSettingsResponse()
        response.settings["log_level"].string_param = level
        response.settings["log_verbose_level"].uint32_param = int(level == "debug")
        response.settings["log_info"].bool_param = level in ("debug", "info")
        response.settings["log_warning"].bool_param = level != "error"
        response.settings["log_error"].bool_param = True
        return response

    async def _make(self, call: Call, change: messages.Change, descriptors: Sequence[int] = ()) -> None:
        """Makes a change in all processes, and leaves in the log who has asked for it."""
        fields = {"method": call.method, **({} if call.caller is None else {"caller": call.caller.name})}
        logger.info("change requested", extra={"fields": fields})
        await self._orders.make(change, descriptors)


def _model(request: pb.RepositoryModelLoadRequest | pb.RepositoryModelUnloadRequest) -> str:
    if request.repository_name:
        raise BadRequest(f"repository_name is {named(request.repository_name)}, want none: there is one repository")
    model: str = request.model_name
    if not NAME.fullmatch(model):  # no folder has such a name
        raise UnknownModel(f"model {named(model)} is not in the repository")
    return model


def _tracing(before: messages.Tracing, settings: Mapping[str, pb.TraceSettingRequest.SettingValue]) -> messages.Tracing:
    """Returns what the settings of a model become. One without a value is as it is for all models."""
    on, rate = before.on, before.rate
    for name, setting in settings.items():
        values = list(setting.value)
        if name == "trace_level":
            on = _trace_level(values)
        elif name == "trace_rate":
            rate = _trace_rate(values)
        elif values:
            raise BadRequest(
                f"setting {named(name)} is not accepted, want {listed(_OF_TRACES)}: traces are lines of the log"
            )
    return messages.Tracing(before.model, on, rate)


def _trace_level(values: Sequence[str]) -> bool | None:
    if any(value not in ("OFF", "TIMESTAMPS") for value in values) or len(set(values)) > 1:
        raise BadRequest(f"trace_level is {listed(map(repr, values))}, want 'OFF' or 'TIMESTAMPS'")
    return values[0] == "TIMESTAMPS" if values else None


def _trace_rate(values: Sequence[str]) -> int | None:
    if not values:
        return None
    (value, *others) = values
    number = int(value) if value.isascii() and value.isdigit() and len(value) <= len(str(_MOST_RATE)) else 0
    if others or not 1 <= number <= _MOST_RATE:
        raise BadRequest(f"trace_rate is {listed(map(repr, values))}, want one whole number, 1 to {_MOST_RATE}")
    return number


def _level(before: LogLevel, settings: Mapping[str, pb.LogSettingsRequest.SettingValue]) -> LogLevel:
    """Returns what the level of the log becomes: the lowest that is on."""
    for name in settings:
        if name not in _OF_LOG:
            raise BadRequest(f"setting {named(name)} is not accepted, want {listed(_OF_LOG)}")
    if "log_level" in settings:
        if len(settings) > 1:
            raise BadRequest("log_level is set with others, want it alone")
        return _named_level(settings["log_level"])
    on = {level: _LEVELS.index(level) >= _LEVELS.index(before) for level in _LEVELS}
    for level, name in zip(_LEVELS, _OF_LOG[1:], strict=True):
        if name in settings:
            on[level] = _switch(name, settings[name])
    if not on["error"]:
        raise BadRequest("log_error is false: errors are always logged")
    return next(level for level in _LEVELS if on[level])


def _named_level(setting: pb.LogSettingsRequest.SettingValue) -> LogLevel:
    for level in _LEVELS:
        if setting.string_param == level:
            return level
    raise BadRequest(f"log_level is {named(setting.string_param)}, want {listed(_LEVELS)}")


def _switch(name: str, setting: pb.LogSettingsRequest.SettingValue) -> bool:
    kind = setting.WhichOneof("parameter_choice")
    wanted = "uint32_param" if name == "log_verbose_level" else "bool_param"
    if kind != wanted:
        raise BadRequest(f"{name} has {kind or 'no value'}, want {wanted}")
    return bool(getattr(setting, wanted))
