"""Writes down each path that a process opens, looks at or changes; on PYTHONPATH of a server under test.

CONVOY_PATHS names the file, to which all processes append a line of JSON for each new path. At SIGUSR2 a process opens
the file named by CONVOY_TEMPTATION: the control.
"""

import json
import os
import signal
import sys
from collections.abc import Callable
from typing import Any

_EVENTS = (
    "open",
    "os.",
    "shutil.",
    "subprocess.Popen",
    "socket.connect",
    "ctypes.dlopen",
    "import",
    "glob.glob",
    "pathlib.",
)
_FORBIDDEN = {"torch", "onnx", "lightning", "dill", "cloudpickle", "joblib"}
_LOOKS = ("stat", "lstat", "access", "readlink")  # of which Python tells no hook

_out = os.open(os.environ["CONVOY_PATHS"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
_seen: set[tuple[str, str]] = set()


def _note(event: str, path: object) -> None:
    if isinstance(path, bytes):
        path = os.fsdecode(path)
    if isinstance(path, str) and (event, path) not in _seen:
        _seen.add((event, path))
        line = json.dumps([os.getpid(), event, path]) + "\n"
        os.write(_out, line.encode("utf-8", "backslashreplace")[:4000])


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "pickle.find_class" or (event == "import" and str(arguments[0]).partition(".")[0] in _FORBIDDEN):
        _note("forbidden", f"{event} {arguments[:2]}")
    if event.startswith(_EVENTS) and event != "import":
        for each in arguments[:2]:
            _note(event, os.fspath(each) if isinstance(each, os.PathLike) else each)


def _watched(name: str) -> Callable[..., Any]:
    original = getattr(os, name)

    def look(path: Any, *arguments: Any, **named: Any) -> Any:
        if not isinstance(path, int):
            _note(f"os.{name}", os.fspath(path))
        return original(path, *arguments, **named)

    return look


for _name in _LOOKS:
    setattr(os, _name, _watched(_name))
sys.addaudithook(_hook)
if "CONVOY_TEMPTATION" in os.environ:
    signal.signal(signal.SIGUSR2, lambda *_: open(os.environ["CONVOY_TEMPTATION"], "rb").close())  # noqa: PTH123
