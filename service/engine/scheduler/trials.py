"""Trials: now and then a batch of another size than the chosen one, so that a size that was measured badly before
serving does not stay ruled out, or chosen, for ever.

Plain code: what ran comes in, the size to try comes out. A trial costs what its images would have saved in batches of
the chosen size. All trials of a queue together cost at most a fixed share of its run time.
"""

from collections import Counter

from convoy.service.engine.scheduler.latency_model import RunTimes

_SHARE = 0.005  # of the run time that trials may cost
_EVERY = 16  # batches between two trials, also where trials cost nothing
_BACK_OFF = 8  # times as many where too few requests came for a larger batch: its wait cost something, too
_SAVED = 4.0  # of the chosen size's time: the most that may be saved for an expensive trial
_SLOWER = 1.5  # a trial may take this much longer than images of the chosen size; deadlines leave room for it
_SAME = 1.25  # sizes within this factor of the chosen one are not worth a comparison


class Trials:
    """The trials of one queue. One writer: the holder of the dispatcher's lock."""

    def __init__(self) -> None:
        self.size = 0  # of the next batch, if enough requests wait for it; 0: no trial is due
        self._saved = 0.0  # seconds that trials may cost
        self._between = 0  # batches since the last trial
        self._tried: Counter[int] = Counter()

    def ran(self, seconds: float, chosen: int, times: RunTimes, longest: float) -> None:
        """Record a batch that was no trial. Afterwards one may be due, in which a batch may take `longest` seconds."""
        self._saved = min(self._saved + _SHARE * seconds, _SAVED * times.predict(chosen))
        self._between += 1
        if not self.size and self._between >= _EVERY:
            self.size = self._next(chosen, times, longest)

    def start(self) -> None:
        """Record that the trial that was due starts. It may have fewer rows, because requests are not split."""
        self._tried[self.size] += 1
        self.size = self._between = 0

    def miss(self) -> None:
        """Record that too few requests waited for the trial that was due."""
        self._tried[self.size] += 1
        self.size, self._between = 0, -_BACK_OFF * _EVERY

    def end(self, size: int, seconds: float, chosen: int, times: RunTimes) -> None:
        """Record the seconds of a trial."""
        self._saved -= max(0.0, seconds - _usual(size, chosen, times))

    def _next(self, chosen: int, times: RunTimes, longest: float) -> int:
        """The size to try: one whose trials contradict its time so far, else the one tried least. 0: not yet."""
        fitting = int(chosen * longest / times.bound(chosen))  # at the throughput of the chosen size
        sizes = candidates(chosen, min(times.largest, fitting))
        size = min(sizes, key=lambda size: (not times.in_doubt(size), self._tried[size]), default=0)
        return size if size and _cost(size, chosen, times) <= self._saved else 0


def candidates(chosen: int, most: int) -> list[int]:
    """The sizes to compare with the chosen one, at most `most`: the next two powers of two on both sides.

    Two, because one bad measurement may stand between the chosen size and the best.
    """
    above = 1 << chosen.bit_length()
    below = 1 << ((chosen - 1).bit_length() - 1) if chosen > 1 else 0
    sizes = {below // 4, below // 2, below, *(min(size, most) for size in (above, 2 * above, 4 * above))}
    smaller = sorted(size for size in sizes if 0 < _SAME * size <= chosen)
    larger = sorted(size for size in sizes if _SAME * chosen <= size <= most)
    return [*smaller[-2:], *larger[:2]]


def longest_run(size: int, chosen: int, times: RunTimes) -> float:
    """The seconds that a trial is not expected to exceed, even if its size was measured badly."""
    return max(times.bound(size), _SLOWER * times.margin * _usual(size, chosen, times))


def _cost(size: int, chosen: int, times: RunTimes) -> float:
    """The expected cost of a trial, in seconds, at half the usual throughput at worst: the profile may be wrong."""
    usual = _usual(size, chosen, times)
    return min(max(0.0, times.latest(size) - usual), usual)


def _usual(size: int, chosen: int, times: RunTimes) -> float:
    """The seconds that a number of images take in batches of the chosen size."""
    return size * times.predict(chosen) / chosen
