"""Whether the server lives and is ready, as its supervisor says."""

import json
import time
from collections.abc import Callable

from starlette.responses import Response

from convoy.service.frontend.rest import schemas_v2 as schemas
from convoy.service.frontend.rest.asked import Asked
from convoy.service.frontend.rest.refusals import JSON
from convoy.service.frontend.rest.routes import Route
from convoy.service.ipc.messages import Readiness

_REASON = {"reason": {"type": "string"}}
_READY = schemas.READY | {"properties": schemas.READY["properties"] | _REASON}


def _answer(good: bool, value: dict[str, object]) -> Response:
    # To the letter what the supervisor answers while no front end does.
    return Response(json.dumps(value).encode() + b"\n", 200 if good else 503, media_type=JSON)


class Probes:
    """What the supervisor has said last. One writer: the front end's loop.

    A supervisor that says nothing any more restarts no process: the server counts as dead then.
    """

    def __init__(
        self, draining: Callable[[], bool], patience: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`patience` is the longest silence of the supervisor, in seconds; 0: any."""
        self._draining = draining
        self._patience = patience
        self._clock = clock
        self._heard = clock()
        self._said = Readiness(False, "starting")

    def hear(self, said: Readiness) -> None:
        """Records what the supervisor says."""
        self._said = said
        self._heard = self._clock()

    @property
    def live(self) -> bool:
        """Whether the supervisor is there."""
        return not self._patience or self._clock() - self._heard <= self._patience

    @property
    def readiness(self) -> Readiness:
        """Whether the server accepts requests, and the reason if not."""
        if not self.live:
            return Readiness(False, "the supervisor does not answer")
        return Readiness(False, "draining") if self._draining() else self._said

    async def _live(self, asked: Asked) -> Response:
        return _answer(self.live, {"live": self.live})

    async def _ready(self, asked: Asked) -> Response:
        ready, reason = self.readiness.ready, self.readiness.reason
        return _answer(ready, {"ready": ready, **({"reason": reason} if reason else {})})

    def routes(self) -> list[Route]:
        """Returns /livez and /readyz."""
        return [
            Route("GET", "/livez", self._live, "Whether the server lives", {JSON: schemas.LIVE}, public="probes"),
            Route("GET", "/readyz", self._ready, "Whether the server is ready", {JSON: _READY}, public="probes"),
        ]
