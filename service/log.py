"""Log records on stderr, one line each whatever a client put into them; JSON, or plain text on a terminal."""

import logging
import os
import select
import sys
import time
from typing import Any, Literal

import msgspec

from convoy.service.config import LogLevel

_LEVELS: dict[LogLevel, int] = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
}
_MOST = 12_000  # characters of a message, a field or a traceback: a file or a client may have chosen them


def configure(level: LogLevel, process: str, form: Literal["auto", "json", "text"] = "auto") -> None:
    """Send this process's records to stderr. `process` names it in each of them; "auto" is text on a terminal."""
    handler = _Handler()
    as_json = form == "json" or (form == "auto" and (sys.stderr is None or not sys.stderr.isatty()))
    handler.setFormatter(_Formatter(process, as_json=as_json))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    set_level(level)
    logging.getLogger("watchfiles").setLevel(logging.WARNING)
    logging.captureWarnings(True)  # Python writes them to stderr by itself, in several lines


def set_level(level: LogLevel) -> None:
    """Drop this process's records below a level from now on."""
    logging.getLogger().setLevel(_LEVELS[level])


def level() -> LogLevel:
    """The level below which this process's records are dropped."""
    return next(name for name, number in _LEVELS.items() if number == logging.getLogger().level)


class _Handler(logging.Handler):
    """Writes records to stderr, and never waits for whoever reads it.

    What a full pipe does not accept is dropped and counted; the count is written once there is room again.
    """

    def __init__(self) -> None:
        super().__init__()
        self._dropped = 0
        self._cut = False  # the last record was not written completely
        self._poll = select.poll()
        self._stream = sys.stderr  # None if it was closed at the start
        try:
            self._descriptor = self._stream.fileno()
        except (AttributeError, OSError):  # None, or a buffer
            self._descriptor = -1
        else:
            self._poll.register(self._descriptor, select.POLLOUT)

    def emit(self, record: logging.LogRecord) -> None:
        """See logging.Handler."""
        if self._descriptor < 0:
            if self._stream is not None:
                self._stream.write(self.format(record) + "\n")
            return
        if self._dropped and self._has_room():
            text = f"{self._dropped} log records were dropped, because nobody read them"
            self._dropped = 0
            self._write(logging.makeLogRecord({"msg": text, "levelname": "WARNING"}))
        self._write(record)

    def _write(self, record: logging.LogRecord) -> None:
        data = (self.format(record) + "\n").encode(errors="backslashreplace")
        if self._cut:
            data = b"\n" + data
        for at in range(0, len(data), select.PIPE_BUF):
            if not self._has_room() or not self._written(data[at : at + select.PIPE_BUF]):
                self._dropped += 1
                self._cut = self._cut or at > 0
                return
        self._cut = False

    def _has_room(self) -> bool:
        """Returns whether PIPE_BUF bytes can be written at once."""
        return any(events & select.POLLOUT for _, events in self._poll.poll(0))

    def _written(self, data: bytes) -> bool:
        try:
            return os.write(self._descriptor, data) == len(data)
        except OSError:  # such as a reader that has gone
            return False


class _Formatter(logging.Formatter):
    def __init__(self, process: str, *, as_json: bool) -> None:
        super().__init__()
        self._process = process
        self._as_json = as_json

    def format(self, record: logging.LogRecord) -> str:
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z"
        entry: dict[str, Any] = {
            "time": stamp,
            "level": record.levelname.lower(),
            "process": self._process,
            "message": _cut(record.getMessage()),
            **{key: _cut(value) for key, value in getattr(record, "fields", {}).items()},
        }
        if record.exc_info:
            entry["traceback"] = _end(self.formatException(record.exc_info))
        if self._as_json:
            entry = {key: _encodable(value) for key, value in entry.items()}
            return msgspec.json.encode(entry).decode()
        fields = " ".join(f"{key}={_cut(value)!r}" for key, value in getattr(record, "fields", {}).items())
        head = f"{stamp} {record.levelname.lower():7} {self._process}: {_visible(entry['message'])} {fields}".rstrip()
        trace = [_visible(line) for line in entry["traceback"].splitlines()] if record.exc_info else []
        return "\n".join([head, *trace])


def _cut(value: Any) -> Any:
    if not isinstance(value, str) or len(value) <= _MOST:
        return value
    return f"{value[:_MOST]}... ({len(value)} characters)"


def _end(trace: str) -> str:
    # The error itself is in the last line.
    return trace if len(trace) <= _MOST else f"... {trace[-_MOST:]}"


def _encodable(value: object) -> object:
    return value.encode("utf-8", "backslashreplace").decode() if isinstance(value, str) else value


def _visible(text: str) -> str:
    """The text with line breaks and terminal control characters escaped."""
    return "".join(sign if sign.isprintable() else sign.encode("unicode_escape").decode("ascii") for sign in text)
