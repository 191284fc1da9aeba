"""The running processes of a server: what each has reported, and whether they serve together."""

import logging
import os
import time
from contextlib import suppress
from dataclasses import dataclass, field

from convoy.service.ipc import messages
from convoy.service.supervisor.health import LoadDeaths, Silence, Weight
from convoy.service.supervisor.processes import Kind, Process

log = logging.getLogger(__name__)

# Reasons that do not end by waiting: logged even if the server was not ready before.
_FAULTS = ("no model serves", "the model repository")
_STARTING = messages.Status(listening=False, ready=False, reason="starting")


@dataclass(slots=True)
class Child:
    """A process of the server. One writer: the supervisor's loop."""

    kind: Kind
    device: int  # the engine's device; 0 for a front end
    number: int  # never reused
    process: Process
    started: float = field(default_factory=time.monotonic)
    status: messages.Status = _STARTING
    loading: messages.Suspect | None = None  # the version that an engine is loading
    loaded: bool = False  # an engine has loaded all that it is to serve
    silence: Silence = field(default_factory=lambda: Silence(0.0))
    hung: bool = False  # it was killed because it was silent
    administers: bool = False  # it is the front end that serves the administration port
    weight: Weight = field(default_factory=lambda: Weight(0))
    retiring: bool = False  # it is replaced because of its memory
    succeeds: bool = False  # it takes the place of such a one, which serves until this one is ready

    @property
    def name(self) -> str:
        """How it is called in the log."""
        return f"{self.kind} {self.process.pid}"

    @property
    def serves(self) -> bool:
        """Whether it has all that it needs to serve."""
        return self.status.ready if self.kind == "frontend" else self.loaded


class Children:
    """The running processes, and whether they serve. One writer: the supervisor's loop; the HTTP threads only read."""

    def __init__(self, front_ends: int, grpc_address: str) -> None:
        self.by_number: dict[int, Child] = {}
        self.draining = False  # a front end that ends is not restarted
        self.trouble = ""  # why the server is not ready, once it is not: a process that hung
        self._front_ends = front_ends
        self._grpc_address = grpc_address
        self.deaths = LoadDeaths()
        self._was_ready = False
        self.have_served = False  # all of them together, at some time
        self._shortage = ""  # the last warning while ready

    def of(self, kind: Kind) -> list[Child]:
        """Returns the processes of one kind."""
        return [child for child in list(self.by_number.values()) if child.kind == kind]

    def ready(self) -> tuple[bool, str]:
        """Returns whether every front end accepts requests; and the reason if not, or if an engine is missing."""
        if self.draining:
            return False, "draining"
        front_ends = [
            child for child in self.of("frontend") if not child.retiring and (child.status.ready or not child.succeeds)
        ]
        missing = "front ends are starting" if len(front_ends) < self._front_ends else ""
        reason = missing or next((child.status.reason for child in front_ends if not child.status.ready), "")
        if reason:
            return False, "; ".join(filter(None, (self.trouble, reason)))
        return True, next((child.status.reason for child in front_ends if child.status.reason), "")

    def receive(self, child: Child, message: messages.Message) -> None:
        """Records what a process reports."""
        if isinstance(message, messages.Status):
            child.status = message
        elif isinstance(message, messages.Loading):
            if child.loading is not None:
                self.deaths.survived(child.loading)
            child.loading = message.what
        elif isinstance(message, messages.Loaded):
            child.loaded = True

    def receive_rest(self, child: Child) -> None:
        """Records what an ended process had sent: the last message may name the version that ended it."""
        with suppress(ConnectionError):
            while received := messages.receive(child.process.channel):
                message, descriptors = received
                self.receive(child, message)
                for descriptor in descriptors:
                    os.close(descriptor)

    def log_readiness(self) -> None:
        """Logs a change of readiness."""
        ready, reason = self.ready()
        if ready and not self._was_ready:
            self.trouble = ""
            log.info("ready", extra={"fields": {"grpc": self._grpc_address}})
        elif self._was_ready and not ready:
            log.warning("not ready: %s", reason)
        elif not ready and reason.startswith(_FAULTS):
            log.error("not ready: %s", reason)
        if ready and reason != self._shortage:
            log.warning("%s", reason or "engines serve on all devices again")
        self._was_ready = ready
        self.have_served |= ready
        self._shortage = reason if ready else self._shortage
