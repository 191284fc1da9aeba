"""Explores every order of events of a small world: each reachable state once, each transition at least once."""

import random
from collections.abc import Callable, Hashable, Sequence
from typing import NamedTuple, Protocol

Event = tuple[Hashable, ...]


class World(Protocol):
    """Real code with everything around it under control: the same events always lead to the same state."""

    def events(self) -> Sequence[Event]:
        """Returns what may happen next; nothing at the end."""

    def do(self, event: Event) -> None:
        """Makes one of them happen. Raises AssertionError if a promise is broken."""

    def check(self) -> None:
        """Called after each event that has not happened before in this way. Raises AssertionError if a promise is
        broken."""

    def key(self) -> Hashable:
        """Returns the state: worlds with equal keys behave alike from now on."""

    def finish(self) -> None:
        """Called at the end. Raises AssertionError if a promise is broken."""

    def close(self) -> None:
        """Frees what the world has opened."""


class Explored(NamedTuple):
    """How much there was."""

    states: int
    transitions: int
    ends: int


class _Trace(NamedTuple):
    """Events so far, the latest last; a chain, because most begin alike."""

    before: "_Trace | None"
    event: Event

    def events(self) -> list[Event]:
        found, trace = [], self
        while trace is not None:
            found.append(trace.event)
            trace = trace.before  # type: ignore[assignment]
        return found[::-1]


def explore(make: Callable[[], World]) -> Explored:
    """Makes a world for each way that has not been followed yet, depth first, and follows it to a known state or the
    end. Raises AssertionError with the events that led to it."""
    seen: set[int] = set()
    transitions = ends = 0
    waiting: list[_Trace | None] = [None]
    while waiting:
        trace = waiting.pop()
        world = make()
        past = trace.events() if trace else []
        try:
            for event in past:
                world.do(event)
            world.check()
            while (state := hash(world.key())) not in seen:
                seen.add(state)
                events = world.events()
                if not events:
                    world.finish()
                    ends += 1
                    break
                transitions += len(events)
                waiting.extend([_Trace(trace, event) for event in events[1:]])
                trace = _Trace(trace, events[0])
                world.do(events[0])
                world.check()
        except Exception as error:
            raise AssertionError(f"{error!r} after {_told(trace)}") from error
        finally:
            world.close()
    return Explored(len(seen), transitions, ends)


def wander(make: Callable[[], World], walks: int, seed: int) -> Explored:
    """Follows so many ways from the start to the end, each event chosen at random: for worlds that are too large to be
    explored. Raises AssertionError with the events that led to it."""
    chance = random.Random(seed)
    seen: set[int] = set()
    transitions = 0
    for _ in range(walks):
        world = make()
        trace: _Trace | None = None
        try:
            while events := world.events():
                trace = _Trace(trace, chance.choice(events))
                transitions += 1
                world.do(trace.event)
                world.check()
                seen.add(hash(world.key()))
            world.finish()
        except Exception as error:
            raise AssertionError(f"{error!r} after {_told(trace)}") from error
        finally:
            world.close()
    return Explored(len(seen), transitions, walks)


def _told(trace: _Trace | None) -> str:
    return " ".join(_text(event) for event in (trace.events() if trace else []))


def _text(event: Event) -> str:
    name, *rest = event
    return f"{name}({', '.join(map(str, rest))})"
