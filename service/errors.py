"""One class per error that a caller or an operator can act on. Nothing here depends on gRPC.

A message names the value and what was expected, in one line; it never contains a path or an address of the server.
"""

import re
from collections.abc import Iterable

_MOST_OF_A_NAME = 90  # bytes
_MOST_OF_A_LIST = 180  # bytes: a name and a list together stay below 300

# onnxruntime's messages: the status, then a source location with the function's name, alone or with type and arguments.
_RUNTIME_STATUS = re.compile(r"^\[ONNXRuntimeError\] : \d+ : [A-Z_]+ : ")
_RUNTIME_SOURCE = re.compile(
    r"[\w./-]+\.(?:cc|cpp|cu|h|hpp):\d+ "
    r"(?:(?:[\w:<>&*~,]+ )*?\w*(?:::~?[\w<>]+)+\((?:[^()]|\([^()]*\))*\)(?: const)? |\w+ )?"
)
_MOST_OF_A_REASON = 300  # characters; what follows is usually a list of names


def named(name: str) -> str:
    """A name for a message, in quotes, cut if it is long."""
    return _cut(repr(name), _MOST_OF_A_NAME)


def listed(names: Iterable[str], most: int = 1000) -> str:
    """Names for a message, which travels in a header: as many as fit, at most `most`, and the count of the others."""
    texts = [_cut(name, _MOST_OF_A_NAME) for name in names]
    shown, left = 0, _MOST_OF_A_LIST
    while shown < min(len(texts), most) and (left := left - len(texts[shown].encode()) - 2) >= 0:
        shown += 1
    more = f" and {len(texts) - shown} more" if shown < len(texts) else ""
    return ", ".join(texts[:shown]) + more


def meant(name: str, names: Iterable[str]) -> str:
    """The end of a message about an unknown name: the nearest known one, or nothing. For commands, not for servers:
    comparing with many names takes milliseconds."""
    import difflib  # noqa: PLC0415  only for an error

    close = difflib.get_close_matches(name, list(names), 1)
    return f"; did you mean {close[0]!r}?" if close else ""


def runtime_reason(error: Exception) -> str:
    """The reason in an onnxruntime error, in one line, without names and locations of its source; else the type."""
    text = " ".join(str(error).split())
    text = _RUNTIME_SOURCE.sub("", _RUNTIME_STATUS.sub("", text)).replace("failed:", "failed: ").replace("  ", " ")
    return text.strip()[:_MOST_OF_A_REASON] or type(error).__name__


def _cut(text: str, most: int) -> str:
    data = text.encode(errors="backslashreplace")
    return data.decode() if len(data) <= most else data[:most].decode(errors="ignore") + "..."


class ConvoyError(Exception):
    """Any error that Convoy reports to a caller. `reason` is its machine-readable name."""

    reason = "INTERNAL"

    def __init__(self, message: str, *, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.retry_after = retry_after  # seconds after which a retry makes sense

    def forget_origin(self) -> None:
        """Drops the references to where it was raised. They keep the bytes of its request, in cycles of frames and
        futures, until the collector runs, and that is seldom: gigabytes after a flood of broken pictures."""
        self.__traceback__ = self.__context__ = self.__cause__ = None


class BadRequest(ConvoyError):
    """A field of the request is wrong."""

    reason = "BAD_REQUEST"


class BadImage(BadRequest):
    """The bytes are not an image that can be served."""

    reason = "BAD_IMAGE"


class BadTensor(BadRequest):
    """A tensor's name, dtype, shape or byte count is wrong."""

    reason = "BAD_TENSOR"


class UnknownModel(ConvoyError):
    """No such model or version is served."""

    reason = "UNKNOWN_MODEL"


class UnknownRegion(ConvoyError):
    """No region of shared memory is registered under this name."""

    reason = "UNKNOWN_REGION"


class UnknownService(ConvoyError):
    """The server has no service or model of this name, whose health was asked."""

    reason = "UNKNOWN_SERVICE"


class NotOffered(ConvoyError):
    """A call of a published protocol that is not supported here; the message names its replacement."""

    reason = "NOT_OFFERED"


class UnknownCaller(ConvoyError):
    """The server does not know who calls."""

    reason = "UNKNOWN_CALLER"


class NotPermitted(ConvoyError):
    """The caller is known, but may not do this."""

    reason = "NOT_PERMITTED"


class QuotaExceeded(ConvoyError):
    """The caller has sent more than it may."""

    reason = "QUOTA_EXCEEDED"


class QueueFull(ConvoyError):
    """There is no room for another image now."""

    reason = "QUEUE_FULL"


class PredictedLate(ConvoyError):
    """The answer would miss the caller's deadline: the request was refused before any work was done."""

    reason = "PREDICTED_LATE"


class DeadlinePassed(ConvoyError):
    """The caller's deadline passed before the image ran."""

    reason = "DEADLINE_PASSED"


class ModelUnavailable(ConvoyError):
    """The model is loading, or the server is draining: another replica may answer."""

    reason = "MODEL_UNAVAILABLE"


class RunFailed(ConvoyError):
    """The network failed on this batch."""

    reason = "RUN_FAILED"


class EngineDied(RunFailed):
    """The engine died or hung on this input, also when it ran alone. The input is refused for some time."""

    reason = "ENGINE_DIED"


class BadMetadata(ConvoyError):
    """The `convoy` document of a model file is invalid."""

    reason = "BAD_METADATA"


class BadModelFile(ConvoyError):
    """A model file cannot be served."""

    reason = "BAD_MODEL_FILE"


class BadConfig(ConvoyError):
    """A configuration key or value, or a start option, is wrong."""

    reason = "BAD_CONFIG"
