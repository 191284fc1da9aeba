"""How the sessions of a network share the cores: one with all threads, or several with one each.

Several sessions keep every core busy where the operators of one run are too small to parallelise; a lone image then
uses one core.
"""

from collections.abc import Sequence
from typing import NamedTuple

from convoy.service.config import InstancesSetting
from convoy.service.engine.profiles import Profile
from convoy.service.engine.scheduler.latency_model import RunTimes

GAIN = 1.05  # minimum throughput ratio: less is not worth the memory and a lone image's longer latency
_MOST = 16  # sessions, each with its own copy of the weights


class Layout(NamedTuple):
    """`instances` sessions with `threads` threads each."""

    instances: int
    threads: int


def layouts(number: InstancesSetting, threads: int, gpu: bool) -> list[Layout]:
    """The candidates, the default first; `threads` is for all sessions of a network together."""
    if number != "auto":
        return [Layout(number, max(1, threads // number))]
    one = Layout(1, threads)
    several = Layout(min(threads, _MOST), max(1, threads // _MOST))
    return [one] if gpu or threads == 1 else [one, several]


def rate(profile: Profile, objective: float) -> float:
    """Images a second over all sessions, in the batch size that an `objective` in seconds allows.

    Two such batches in a row must fit into the objective. 0 if even one image exceeds that.
    """
    times = RunTimes(max(profile.batches), profile.seconds)
    size = times.efficient(times.largest_within(objective / 2))
    return profile.machine.instances * size / times.predict(size) if size else 0.0


def choose(one: Sequence[Profile], several: Sequence[Profile], objective: float) -> bool:
    """Whether to use several sessions: only if throughput is clearly higher at every shape.

    A lone image on one core must still be in time: a batch of one may take half of the objective.
    """
    pairs = list(zip(one, several, strict=True))
    return bool(pairs) and all(rate(second, objective) >= GAIN * rate(first, objective) > 0 for first, second in pairs)


def known(profiles: Sequence[Profile], candidates: Sequence[Layout], objective: float) -> Layout | None:
    """The layout chosen earlier, according to the profiles of both candidates; None unless both were measured."""
    one, several = (
        {(each.shape, each.most): each for each in profiles if layout_of(each) == layout} for layout in candidates
    )
    both = [entry for entry in one if entry in several]
    if not both:
        return None
    return candidates[choose([one[entry] for entry in both], [several[entry] for entry in both], objective)]


def layout_of(profile: Profile) -> Layout:
    """The layout that a profile was measured with."""
    return Layout(profile.machine.instances, profile.machine.threads)
