"""Every error that an engine may raise on a request has its place in the records."""

import ast
from pathlib import Path

import pytest

from convoy.service import errors
from convoy.service.errors import ConvoyError, RunFailed
from convoy.service.ipc import channel
from convoy.service.ipc.channel import FAILURES, Failure, _decode, _encode, _packed

SERVICE = Path(errors.__file__).parent
# What a request meets in an engine; the others load files, or are asked by commands.
PATH = [
    *("server", "dispatcher", "runner", "session", "instances", "cuda_graphs", "buffers"),
    *("scheduler/batcher", "scheduler/request_queue", "scheduler/policies", "scheduler/latency_model"),
]
FILES = [*(SERVICE / "engine" / f"{name}.py" for name in PATH), SERVICE / "ipc" / "slots.py"]
# Of files that are loaded: nobody's request.
OF_LOADING = {"BadConfig", "BadModelFile", "BadMetadata"}


def raised(source: str) -> set[str]:
    """The errors that a module makes."""
    names = {
        node.func.id
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    }
    known = {name for module in (errors, channel) for name, kind in vars(module).items()
             if isinstance(kind, type) and issubclass(kind, ConvoyError)}  # fmt: skip
    return (names & known) - OF_LOADING


def without_place(source: str) -> set[str]:
    return raised(source) - {kind.__name__ for kind in FAILURES}


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_every_error_of_the_engine_has_a_place(file: Path) -> None:
    assert without_place(file.read_text()) == set()


def test_enough_is_looked_at() -> None:
    assert set().union(*(raised(file.read_text()) for file in FILES)) >= {"RunFailed", "QueueFull", "DeadlinePassed"}


def test_an_error_without_a_place_would_be_seen() -> None:
    assert without_place("raise BadImage('it is none')") == {"BadImage"}


@pytest.mark.parametrize("kind", FAILURES)
def test_error_arrives_as_what_it_was(kind: type[ConvoyError]) -> None:
    (record,) = _decode(_packed([_encode(Failure(7, kind("what", retry_after=0.5)))]))
    assert isinstance(record, Failure)
    assert (type(record.error), record.error.message, record.error.retry_after) == (kind, "what", 0.5)


def test_error_that_nobody_has_thought_of_is_a_failed_run() -> None:
    (record,) = _decode(_packed([_encode(Failure(7, errors.BadImage("what")))]))
    assert isinstance(record, Failure)
    assert type(record.error) is RunFailed
