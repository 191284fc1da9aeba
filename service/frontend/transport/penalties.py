"""How long new connections from an address wait after others from there were ended for abuse."""

from collections import OrderedDict
from typing import NamedTuple

_FIRST = 0.05  # seconds after one strike; each further one doubles it
_LONGEST = 2.0  # seconds
_FORGIVEN = 10.0  # seconds without a strike, after which all are forgotten
_MOST = 10_000  # addresses


class _Strikes(NamedTuple):
    times: int
    last: float


class Penalties:
    """Strikes by address. An abuser that connects again and again gets a small part of the front end's time.

    Callers behind the same address wait with it, but for new connections only. Plain code: `now` is in seconds. One
    writer: the front end's loop.
    """

    def __init__(self) -> None:
        self._strikes: OrderedDict[str, _Strikes] = OrderedDict()  # by address, the latest last

    def strike(self, address: str, now: float) -> None:
        """Records that a connection was ended for abuse. An empty address stands for all local callers: for none."""
        if address:
            known = self._strikes.pop(address, None)
            count = known.times if known is not None and now < known.last + _FORGIVEN else 0
            self._strikes[address] = _Strikes(count + 1, now)
            if len(self._strikes) > _MOST:
                self._strikes.popitem(last=False)

    def delay(self, address: str, now: float) -> float:
        """Returns the seconds for which nothing is read from a new connection; 0 for most."""
        known = self._strikes.get(address)
        if known is None or now >= known.last + _FORGIVEN:
            return 0.0
        return min(_LONGEST, _FIRST * 2.0 ** min(known.times - 1, 10))
