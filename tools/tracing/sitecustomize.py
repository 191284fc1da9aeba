"""Traces the functions of Convoy that run. Python imports this from PYTHONPATH in every process of a server.

CONVOY_TRACE names a folder. While it contains a file `on`, each call of a function in `service/` is recorded, in order,
as `file function` in one file per process.
"""

import os
import sys
import threading
import time
from pathlib import Path
from types import FrameType
from typing import Any

_FOLDER = Path(os.environ["CONVOY_TRACE"])
_PARTS = ("/convoy/service/", "/convoy/__")
_calls: list[str] = []
_on = False


def _note(frame: FrameType, event: str, _: Any) -> None:
    if _on and event == "call":
        code = frame.f_code
        if any(part in code.co_filename for part in _PARTS):
            _calls.append(f"service/{code.co_filename.rpartition('/service/')[2]} {code.co_qualname}")


def _watch() -> None:
    global _on  # noqa: PLW0603  read by every thread's hook
    idle = _FOLDER / f"{os.getpid()}.there"
    idle.touch()
    while True:
        time.sleep(0.01)
        requested = (_FOLDER / "on").exists()
        if requested == _on:
            continue
        _on = requested
        if not requested:
            (_FOLDER / f"{os.getpid()}.calls").write_text("\n".join(_calls) + "\n")
        idle.rename(idle := idle.with_suffix(".noting" if requested else ".there"))


threading.setprofile(_note)
sys.setprofile(_note)
threading.Thread(target=_watch, daemon=True).start()
