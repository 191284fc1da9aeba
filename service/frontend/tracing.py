"""Traces: the times of a request's stages as a line of the log, for one of so many requests, where that is on."""

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

from convoy.service import metrics
from convoy.service.ipc import messages

if TYPE_CHECKING:
    from convoy.service.access import Caller
    from convoy.service.frontend.trace import Trace

log = logging.getLogger(__name__)

DEFAULT_RATE = 1000  # as in Triton
_NAMES = tuple(f"{stage}_seconds" for stage in (*metrics.STAGES, "total"))


class Traced(Protocol):
    """What a line says of a request: see Call."""

    method: str
    model: str
    version: str
    caller: "Caller | None"
    trace: "Trace | None"


class Traces:
    """Which requests of this process are traced. One writer: the front end's loop."""

    def __init__(self) -> None:
        self.on = False  # for any model
        self._settings: dict[str, messages.Tracing] = {}  # by model; "": for all others
        self._requests: Counter[str] = Counter()  # since it is on, by model

    def set(self, setting: messages.Tracing) -> None:
        """Replaces the setting of a model."""
        self._settings[setting.model] = setting
        self.on = any(self.is_on(model) for model in self._settings)
        self._requests.pop(setting.model, None)
        if not self.on:
            self._requests.clear()

    def of(self, model: str) -> messages.Tracing:
        """Returns the setting of a model itself; "": that for all others."""
        return self._settings.get(model, messages.Tracing(model))

    def is_on(self, model: str) -> bool:
        """Returns whether requests for a model are traced."""
        own, common = self.of(model).on, self.of("").on
        return bool(common if own is None else own)

    def rate(self, model: str) -> int:
        """Returns the number of requests of which one is traced."""
        return self.of(model).rate or self.of("").rate or DEFAULT_RATE

    def record(self, call: Traced, seconds: Sequence[float], images: int = 1) -> None:
        """Writes a line on what was answered together of a request, if it is its turn.

        seconds  of its stages, in the order of metrics.STAGES, and in total
        """
        model = call.model
        if not self.is_on(model):
            return
        turn = self._requests[model]
        self._requests[model] += 1
        if turn % self.rate(model):
            return
        fields: dict[str, object] = {"method": call.method, "model": model, "version": call.version}
        if call.caller is not None:
            fields["caller"] = call.caller.name
        names: Mapping[str, str] = {} if call.trace is None else call.trace.fields()
        times = {name: round(each, 6) for name, each in zip(_NAMES, seconds, strict=True)}
        log.info("request traced", extra={"fields": {**fields, **names, "images": images, **times}})


TRACES = Traces()  # of this process, as its metrics are
