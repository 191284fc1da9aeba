"""Decides at the beginning of a call who calls, and whether it may: for every method of every service, known or not."""

from collections.abc import Sequence

from convoy.service import metrics
from convoy.service.access import Caller, Callers, Entry
from convoy.service.config import AccessConfig
from convoy.service.errors import ConvoyError
from convoy.service.followed import Followed

_HEALTH = b"/grpc.health.v1.Health/"
_REFLECTION = b"/grpc.reflection."
_OIP = "/inference.GRPCInferenceService/"
# What manages a server. None of it is offered; who may ask is decided first.
_MANAGEMENT = frozenset(
    f"{_OIP}{name}".encode()
    for name in (
        "RepositoryModelLoad",
        "RepositoryModelUnload",
        "SystemSharedMemoryRegister",
        "CudaSharedMemoryRegister",
        "TraceSetting",
        "LogSettings",
    )
)
ANYBODY = Caller("", Entry())  # at a public door; may call no model


class Doors:
    """The doors of a front end. One writer: its loop."""

    def __init__(self, config: AccessConfig, callers: Followed[Callers]) -> None:
        self._callers = callers
        self._public = tuple(
            prefix for name, prefix in (("health", _HEALTH), ("reflection", _REFLECTION)) if name in config.public
        )

    def admit(self, path: bytes, authorization: bytes | None, names: Sequence[str]) -> Caller:
        """Returns who calls the method with this path. Raises UnknownCaller, NotPermitted.

        Which models the caller may call is checked where the request names one: see Call.permit.

        authorization  the header; None: there is none
        names          those in the certificate of the caller
        """
        if path.startswith(self._public):
            return ANYBODY
        try:
            caller = self._callers.value.identify(authorization, names)
            if path in _MANAGEMENT:
                caller.need("admin")
        except ConvoyError as error:
            metrics.REFUSALS.labels("", error.reason).inc()
            raise
        return caller
