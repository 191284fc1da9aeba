"""Explores every order of events of a small world: each reachable state once, each transition at least once."""

import random
from collections.abc import Callable, Hashable, Sequence
from types import TracebackType
from typing import NamedTuple, Protocol, Self

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


class _Walk:
    """A running world and its events so far, which every failure reports."""

    def __init__(self, world: World, trace: _Trace | None = None) -> None:
        self.world = world
        self.trace = trace

    def repeat(self) -> None:
        """Makes the events of the trace happen again. Only the state that they lead to is checked."""
        for event in self.trace.events() if self.trace else ():
            self.world.do(event)
        self.world.check()

    def step(self, event: Event) -> None:
        """Makes an event happen, and checks what follows."""
        self.trace = _Trace(self.trace, event)
        self.world.do(event)
        self.world.check()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.world.close()
        if isinstance(error, Exception):
            raise AssertionError(f"{error!r} after {_told(self.trace)}") from error


def explore(make: Callable[[], World]) -> Explored:
    """Makes a world for each way that has not been followed yet, depth first, and follows it to a known state or the
    end. Raises AssertionError with the events that led to it."""
    seen: set[int] = set()
    transitions = ends = 0
    waiting: list[_Trace | None] = [None]
    while waiting:
        with _Walk(make(), waiting.pop()) as walk:
            walk.repeat()
            while (state := hash(walk.world.key())) not in seen:
                seen.add(state)
                events = walk.world.events()
                if not events:
                    walk.world.finish()
                    ends += 1
                    break
                transitions += len(events)
                waiting.extend([_Trace(walk.trace, event) for event in events[1:]])
                walk.step(events[0])
    return Explored(len(seen), transitions, ends)


def wander(make: Callable[[], World], walks: int, seed: int) -> Explored:
    """Takes random events from the start to the end, `walks` times, in a world that is too large to explore. Raises
    AssertionError with the events that led to it."""
    chance = random.Random(seed)
    seen: set[int] = set()
    transitions = 0
    for _ in range(walks):
        with _Walk(make()) as walk:
            while events := walk.world.events():
                walk.step(chance.choice(events))
                transitions += 1
                seen.add(hash(walk.world.key()))
            walk.world.finish()
    return Explored(len(seen), transitions, walks)


def _told(trace: _Trace | None) -> str:
    return " ".join(_text(event) for event in (trace.events() if trace else []))


def _text(event: Event) -> str:
    name, *rest = event
    return f"{name}({', '.join(map(str, rest))})"
