"""How many mutants of the scheduler, the slots and the admission the tests of each module find.

    python -m tests.mutation [MODULE ...] [--only TEXT] [--every N]

Prints those that no test finds. Exits with 1 if a module's share of found mutants is below `WANTED`.

Each mutant runs in a process of its own, forked from one that has loaded everything; there the code of one function is
replaced. It runs only the tests that call this function, the shortest first, until one fails or uses too much CPU time.
"""

import argparse
import gc
import json
import math
import os
import resource
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import CodeType, FrameType, FunctionType
from typing import NamedTuple

import hypothesis
import pytest

from tests.mutation.equivalent import EQUIVALENT
from tests.mutation.mutants import Mutant, mutants

WANTED = 0.85
_ROOT = Path(__file__).parents[2]
_MEMORY = 8 << 30  # bytes; a loop without an end may append to a list
_LONG = 0.5  # seconds of CPU time; tests above it judge how good decisions are, not whether they are right
_WAIT = 120.0  # seconds for which a mutant may wait; then it waits for ever
_SCHEDULER = "tests/service/engine/scheduler"
_FRONTEND = "tests/service/frontend"

# The tests of each module.
TESTS: dict[str, list[str]] = {
    "engine/scheduler/batcher": [
        f"{_SCHEDULER}/test_batcher.py", f"{_SCHEDULER}/test_callers.py", f"{_SCHEDULER}/test_batcher_explored.py",
    ],
    "engine/scheduler/latency_model": [f"{_SCHEDULER}/test_latency_model.py", f"{_SCHEDULER}/test_trials.py"],
    "engine/scheduler/policies": [f"{_SCHEDULER}/test_batcher.py", f"{_SCHEDULER}/test_policies.py"],
    "engine/scheduler/request_queue": [f"{_SCHEDULER}/test_batcher.py", f"{_SCHEDULER}/test_request_queue.py"],
    "engine/scheduler/trials": [f"{_SCHEDULER}/test_trials.py"],
    "engine/dispatcher": ["tests/service/engine/test_dispatcher.py"],
    "ipc/slots": ["tests/service/ipc/test_slots.py"],
    "ipc/channel": ["tests/service/ipc/test_channel.py", "tests/service/ipc/test_failures.py"],
    "frontend/admission": [f"{_FRONTEND}/test_admission.py", f"{_FRONTEND}/test_engine_client.py"],
    "frontend/routing": [
        f"{_FRONTEND}/test_routing.py", f"{_FRONTEND}/test_versions.py", f"{_FRONTEND}/test_engine_client.py",
    ],
    "frontend/suspects": [f"{_FRONTEND}/test_suspects.py", f"{_FRONTEND}/test_engine_client.py"],
    "frontend/engine_client": [
        f"{_FRONTEND}/test_engine_client.py", f"{_FRONTEND}/test_landing.py",
        f"{_FRONTEND}/test_engine_client_explored.py",
    ],
}  # fmt: skip


class Found(NamedTuple):
    """What became of the mutants of one module."""

    total: int
    survivors: list[Mutant]

    @property
    def share(self) -> float:
        return 1 - len(self.survivors) / max(1, self.total)


Calls = dict[str, dict[str, float]]  # by qualified name of a function: the tests that call it, and their seconds


class _Observer:
    """Notes which functions of a module each test calls: a plugin."""

    def __init__(self, path: Path) -> None:
        self.calls: Calls = {}
        self._file = str(path)
        self._called: set[str] = set()

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        self._called.clear()
        started = time.process_time()
        threading.setprofile(self._call)
        sys.setprofile(self._call)
        try:
            return (yield)
        finally:
            sys.setprofile(None)
            threading.setprofile(None)  # type: ignore[arg-type]
            if (seconds := time.process_time() - started) <= _LONG:
                for function in self._called:
                    self.calls.setdefault(function, {})[item.nodeid] = seconds

    def _call(self, frame: FrameType, event: str, _: object) -> None:
        if event == "call" and frame.f_code.co_filename.endswith(self._file):
            self._called.add(frame.f_code.co_qualname.split(".<locals>")[0])


class _Chosen:
    """Runs these tests only, in this order: a plugin."""

    def __init__(self, tests: Sequence[str]) -> None:
        self._place = {test: place for place, test in enumerate(tests)}

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        items[:] = sorted(
            (each for each in items if each.nodeid in self._place), key=lambda each: self._place[each.nodeid]
        )


def judge(module: str, only: str = "", every: int = 1) -> Found:
    """Runs each mutant of a module whose name contains `only`, or one in `every` of them."""
    path = Path("service") / f"{module}.py"
    calls = _observe(module, path)
    equivalent = EQUIVALENT.get(module, {})
    chosen = [each for each in mutants((_ROOT / path).read_text()) if only in each.name and each.name not in equivalent]
    chosen = chosen[::every]
    survivors = []
    for mutant in chosen:
        tests = calls.get(mutant.function, {})
        if not tests or _survives(module, mutant, tests):
            survivors.append(mutant)
            print(f"{path}:{mutant.line} {mutant.name}" + ("" if tests else " (no test)"), flush=True)
    return Found(len(chosen), survivors)


def _observe(module: str, path: Path) -> Calls:
    reading, writing = os.pipe()

    def run() -> int:
        observer = _Observer(path)
        failed = _run_tests(module, observer)
        with os.fdopen(writing, "w") as file:
            json.dump(observer.calls, file)
        return failed

    process = _fork(run)
    os.close(writing)
    with os.fdopen(reading) as file:
        calls = json.loads(file.read() or "{}")
    if os.waitpid(process, 0)[1]:
        raise SystemExit(f"the tests of {module} fail without any mutant")
    return {function: dict(sorted(tests.items(), key=lambda each: each[1])) for function, tests in calls.items()}


def _survives(module: str, mutant: Mutant, tests: Mapping[str, float]) -> bool:
    """Returns whether all tests pass with the mutant. A test that does not end fails."""

    def run() -> int:
        _replace(f"convoy.service.{module.replace('/', '.')}", mutant)
        return _run_tests(module, _Chosen(list(tests)), "-x")

    process = _fork(run, cpu=5 + 4 * sum(tests.values()))
    with os.fdopen(os.pidfd_open(process)) as ended:
        if select.select([ended], [], [], _WAIT)[0]:
            return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 0
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)
    return False


def _fork(run: Callable[[], int], cpu: float = 600.0) -> int:
    process = os.fork()
    if not process:
        code = 1
        try:
            null = os.open(os.devnull, os.O_RDWR)
            for descriptor in (0, 1, 2):
                os.dup2(null, descriptor)
            resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
            resource.setrlimit(resource.RLIMIT_CPU, (math.ceil(cpu), math.ceil(cpu)))
            code = run()
        finally:
            os._exit(code)
    return process


def _run_tests(module: str, plugin: object, *options: str) -> int:
    return int(
        pytest.main(
            ["-q", "-p", "no:cacheprovider", "-m", "not soak and not simulation", *options, *TESTS[module]],
            plugins=[plugin],
        )
    )


def _replace(module: str, mutant: Mutant) -> None:
    """Gives the mutant's function its changed code, wherever it is referred to."""
    changed = next(code for code in _codes(compile(mutant.code, module, "exec")) if code.co_qualname == mutant.function)
    for function in [each for each in gc.get_objects() if isinstance(each, FunctionType)]:
        if function.__module__ == module and function.__qualname__ == mutant.function:
            function.__code__ = changed


def _codes(code: CodeType) -> Iterator[CodeType]:
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield constant
            yield from _codes(constant)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.mutation")
    parser.add_argument("module", nargs="*", help=f"of {', '.join(TESTS)}; by default all")
    parser.add_argument("--only", default="", help="mutants whose name contains this")
    parser.add_argument("--every", type=int, default=1, help="one in so many: an estimate")
    options = parser.parse_args(arguments)
    os.nice(19)
    # A failure is enough: no smaller example is looked for.
    generate = [hypothesis.Phase.explicit, hypothesis.Phase.generate]
    hypothesis.settings.register_profile("mutants", phases=generate, database=None, derandomize=True, deadline=None)
    hypothesis.settings.load_profile("mutants")
    modules = options.module or list(TESTS)
    files = {file for module in modules for file in TESTS[module]}
    if pytest.main(["-qq", "--collect-only", "-p", "no:cacheprovider", "--no-header", "-r", "N", *sorted(files)]):
        raise SystemExit("the tests cannot be collected")
    low = False
    for module in modules:
        started = time.monotonic()
        found = judge(module, options.only, options.every)
        low |= found.share < WANTED
        seconds = time.monotonic() - started
        print(f"{module}: {found.total - len(found.survivors)} of {found.total} mutants found, "
              f"{found.share:.1%}, in {seconds:.0f} s", flush=True)  # fmt: skip
    return int(low)


if __name__ == "__main__":
    sys.exit(main())
