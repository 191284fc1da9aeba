"""Which tile of a large picture is sent when: in order, few at a time, again after a refusal. Time is an argument."""

from collections import deque
from collections.abc import Iterable

import grpc

from convoy.service.client.results import ServerError
from convoy.service.client.tiling import Tile

PATIENCE = 60.0  # seconds without any answer but refusals, after which the last of them is raised
FOREVER = float("inf")
_WAIT, _LONGEST_WAIT = 0.25, 8.0  # seconds after a refusal that names no time


class TileQueue:
    """Which tiles are to be sent. Times are monotonic seconds. One caller at a time."""

    def __init__(self, tiles: Iterable[Tile], most: int) -> None:
        self._fresh = iter(tiles)
        self._upcoming: Tile | None = next(self._fresh, None)
        self._again: deque[tuple[float, Tile]] = deque()  # when, at the earliest
        self._sent: dict[int, Tile] = {}
        self._most = most
        self._refusals = 0
        self._since: float | None = None  # of the first refusal after the last answer

    @property
    def complete(self) -> bool:
        return self._upcoming is None and not self._again and not self._sent

    def next(self, now: float) -> Tile | float | None:
        """The tile to send; or the seconds to wait, infinity for an answer; None if all are answered."""
        if self.complete:
            return None
        if len(self._sent) >= self._most:
            return FOREVER
        if self._again and self._again[0][0] <= now:
            tile = self._again.popleft()[1]
        elif self._upcoming is not None and self._upcoming.number < self._oldest() + 2 * self._most:
            # Not far beyond a tile that is refused again and again: what follows would fill the memory.
            tile = self._upcoming
            self._upcoming = next(self._fresh, None)
        else:
            return self._again[0][0] - now if self._again else FOREVER
        self._sent[tile.number] = tile
        return tile

    def answered(self, tile: Tile) -> None:
        self._sent.pop(tile.number, None)
        self._refusals, self._since = 0, None

    def refused(self, tile: Tile, error: ServerError, now: float) -> None:
        """A tile to be sent again. Raises `error` if that makes no sense, or made none for too long."""
        self._check(error, now)
        del self._sent[tile.number]
        self._put_back([tile], now + self._wait(error))

    def lost(self, error: ServerError, now: float) -> float:
        """The stream has ended: all tiles without an answer are to be sent again. Returns the seconds to wait.

        Raises as `refused`."""
        self._check(error, now)
        wait = self._wait(error)
        self._put_back(list(self._sent.values()), now + wait)
        self._sent.clear()
        return wait

    def _oldest(self) -> int:
        waiting = [*self._sent, *(tile.number for _, tile in self._again)]
        assert self._upcoming is not None
        return min(waiting, default=self._upcoming.number)

    def _check(self, error: ServerError, now: float) -> None:
        self._since = now if self._since is None else self._since
        self._refusals += 1
        again = error.code is grpc.StatusCode.UNAVAILABLE or (
            # Without a reason of the server it is gRPC's own: a message beyond the limit.
            error.code is grpc.StatusCode.RESOURCE_EXHAUSTED and error.reason != error.code.name
        )
        if not again or now - self._since > PATIENCE:
            raise error

    def _wait(self, error: ServerError) -> float:
        return error.retry_after or min(_LONGEST_WAIT, _WAIT * 2 ** min(self._refusals, 10))

    def _put_back(self, tiles: list[Tile], when: float) -> None:
        self._again = deque(sorted([*self._again, *((when, tile) for tile in tiles)], key=lambda each: each[:1]))
