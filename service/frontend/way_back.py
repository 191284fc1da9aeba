"""How long before a deadline the engine has to be done."""

from convoy.service.ipc.channel import NEVER

_REPLY = 0.001  # seconds that gRPC takes for a reply, which nobody here sees
_QUANTILE = 0.999  # of a large batch's answers the last leaves many replies behind the first
_STEP = 0.2


class WayBack:
    """How long answers take from the engine's last word to the reply, as 999 in 1,000 do not exceed it: what a deadline
    has to leave for that. Seconds; the usual stochastic step towards a quantile, rare large steps up, small ones down.
    """

    def __init__(self) -> None:
        self.bound = _REPLY

    def learn(self, seconds: float) -> None:
        """One answer took so long."""
        step = _QUANTILE if seconds + _REPLY > self.bound else _QUANTILE - 1
        self.bound = max(_REPLY, self.bound * (1 + _STEP * step))

    def leave(self, deadline: int, now: int) -> int:
        """When the engine has to be done, CLOCK_MONOTONIC in ns, for an answer by `deadline`: at the latest in half of
        the time that is left."""
        if deadline == NEVER:
            return NEVER
        return deadline - min(round(self.bound * 1e9), max(0, deadline - now) // 2)
