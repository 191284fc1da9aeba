"""Log records on stderr, one line each whatever a client put into them; JSON, or plain text on a terminal."""

import logging
import sys
import time
from typing import Any, Literal

import msgspec

_LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}


def configure(level: str, process: str, form: Literal["auto", "json", "text"] = "auto") -> None:
    """Send this process's records to stderr. `process` names it in each of them; "auto" is text on a terminal."""
    handler = logging.StreamHandler(sys.stderr)
    as_json = form == "json" or (form == "auto" and not sys.stderr.isatty())
    handler.setFormatter(_Formatter(process, as_json=as_json))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(_LEVELS[level])
    logging.getLogger("watchfiles").setLevel(logging.WARNING)


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
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            entry["traceback"] = self.formatException(record.exc_info)
        if self._as_json:
            entry = {key: _encodable(value) for key, value in entry.items()}
            return msgspec.json.encode(entry).decode()
        fields = " ".join(f"{key}={value!r}" for key, value in getattr(record, "fields", {}).items())
        head = (
            f"{stamp} {record.levelname.lower():7} {self._process}: {_visible(record.getMessage())} {fields}".rstrip()
        )
        trace = [_visible(line) for line in entry["traceback"].splitlines()] if record.exc_info else []
        return "\n".join([head, *trace])


def _encodable(value: object) -> object:
    return value.encode("utf-8", "backslashreplace").decode() if isinstance(value, str) else value


def _visible(text: str) -> str:
    """The text with line breaks and terminal control characters escaped."""
    return "".join(sign if sign.isprintable() else sign.encode("unicode_escape").decode("ascii") for sign in text)
