"""Finds in the text of an error what a server must keep to itself: paths, addresses, names of classes, stacks."""

import re

_SIGNS: dict[str, re.Pattern[str]] = {
    "a path": re.compile(
        r"(?<![\w.:/<])/(?!convoy\.v1\.|inference\.|grpc\.)(?:[\w.@+-]+/)+[\w.@+-]*|(?<![\w.:/])~/[\w.]+|\bsite-packages\b|\b[\w-]+\.(?:py|so|cc|cpp|h)\b"
    ),
    "an address": re.compile(
        r"\b0x(?=\d*[a-f])[0-9a-f]{9,}|(?<![\d.])\d{1,3}(?:\.\d{1,3}){3}(?::\d+)?(?![\d.])"
        r"|<[^<>]* (?:object|function|at) "
    ),
    "the name of a class": re.compile(
        r"\b(?:convoy\.(?:service|models)|onnxruntime|google\.protobuf|numpy|np|PIL|msgspec|grpc(?!\.health|\.reflection)|asyncio|uvloop|builtins|h11|uvicorn"
        r"|prometheus_client|tomllib|simplejpeg|zlib|ctypes|cffi)\.\w+|\b[A-Z]\w*(?:Error|Exception|Warning|Exit)\b|\b\w+::\w+"
    ),
    "a stack": re.compile(r'Traceback|File "|\bline \d+, in \b|\bstack trace\b', re.IGNORECASE),
    "a name of memory": re.compile(r"\bmemfd\b|/dev/shm|\bshm_|\bpsm_|\bsocketpair\b|\bfd=\d+|\bfile descriptor \d+"),
}

examined = [0]  # texts, by this process


def found(text: str, sent: str = "") -> str:
    """What kind of secret the text has; "" if none. What the caller has sent itself is none."""
    examined[0] += bool(text)
    sent += repr(sent)  # as a message shows what is not printable
    for kind, sign in _SIGNS.items():
        for match in sign.finditer(text):
            if match[0].rstrip(".") not in sent:  # which may be cut
                return f"{kind} ({match[0][:60]!r})"
    return ""
