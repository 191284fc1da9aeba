"""How a caller names its call, for the log: `x-request-id`, which is sent back, and W3C's `traceparent`."""

import re
from typing import NamedTuple

REQUEST_ID, PARENT = "x-request-id", "traceparent"
_REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}")
_PARENT = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")


class Trace(NamedTuple):
    """The names of a call; "": it has none."""

    request_id: str
    parent: str

    def fields(self) -> dict[str, str]:
        """Returns the fields of a log record."""
        return {name: value for name, value in (("request_id", self.request_id), (PARENT, self.parent)) if value}


def read(request_id: bytes | str | None, parent: bytes | str | None) -> Trace | None:
    """Returns the names in two headers; None if there are none, or none that the log should have."""
    found = Trace(_matching(_REQUEST_ID, request_id), _matching(_PARENT, parent))
    return found if any(found) else None


def _matching(pattern: re.Pattern[str], value: bytes | str | None) -> str:
    if value is None:
        return ""
    text = value.decode("ascii", "replace") if isinstance(value, bytes) else value
    return text if pattern.fullmatch(text) else ""
