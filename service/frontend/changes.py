"""Changes while the server runs: those that callers of this front end ask for, and those that the supervisor sends."""

import asyncio
import itertools
from collections.abc import Callable, Sequence

from convoy.service import log
from convoy.service.errors import ModelUnavailable
from convoy.service.frontend.catalogue import Catalogue
from convoy.service.frontend.regions import Regions
from convoy.service.frontend.tracing import Traces
from convoy.service.ipc import messages

_LONGEST = 5.0  # seconds that a table may take to come; if it does not, something else has changed it since
_RETRY = 1.0  # seconds until the next attempt to tell a supervisor that does not read

Send = Callable[[messages.Message, Sequence[int]], None]  # to the supervisor, with descriptors; raises OSError


class Orders:
    """Changes that the supervisor makes in all processes, because a caller of this front end asks for them.

    One writer: the front end's loop.
    """

    def __init__(self, send: Send) -> None:
        self._send = send
        self._numbers = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[messages.Refusal | None]] = {}

    async def make(self, change: messages.Change, descriptors: Sequence[int] = ()) -> None:
        """Returns once every process has changed. Raises BadRequest, UnknownModel, ModelUnavailable."""
        number = next(self._numbers)
        outcome = self._waiting[number] = asyncio.get_running_loop().create_future()
        try:
            self._send(messages.Ask(number, change), descriptors)
            refusal = await outcome
        except OSError:  # it is stopped, or has died
            raise ModelUnavailable("the supervisor does not answer") from None
        finally:
            del self._waiting[number]
        if refusal is not None:
            raise messages.error_of(refusal)

    def end(self, outcome: messages.Outcome) -> None:
        """Accepts what has become of a change."""
        waiting = self._waiting.get(outcome.number)
        if waiting is not None and not waiting.done():
            waiting.set_result(outcome.refusal)


class Changes:
    """Changes that the supervisor has sent: made, and confirmed. One writer: the front end's loop.

    regions  None if shared memory is not offered
    """

    def __init__(self, send: Send, catalogue: Catalogue, traces: Traces, regions: Regions | None) -> None:
        self._send = send
        self._catalogue = catalogue
        self._traces = traces
        self._regions = regions
        self._expected: dict[int, messages.Shown] = {}  # states of the table, by the number to be confirmed
        self._loop = asyncio.get_running_loop()

    def make(self, number: int, change: messages.Change, descriptors: Sequence[int]) -> None:
        """Makes a change."""
        match change:
            case messages.Shown():
                self._expected[number] = change
                self._loop.call_later(_LONGEST, self._confirm_shown, number)
                self.table_changed()
                return
            case messages.Region() if self._regions is not None:
                self._regions.add(change, descriptors[0])
            case messages.Forget(region=name) if self._regions is not None:
                self._regions.remove(name)
            case messages.Logging(level=level):
                log.set_level(level)
            case messages.Tracing():
                self._traces.set(change)
        self._confirm(number)

    def table_changed(self) -> None:
        """Confirms what the table now shows."""
        for number, wanted in list(self._expected.items()):
            rows = [row for row in self._catalogue.table.versions if row.model == wanted.model]
            ready = {row.version for row in rows if row.state == "READY"}
            if wanted.version in ready or not (wanted.version or ready):
                self._confirm_shown(number)

    def _confirm_shown(self, number: int) -> None:
        if self._expected.pop(number, None) is not None:
            self._confirm(number)

    def _confirm(self, number: int) -> None:
        try:
            self._send(messages.Applied(number), ())
        except BlockingIOError:  # it is stopped and its socket is full
            self._loop.call_later(_RETRY, self._confirm, number)
        except OSError:
            pass  # it has died, and this process is about to exit
