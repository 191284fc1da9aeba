"""Decides at the beginning of a call who calls, and whether it may: for every method of every service, known or not."""

import logging
from collections import OrderedDict
from collections.abc import Sequence

from convoy.service import metrics
from convoy.service.access import Caller, Callers, Entry
from convoy.service.config import AccessConfig, QuotasConfig
from convoy.service.errors import ConvoyError
from convoy.service.followed import Followed
from convoy.service.frontend.early import shown
from convoy.service.frontend.quotas import Account
from convoy.service.frontend.request_log import REQUESTS
from convoy.service.frontend.trace import Trace

log = logging.getLogger(__name__)

_HEALTH = b"/grpc.health.v1.Health/"
_REFLECTION = b"/grpc.reflection."
_OIP = "/inference.GRPCInferenceService/"
# What manages a server. Who may ask is decided first, whether or not it is offered.
_MANAGEMENT = (
    "RepositoryModelLoad",
    "RepositoryModelUnload",
    "SystemSharedMemoryRegister",
    "CudaSharedMemoryRegister",
    "TraceSetting",
    "LogSettings",
)
# Elsewhere these do nothing, and clients call them before anything else.
_MANAGEMENT_OF_REGIONS = ("SystemSharedMemoryStatus", "SystemSharedMemoryUnregister")
_NOTHING = Entry()
_EVERYTHING = Entry(models=("*",), scopes=("metrics", "admin"))
_MOST_PEERS = 10_000  # callers without a name whose quotas are known; the one that was quiet for longest is forgotten


class Doors:
    """The doors of a port of a front end. One writer: its loop."""

    def __init__(
        self,
        access: AccessConfig,
        callers: Followed[Callers] | None,
        quotas: QuotasConfig,
        *,
        administers: bool = False,
    ) -> None:
        """`callers`: None if everybody may call. `administers`: it is the administration port."""
        names = (*_MANAGEMENT, *_MANAGEMENT_OF_REGIONS) if administers else _MANAGEMENT
        self._management = frozenset(f"{_OIP}{name}".encode() for name in names)
        self._callers = callers
        self._quotas = quotas if quotas.requests_per_second or quotas.bytes_per_second else None
        self._peers: OrderedDict[str, Caller] = OrderedDict()  # longest quiet first
        self._public = tuple(
            prefix for name, prefix in (("health", _HEALTH), ("reflection", _REFLECTION)) if name in access.public
        )

    @property
    def needed(self) -> bool:
        """Whether there is anything to decide."""
        return self._callers is not None or self._quotas is not None

    def admit(
        self, path: bytes, authorization: bytes | None, names: Sequence[str], peer: str, trace: Trace | None = None
    ) -> Caller:
        """Returns who calls the method with this path. Raises UnknownCaller, NotPermitted, QuotaExceeded.

        Which models the caller may call is checked where the request names one: see Call.permit.

        authorization  the header; None: there is none
        names          those in the certificate of the caller
        peer           where the caller is, as `peer_of` names it
        """
        try:
            if self._callers is None or path.startswith(self._public):
                caller = self._peer(peer)
            else:
                caller = self._callers.value.identify(authorization, names)
                if path in self._management:
                    caller.need("admin")
            if self._quotas is not None:
                if caller.account is None:
                    caller.account = Account(self._quotas)
                caller.account.admit()
        except ConvoyError as error:
            metrics.REFUSALS.labels("", error.reason).inc()
            # Only on request: whoever is refused could fill the log.
            if REQUESTS.failed or log.isEnabledFor(logging.DEBUG):
                fields: dict[str, object] = {
                    "path": shown(path),
                    "reason": error.reason,
                    "peer": peer,
                    "names": list(names),
                }
                fields |= {} if trace is None else trace.fields()
                if REQUESTS.failed:
                    REQUESTS.refused_at_door(fields)
                else:
                    log.debug("call refused", extra={"fields": fields})
            raise
        return caller

    def _peer(self, peer: str) -> Caller:
        """Returns a caller without a name. Where callers have names, it may use what is public, and no model."""
        caller = self._peers.get(peer)
        if caller is None:
            caller = self._peers[peer] = Caller(peer, _EVERYTHING if self._callers is None else _NOTHING, public=True)
            if len(self._peers) > _MOST_PEERS:
                self._peers.popitem(last=False)
        else:
            self._peers.move_to_end(peer)
        return caller
