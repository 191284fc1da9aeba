"""l(b): what a batch of b images takes, as it was measured before serving and is learned while serving.

Plain code: measurements come in, predictions go out. All times are in seconds.
"""

from bisect import bisect_right
from collections.abc import Mapping

_SPEED_WEIGHT = 0.25  # of the newest batch in the common factor: 20 batches after a change, 0.3 % of it is left
_SHAPE_WEIGHT = 0.05  # of the newest batch in the time of its own size: how sizes compare changes little
_OUTLIER = 4.0  # a batch that took longer by more than this factor counts as this much
_STALE = 0.01  # change of a size's time from which on the table is made anew
_QUANTILE = 0.99  # of the batches that end within `bound`
_QUANTILE_STEP = 0.02  # by which the bound moves, of the predicted time
_EFFICIENT = 0.998  # of the highest throughput is as good as the highest: the smaller batch answers earlier


class RunTimes:
    """What batches of one model, version and shape take, for 1 to `most` images.

    A common factor follows the machine's speed, and the times of the measured sizes (at first those given, then larger
    ones and powers of two as they come) follow how sizes compare. Between measured sizes lies a straight line; above
    the largest, the throughput of that one. A larger batch never takes less time. One writer: the engine's loop.

    `guessed` times are another shape's in proportion, or those of a first batch: the first that runs puts them right as
    a whole, and once a size has run twice they count as measured.
    """

    def __init__(self, most: int, measured: Mapping[int, float] | None = None, *, guessed: bool = False) -> None:
        self.most = most
        self.guessed = guessed
        self.margin = 1.0  # of the time predicted; `bound` has it
        self._speed = 1.0
        self._measured = dict(measured or {})  # batch size -> seconds, at speed 1
        # That say how long a measured size takes.
        self._batches = dict.fromkeys(self._measured, 1.0 if guessed else 1 / _SHAPE_WEIGHT)
        self._ran: set[int] = set() if guessed else set(self._measured)
        self._built: dict[int, float] = {}  # what the table below was made from
        self._times: list[float] = []  # by batch size, 0 to most, at speed 1, ascending
        # By the most images a batch may have, up to the largest measured size: how many it should have.
        self._efficient: list[int] = []
        if self._measured:
            self._rebuild()

    @property
    def measured(self) -> Mapping[int, float]:
        """The seconds of each measured size, as they are known now."""
        return {size: self._speed * seconds for size, seconds in self._measured.items()}

    @property
    def known(self) -> bool:
        """Whether any batch has been measured."""
        return bool(self._times)

    def predict(self, size: int) -> float:
        """What a batch should take; 0 where none has been measured. Sizes above `most` count as that."""
        return self._speed * self._times[min(size, self.most)] if self._times else 0.0

    def bound(self, size: int) -> float:
        """What 99 in 100 batches of this size do not exceed."""
        return self.margin * self.predict(size)

    def largest_within(self, seconds: float) -> int:
        """The largest batch with a bound of at most `seconds`; 0 where not even one image's is."""
        if not self._times:
            return self.most
        # A hair more, or the exact time of a batch would not fit into itself.
        return max(0, bisect_right(self._times, seconds * (1 + 1e-9) / (self._speed * self.margin)) - 1)

    def efficient(self, most: int) -> int:
        """How many images a batch of at most `most` should have where there are more than enough: the fewest with
        which the throughput is all but the highest; or twice the largest measured, where the best of the measured
        sizes is so near to it that more may be better still."""
        most = min(most, self.most)
        if not self._times:
            return most
        largest = len(self._efficient) - 1
        best = self._efficient[min(most, largest)]
        return min(most, 2 * largest) if most > largest and 2 * best > largest else best

    def learn(self, size: int, seconds: float) -> None:
        """A batch took so long."""
        size = min(size, self.most)
        if self.guessed:
            self._correct(size, seconds)
            return
        if size not in self._ran:
            self._ran.add(size)  # the first of its size allocates: it says nothing of the others
            return
        if not self._measured or size > max(self._measured):
            self._add(size, seconds)  # beyond what is known there is no prediction to correct
            return
        ratio = max(seconds, 1e-9) / max(self.predict(size), 1e-9)
        self._learn_margin(ratio)
        ratio = min(max(ratio, 1 / _OUTLIER), _OUTLIER)
        self._speed *= ratio**_SPEED_WEIGHT
        if size not in self._measured and size & (size - 1) == 0:
            self._add(size, seconds)
            return
        ratio **= 1 - _SPEED_WEIGHT  # what the speed does not explain
        for knot, share in self._around(size):
            self._batches[knot] += share
            weight = max(_SHAPE_WEIGHT, share / self._batches[knot])  # what is known of few batches is a plain mean
            self._measured[knot] *= ratio ** (weight * share)
            if abs(self._measured[knot] - self._built[knot]) > _STALE * self._built[knot]:
                self._rebuild()

    def _correct(self, size: int, seconds: float) -> None:
        factor = max(seconds, 1e-9) / max(self.predict(size), 1e-9)
        if len(self._measured) > 1:
            self._measured = {knot: factor * time for knot, time in self._measured.items()}
        else:
            self._measured, self._batches = {size: seconds}, {size: 1.0}
        self.guessed = size not in self._ran
        self._ran.add(size)
        self._rebuild()

    def _add(self, size: int, seconds: float) -> None:
        self._measured[size] = seconds / self._speed
        self._batches[size] = 1.0
        self._rebuild()

    def _around(self, size: int) -> list[tuple[int, float]]:
        """The measured sizes next to this one, and how much each of them has to do with it."""
        below = max((knot for knot in self._measured if knot <= size), default=None)
        above = min((knot for knot in self._measured if knot >= size), default=None)
        if below is None or above is None or below == above:
            return [(below or above or size, 1.0)]
        share = (size - below) / (above - below)
        return [(below, 1 - share), (above, share)]

    def _learn_margin(self, ratio: float) -> None:
        # The usual stochastic step towards a quantile: rare steps up, many small ones down.
        if ratio > self.margin * (1 + 1e-9):
            self.margin += _QUANTILE_STEP * _QUANTILE
        else:
            self.margin = max(1.0, self.margin - _QUANTILE_STEP * (1 - _QUANTILE))

    def _rebuild(self) -> None:
        self._built = dict(self._measured)
        times = [0.0] * (self.most + 1)
        knots = sorted(self._measured)
        last, last_time = 0, 0.0
        for knot in knots:
            time = max(self._measured[knot], last_time)
            # Below the smallest measured size nothing is known to be faster.
            slope = (time - last_time) / (knot - last) if last else 0.0
            for size in range(last + 1, knot + 1):
                times[size] = time - slope * (knot - size)
            last, last_time = knot, time
        for size in range(last + 1, self.most + 1):
            times[size] = last_time * size / last
        self._times = times
        self._efficient = _efficient_sizes(times[: knots[-1] + 1])


def _efficient_sizes(times: list[float]) -> list[int]:
    found = [0]
    highest = 0.0
    for most in range(1, len(times)):
        highest = max(highest, most / times[most] if times[most] else 0.0)
        size = found[-1] or 1
        while size < most and size < _EFFICIENT * highest * times[size]:
            size += 1
        found.append(size)
    return found
