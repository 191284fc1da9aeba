"""What onnxruntime says is wrong, in one line, without the names and places of its own code."""

import re

_MOST = 300  # characters: what goes on from there are lists of names
_KIND = re.compile(r"^\[ONNXRuntimeError\] : \d+ : [A-Z_]+ : ")
# The line of its source, and the function there: with its type and arguments, or its name alone.
_PLACE = re.compile(
    r"[\w./-]+\.(?:cc|cpp|cu|h|hpp):\d+ "
    r"(?:(?:[\w:<>&*~,]+ )*?\w*(?:::~?[\w<>]+)+\((?:[^()]|\([^()]*\))*\)(?: const)? |\w+ )?"
)


def reason(error: Exception) -> str:
    """The reason in the message of an error that onnxruntime raised; the error's type where it has none."""
    text = " ".join(str(error).split())
    text = _PLACE.sub("", _KIND.sub("", text)).replace("failed:", "failed: ").replace("  ", " ").strip()
    return text[:_MOST] or type(error).__name__
