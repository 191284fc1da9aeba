"""How the sessions of a network share the cores: one with all threads, or several with one each.

Several keep every core busy where the parts of one run are too small to be shared out; a lone image then has one core.
"""

from collections.abc import Sequence
from typing import NamedTuple

from convoy.service.config import InstancesSetting
from convoy.service.engine.profile import Profile
from convoy.service.engine.scheduler.latency_model import RunTimes

GAIN = 1.05  # of the images a second: less is not worth the memory and a lone image's longer time
_MOST = 16  # sessions, each of which has the network's weights in memory


class Layout(NamedTuple):
    """So many sessions, each with so many threads."""

    instances: int
    threads: int


def layouts(wanted: InstancesSetting, threads: int, gpu: bool) -> list[Layout]:
    """Those to choose from, the one to take in doubt first; `threads` are there for all sessions of a network."""
    if wanted != "auto":
        return [Layout(wanted, max(1, threads // wanted))]
    one = Layout(1, threads)
    several = Layout(min(threads, _MOST), max(1, threads // _MOST))
    return [one] if gpu or threads == 1 else [one, several]


def rate(profile: Profile, objective: float) -> float:
    """Images a second of all sessions, in the batches that will be used where answers should come within `objective`
    seconds: two of them in a row fit into that. 0 where not even one image does."""
    times = RunTimes(max(profile.batches), profile.seconds)
    size = times.efficient(times.largest_within(objective / 2))
    return profile.machine.instances * size / times.predict(size) if size else 0.0


def choose(one: Sequence[Profile], several: Sequence[Profile], objective: float) -> bool:
    """Whether to take several sessions: where they bring clearly more images a second at every shape. A lone image has
    to be in time with one core, as far as batches of one are: it may take half of the objective."""
    pairs = list(zip(one, several, strict=True))
    return bool(pairs) and all(rate(second, objective) >= GAIN * rate(first, objective) > 0 for first, second in pairs)


def known(profiles: Sequence[Profile], candidates: Sequence[Layout], objective: float) -> Layout | None:
    """What was chosen before, by the profiles of both; None where they have not both been measured."""
    one, several = (
        {(each.shape, each.most): each for each in profiles if layout_of(each) == layout} for layout in candidates
    )
    both = [entry for entry in one if entry in several]
    if not both:
        return None
    return candidates[choose([one[entry] for entry in both], [several[entry] for entry in both], objective)]


def layout_of(profile: Profile) -> Layout:
    """The layout that a profile was made with."""
    return Layout(profile.machine.instances, profile.machine.threads)
