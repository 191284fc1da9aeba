"""onnxruntime's error messages in one line, without the names and source locations of its own code."""

import re

_MOST = 300  # characters; what follows is usually a list of names
_KIND = re.compile(r"^\[ONNXRuntimeError\] : \d+ : [A-Z_]+ : ")
# The source location and the function name: with its type and arguments, or the name alone.
_PLACE = re.compile(
    r"[\w./-]+\.(?:cc|cpp|cu|h|hpp):\d+ "
    r"(?:(?:[\w:<>&*~,]+ )*?\w*(?:::~?[\w<>]+)+\((?:[^()]|\([^()]*\))*\)(?: const)? |\w+ )?"
)


def reason(error: Exception) -> str:
    """The reason in the message of an onnxruntime error; the error's type if it has no message."""
    text = " ".join(str(error).split())
    text = _PLACE.sub("", _KIND.sub("", text)).replace("failed:", "failed: ").replace("  ", " ").strip()
    return text[:_MOST] or type(error).__name__
