"""A record is one line whatever a client put into it."""

import contextlib
import io
import json
import logging
import os
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from convoy.service import log

logger = logging.getLogger(__name__)

NASTY = 'first line\n{"level": "error", "message": "forged"}\r\n\x1b[31mred\x1b[0m \x00 "quoted" \\ ünï \N{SNOWMAN}'


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def root() -> Iterator[logging.Logger]:
    """The root logger, put back afterwards."""
    found = logging.getLogger()
    handlers, level = found.handlers[:], found.level
    yield found
    found.handlers[:] = handlers
    found.setLevel(level)


@pytest.fixture
def stderr(monkeypatch: pytest.MonkeyPatch, root: logging.Logger) -> io.StringIO:
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    log.configure("info", "engine")
    return stream


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch, root: logging.Logger) -> Terminal:
    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    log.configure("info", "engine")
    return stream


def records(stream: io.StringIO) -> list[dict[str, Any]]:
    text = stream.getvalue()
    assert text == "" or text.endswith("\n")
    return [json.loads(line) for line in text.split("\n")[:-1]]


def test_record_tells_when_how_bad_who_and_what(stderr: io.StringIO) -> None:
    logger.warning("model %s failed", "digits", extra={"fields": {"model": "digits", "version": 3}})
    (record,) = records(stderr)
    time = record.pop("time")
    assert time.endswith("Z")
    assert len(time) == len("2026-01-01T00:00:00.000Z")
    assert record == {
        "level": "warning",
        "process": "engine",
        "message": "model digits failed",
        "model": "digits",
        "version": 3,
    }


def test_newline_or_escape_sequence_stays_inside_its_record(stderr: io.StringIO) -> None:
    logger.error("model %s", NASTY, extra={"fields": {"method": NASTY}})
    logger.error("next")
    first, second = records(stderr)
    assert first["message"] == f"model {NASTY}"
    assert first["method"] == NASTY
    assert first["level"] == "error"
    assert second["message"] == "next"
    assert "\x1b" not in stderr.getvalue()


@given(text=st.text(st.characters(exclude_categories=("Cs",))))
def test_any_text_is_one_line_and_comes_back(text: str) -> None:
    stream = io.StringIO()
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stderr", stream)
        log.configure("info", "test")
        logger.error("%s", text)
    root.handlers[:] = handlers
    root.setLevel(level)
    (record,) = records(stream)
    assert record["message"] == text


def test_text_that_somebody_else_chose_is_cut_and_its_length_stated(stderr: io.StringIO) -> None:
    logger.warning("x" * 1_000_000, extra={"fields": {"peer": "y" * 1_000_000}})
    try:
        raise ValueError("z" * 1_000_000 + " the end")
    except ValueError:
        logger.exception("failed")
    first, second = stderr.getvalue().splitlines()
    assert max(len(first), len(second)) < 30_000
    assert first.count("... (1000000 characters)") == 2
    assert json.loads(second)["traceback"].endswith(" the end")


def test_traceback_is_a_field_of_its_record(stderr: io.StringIO) -> None:
    try:
        raise RuntimeError(NASTY)
    except RuntimeError:
        logger.exception("run failed")
    (record,) = records(stderr)
    assert record["message"] == "run failed"
    assert "RuntimeError" in record["traceback"]
    assert NASTY in record["traceback"]


def test_record_on_a_terminal_is_words_without_escape_sequences(terminal: Terminal) -> None:
    logger.info("model %s", NASTY, extra={"fields": {"method": NASTY, "version": 3}})
    lines = terminal.getvalue().splitlines()
    assert len(lines) == 1
    assert " info    engine: model first line\\n" in lines[0]
    assert "version=3" in lines[0]
    assert "\x1b" not in lines[0]
    assert lines[0].isprintable()


def test_traceback_on_a_terminal_has_its_lines_without_escape_sequences(terminal: Terminal) -> None:
    try:
        raise RuntimeError(NASTY)
    except RuntimeError:
        logger.exception("run failed")
    head, first, *lines = terminal.getvalue().splitlines()
    assert head.endswith("engine: run failed")
    assert first == "Traceback (most recent call last):"
    assert any("\\x1b[31mred" in line for line in lines)
    assert all(line.isprintable() for line in lines)


def test_text_that_no_encoding_takes_is_logged_as_its_code(stderr: io.StringIO) -> None:
    logger.error("file %s", "a\udcff", extra={"fields": {"file": "\ud800b"}})
    (record,) = records(stderr)
    assert record["message"] == "file a\\udcff"
    assert record["file"] == "\\ud800b"


def test_text_that_no_encoding_takes_is_shown_on_a_terminal_as_its_code(terminal: Terminal) -> None:
    logger.error("file %s", "a\udcff")
    assert terminal.getvalue().endswith("file a\\udcff\n")


def test_level_says_what_is_left_out(stderr: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", stderr)  # pytest puts its own in place between set-up and call
    logger.debug("left out")
    logger.info("kept")
    log.configure("error", "engine")
    logger.warning("left out")
    log.configure("debug", "engine")
    logger.debug("kept too")
    assert [record["message"] for record in records(stderr)] == ["kept", "kept too"]


def test_configuring_twice_does_not_log_twice(stderr: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", stderr)
    log.configure("info", "frontend")
    logger.info("once")
    (record,) = records(stderr)
    assert record["process"] == "frontend"


def test_form_may_be_chosen(monkeypatch: pytest.MonkeyPatch, root: logging.Logger) -> None:
    on_terminal, elsewhere = Terminal(), io.StringIO()
    monkeypatch.setattr(sys, "stderr", on_terminal)
    log.configure("info", "engine", "json")
    logger.error("model %s", NASTY)
    monkeypatch.setattr(sys, "stderr", elsewhere)
    log.configure("info", "engine", "text")
    logger.error("model %s", NASTY, extra={"fields": {"name": NASTY}})
    (record,) = records(on_terminal)
    assert record["message"] == f"model {NASTY}"
    (line,) = elsewhere.getvalue().splitlines()
    assert " error   engine: model first line" in line
    assert line.isprintable()


# Nobody reads.


@pytest.fixture
def pipe(monkeypatch: pytest.MonkeyPatch, root: logging.Logger) -> Iterator[int]:
    """The end of stderr from which its reader should read."""
    reading, writing = os.pipe()
    with os.fdopen(writing, "w") as stream:
        monkeypatch.setattr(sys, "stderr", stream)
        log.configure("info", "engine")
        yield reading
    with contextlib.suppress(OSError):  # a test has closed it
        os.close(reading)


def drained(reading: int) -> list[dict[str, Any]]:
    """What a pipe contains."""
    os.set_blocking(reading, False)
    data = b""
    with contextlib.suppress(BlockingIOError):
        while more := os.read(reading, 1 << 16):
            data += more
    found = []
    for line in data.decode().splitlines():
        with contextlib.suppress(json.JSONDecodeError):  # one was cut
            found.append(json.loads(line))
    return found


@pytest.mark.parametrize("length", [100, 10_000])
def test_records_that_nobody_reads_are_dropped_and_counted(pipe: int, length: int) -> None:
    for _ in range(2000):
        logger.warning("x" * length)
    before = len(drained(pipe))
    assert 0 < before < 2000
    logger.warning("somebody reads again")
    dropped, again = drained(pipe)
    assert again["message"] == "somebody reads again"
    assert dropped["message"] == f"{2000 - before} log records were dropped, because nobody read them"
    assert dropped["level"] == "warning"


def test_records_that_are_read_are_all_there_however_long(pipe: int) -> None:
    """The control."""
    text = "y" * 10_000
    for number in range(10):
        logger.warning("%d %s", number, text)
        (record,) = drained(pipe)
        assert record["message"] == f"{number} {text}"


def test_reader_that_has_gone_disturbs_nobody(pipe: int) -> None:
    os.close(pipe)
    for _ in range(10):
        logger.warning("x")


def test_closed_stderr_disturbs_nobody(monkeypatch: pytest.MonkeyPatch, root: logging.Logger) -> None:
    monkeypatch.setattr(sys, "stderr", None)
    log.configure("info", "engine")
    logger.warning("x")
