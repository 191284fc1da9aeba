"""The engine repeats the examples of its versions in idle moments, and ends where an answer is wrong."""

import asyncio
import threading
from pathlib import Path

import pytest
from prometheus_client import REGISTRY

from convoy.models.export.seal import sealed
from convoy.service.config import Config
from convoy.service.engine import server
from convoy.service.engine.server import Engine
from convoy.service.engine.session import DeviceLost, Session
from convoy.service.sources import Source
from tests.service import networks


class Ended(Exception):
    """The engine has ended."""


def ends(root: Path, monkeypatch: pytest.MonkeyPatch, answers: list[str | Exception]) -> bool:
    """Checks a model as often as there are answers. Returns whether the engine has ended."""
    networks.save_bytes(sealed(networks.classifier()), root, "letters")
    over = threading.Event()
    left = list(answers)

    def example(session: Session) -> str:
        if not left:
            over.set()
            return ""
        answer = left.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def end(code: int) -> None:
        raise Ended(code)

    monkeypatch.setattr(server, "check_example", example)
    monkeypatch.setattr(server.os, "_exit", end)

    async def play() -> bool:
        engine = Engine(Source(root), Config())
        await engine.refresh()
        checking = asyncio.ensure_future(engine.keep_checking(0.001))
        checked = asyncio.ensure_future(asyncio.to_thread(over.wait, 20))
        await asyncio.wait({checking, checked}, return_when=asyncio.FIRST_COMPLETED)
        over.set()
        if not checking.done():
            checking.cancel()
            return False
        assert isinstance(checking.exception(), Ended)
        return True

    return asyncio.run(play())


def test_right_answers_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not ends(tmp_path, monkeypatch, ["", "", ""])


@pytest.mark.parametrize("answer", ["value 3 is 0.1, want 0.5", DeviceLost("CUDA error"), RuntimeError("another")])
def test_wrong_answer_or_failed_run_ends_the_engine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: str | Exception, caplog: pytest.LogCaptureFixture
) -> None:
    labels = {"model": "letters", "version": "1"}
    before = REGISTRY.get_sample_value("convoy_example_failures_total", labels) or 0
    assert ends(tmp_path, monkeypatch, ["", answer])
    assert REGISTRY.get_sample_value("convoy_example_failures_total", labels) == before + 1
    assert any("model letters version 1: its example" in message for message in caplog.messages)
