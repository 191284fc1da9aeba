"""l(b), the time of a batch of b images: measured before serving, updated while serving.

Plain code: measurements in, predictions out. All times are in seconds.
"""

from bisect import bisect_right
from collections import deque
from collections.abc import Mapping
from statistics import median

_SPEED_WEIGHT = 0.25  # of the newest batch in the common factor: 20 batches after a change, 0.3 % of it is left
_SHAPE_WEIGHT = 0.05  # of the newest batch in the time of its own size: the ratios of sizes change little
_OUTLIER = 4.0  # the ratio to the prediction is clamped to this factor
_STALE = 0.01  # relative change of a size's time that triggers a rebuild of the table
_QUANTILE = 0.99  # of the batches that end within `bound`
_QUANTILE_STEP = 0.02  # step of the bound, as a share of the predicted time
_TRIALS = 5  # in a row must contradict a measured time before it is replaced by their median
_CONTRADICTS = 1.05  # factor between a trial and the time it contradicts: less changes no choice that matters
_EFFICIENT = 0.998  # of the highest throughput counts as equal to it: the smaller batch answers earlier


class RunTimes:
    """The times of batches of one model, version and shape, for 1 to `most` images.

    A common factor follows the machine's speed. The times of the measured sizes (the given ones, then larger ones and
    powers of two as they occur) follow the ratios of sizes. Times between measured sizes are interpolated linearly;
    above the largest, its throughput is assumed. A larger batch never takes less time. One writer: the holder of the
    dispatcher's lock.

    `guessed` times are scaled from another shape or from a first batch: the first run corrects them by a common factor,
    and once a size has run twice they count as measured.
    """

    def __init__(self, most: int, measured: Mapping[int, float] | None = None, *, guessed: bool = False) -> None:
        self.most = most
        self.guessed = guessed
        self.margin = 1.0  # factor from the predicted time to `bound`
        self._speed = 1.0
        self._measured = dict(measured or {})  # batch size -> seconds, at speed 1
        # The number of batches that each measured time is based on.
        self._batches = dict.fromkeys(self._measured, 1.0 if guessed else 1 / _SHAPE_WEIGHT)
        self._ran: set[int] = set() if guessed else set(self._measured)
        self._trials: dict[int, deque[float]] = {}  # the latest ones by size, in seconds at speed 1
        self._built: dict[int, float] = {}  # what the table below was built from
        self._times: list[float] = []  # by batch size, 0 to most, at speed 1, ascending
        # The efficient batch size by the limit on it, up to the largest measured size.
        self._efficient: list[int] = []
        if self._measured:
            self._rebuild()

    @property
    def measured(self) -> Mapping[int, float]:
        """The current seconds of each measured size."""
        return {size: self._speed * seconds for size, seconds in self._measured.items()}

    @property
    def largest(self) -> int:
        """The largest measured size; 0 if none has been measured."""
        return max(self._measured, default=0)

    @property
    def known(self) -> bool:
        """Whether any batch has been measured."""
        return bool(self._times)

    def predict(self, size: int) -> float:
        """The expected seconds of a batch; 0 if none has been measured. Sizes above `most` count as `most`."""
        return self._speed * self._times[min(size, self.most)] if self._times else 0.0

    def bound(self, size: int) -> float:
        """The seconds that 99 % of batches of this size do not exceed."""
        return self.margin * self.predict(size)

    def largest_within(self, seconds: float) -> int:
        """The largest batch with a bound of at most `seconds`; 0 if even one image exceeds it."""
        if not self._times:
            return self.most
        # With a small tolerance, or the exact time of a batch would not fit into itself.
        return max(0, bisect_right(self._times, seconds * (1 + 1e-9) / (self._speed * self.margin)) - 1)

    def efficient(self, most: int) -> int:
        """The batch size to use, at most `most`, when enough images wait.

        This is the smallest size with nearly the highest throughput. If the best measured size is more than half of the
        largest measured one, it is twice the largest, because larger batches may be faster still.
        """
        most = min(most, self.most)
        if not self._times:
            return most
        largest = len(self._efficient) - 1
        best = self._efficient[min(most, largest)]
        return min(most, 2 * largest) if most > largest and 2 * best > largest else best

    def learn(self, size: int, seconds: float) -> None:
        """Record the seconds of a batch."""
        size = min(size, self.most)
        if self.guessed:
            self._correct(size, seconds)
            return
        if size not in self._ran:
            self._ran.add(size)  # the first of its size allocates: its time is not representative
            return
        if not self._measured or size > max(self._measured):
            self._add(size, seconds)  # beyond the measured sizes there is no prediction to correct
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
            weight = max(_SHAPE_WEIGHT, share / self._batches[knot])  # with few batches, a plain mean
            self._measured[knot] *= ratio ** (weight * share)
            if abs(self._measured[knot] - self._built[knot]) > _STALE * self._built[knot]:
                self._rebuild()

    def learn_trial(self, size: int, seconds: float) -> bool:
        """Record the seconds of a batch whose size is seldom used. Returns whether they replaced a measured time.

        It says nothing about the machine's speed, which the usual batches of these minutes show.
        """
        size = min(size, self.most)
        if size not in self._ran or not self._times:
            self._ran.add(size)
            return False
        trials = self._trials.setdefault(size, deque(maxlen=_TRIALS))
        trials.append(seconds / self._speed)
        if len(trials) < _TRIALS or not self.in_doubt(size):
            return False
        self._replace(size, median(trials))
        del self._trials[size]
        return True

    def latest(self, size: int) -> float:
        """The seconds of a batch by the latest trial of this size, or as predicted if there is none."""
        trials = self._trials.get(size)
        return self._speed * trials[-1] if trials else self.predict(size)

    def in_doubt(self, size: int) -> bool:
        """Whether all of the latest trials contradict the time of this size, on the same side."""
        trials, known = self._trials.get(size), self._times[size]
        if not trials:
            return False
        return min(trials) > _CONTRADICTS * known or max(trials) < known / _CONTRADICTS

    def _replace(self, size: int, time: float) -> None:
        # Times that no trial supports give way: a smaller batch cannot take longer, nor a larger one less time.
        for knot, known in self._measured.items():
            self._measured[knot] = min(known, time) if knot < size else max(known, time)
        self._measured[size] = time
        self._batches[size] = _TRIALS
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
        """The measured sizes next to this one, with interpolation weights."""
        below = max((knot for knot in self._measured if knot <= size), default=None)
        above = min((knot for knot in self._measured if knot >= size), default=None)
        if below is None or above is None or below == above:
            return [(below or above or size, 1.0)]
        share = (size - below) / (above - below)
        return [(below, 1 - share), (above, share)]

    def _learn_margin(self, ratio: float) -> None:
        # The usual stochastic step towards a quantile: rare large steps up, many small ones down.
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
            # Below the smallest measured size, no size is known to be faster.
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
