"""What a probe is, and what it reports."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Self

KEPT = 20  # failures that are described; all are counted


@dataclass(frozen=True)
class Tally:
    """What some trials have shown.

    trials    how many there were
    failed    how many of them broke the promise
    examples  the first of these, one sentence each, with the seed that repeats it
    worst     figures of which the largest counts, by name, such as "p99 during / steady"
    """

    trials: int = 0
    failed: int = 0
    examples: tuple[str, ...] = ()
    worst: Mapping[str, float] = field(default_factory=dict)

    def __add__(self, other: Self) -> Self:
        names = {**self.worst, **other.worst}
        return type(self)(
            self.trials + other.trials,
            self.failed + other.failed,
            (*self.examples, *other.examples)[:KEPT],
            {name: max(each.worst[name] for each in (self, other) if name in each.worst) for name in names},
        )


class Count:
    """Counts trials for a `Tally`."""

    def __init__(self) -> None:
        self.trials = 0
        self._failed = 0
        self._examples: list[str] = []
        self._worst: dict[str, float] = {}

    def good(self, trials: int = 1) -> None:
        self.trials += trials

    def bad(self, example: str) -> None:
        """One more trial, which broke the promise."""
        self.trials += 1
        self.also_bad(example)

    def also_bad(self, example: str) -> None:
        """The same for something that is no trial of its own, such as a leak found at the end."""
        self._failed += 1
        if len(self._examples) < KEPT:
            self._examples.append(example)

    def add(self, tally: Tally) -> None:
        """What others have counted, such as another process."""
        self.trials += tally.trials
        self._failed += tally.failed
        self._examples = [*self._examples, *tally.examples][:KEPT]
        for name, value in tally.worst.items():
            self.see(name, value)

    def see(self, name: str, value: float) -> None:
        """A figure of which the largest counts."""
        self._worst[name] = max(value, self._worst.get(name, value))

    def tally(self) -> Tally:
        return Tally(self.trials, self._failed, tuple(self._examples), dict(self._worst))


@dataclass(frozen=True)
class Probe:
    """One promise, and how it is tried.

    number    of the promise, such as "R2"; several probes may share one
    what      the promise, one sentence for the page
    unit      what one trial is, in the plural: "kills of an engine"
    wanted    trials of the long form
    chunk     trials that one call of `run` is given in the long form: one to five minutes
    run       tries so many times, with this seed; the same seed gives the same inputs. Counts what it can,
              and does not raise it
    control   breaks something on purpose and tries: at least one failure must be found, or the probe itself is blind
    """

    number: str
    what: str
    unit: str
    wanted: int
    chunk: int
    run: Callable[[int, int], Tally]
    control: Callable[[int], Tally]

    @property
    def key(self) -> str:
        """What tells it from all others."""
        return f"{self.number} {self.unit}"
