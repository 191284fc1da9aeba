"""What one caller may send: requests and bytes a second, with bursts."""

import ipaddress
import time
from collections.abc import Callable
from functools import lru_cache

from convoy.service.config import QuotasConfig
from convoy.service.errors import QuotaExceeded

_SHORTEST_HINT = 0.01  # seconds
_LONGEST_HINT = 3600.0
_ONE = 1 - 1e-9  # as much as is there after the time that `wait` has named, rounded
_NETWORK = 64  # bits: one subscriber has at least so large a network of IPv6 addresses
Clock = Callable[[], float]


class Bucket:
    """An allowance that grows with time up to a burst, which it contains at the beginning.

    It can be overdrawn: a message is counted once it is there, whatever its size, and the next one waits. Times are in
    seconds of one clock.
    """

    __slots__ = ("_at", "_burst", "_level", "_rate")

    def __init__(self, rate: float, burst: float, now: float) -> None:
        self._rate = rate
        self._burst = max(1.0, burst)
        self._level = self._burst
        self._at = now

    def wait(self, now: float) -> float:
        """Returns the seconds until 1 is there; 0: it is there."""
        self._level = min(self._burst, self._level + (now - self._at) * self._rate)
        self._at = now
        return (1 - self._level) / self._rate if self._level < _ONE else 0.0

    def take(self, amount: float) -> None:
        """Takes an amount, whether or not it is there."""
        self._level -= amount


class Account:
    """The quotas of one caller. One writer: the front end's loop."""

    __slots__ = ("_bytes", "_clock", "_config", "_requests")

    def __init__(self, config: QuotasConfig, clock: Clock = time.monotonic) -> None:
        now = clock()
        self._config = config
        self._clock = clock
        self._requests, self._bytes = (
            Bucket(rate, rate * config.burst_seconds, now) if rate else None
            for rate in (config.requests_per_second, config.bytes_per_second)
        )

    def admit(self) -> None:
        """Counts a request. Raises QuotaExceeded, and does not count it, if one of the quotas is used up."""
        now = self._clock()
        if self._requests is not None and (wait := self._requests.wait(now)):
            raise _exceeded(f"{self._config.requests_per_second:g} requests", wait)
        if self._bytes is not None and (wait := self._bytes.wait(now)):
            raise _exceeded(f"{self._config.bytes_per_second:g} bytes", wait)
        if self._requests is not None:
            self._requests.take(1)

    def spend(self, nbytes: int) -> None:
        """Counts the bytes of a request that was admitted."""
        if self._bytes is not None:
            self._bytes.take(nbytes)


def _exceeded(quota: str, wait: float) -> QuotaExceeded:
    hint = min(max(_SHORTEST_HINT, wait), _LONGEST_HINT)
    return QuotaExceeded(f"caller has sent more than {quota} a second", retry_after=hint)


@lru_cache(4096)
def peer_of(host: str) -> str:
    """Returns what names a caller without a name: its address, or the network of an IPv6 address; else the text."""
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return host
    if isinstance(address, ipaddress.IPv4Address):
        return str(address)
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(ipaddress.ip_network((address, _NETWORK), strict=False))
