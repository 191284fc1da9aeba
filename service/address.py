"""Addresses as people type them: `localhost`, `10.0.0.7:9001`, `http://127.0.0.1:8001/`."""

import re

from convoy.service.errors import BadConfig

_HOST = r"\[[0-9A-Fa-f:.]+(?:%\w+)?\]|[\w.-]+"
# What gRPC resolves by itself, several addresses included.
_RESOLVED = re.compile(r"(?:unix|unix-abstract|ipv4|ipv6|dns|vsock|xds|passthrough):.+", re.DOTALL)
_NAME = re.compile(rf"dns:(?://[^/]*/)?(?:{_HOST})")  # without a port, for which gRPC would take 443


def target(text: str, port: int = 8001) -> str:
    """HOST:PORT of a server, or another target of gRPC as it is: `port` where none is named. Raises BadConfig."""
    if _NAME.fullmatch(text) and not _is_port(text.partition(":")[2]):
        return f"{text}:{port}"
    return text if _RESOLVED.fullmatch(text) and not _is_port(text.partition(":")[2]) else address(text, port)


def address(text: str, port: int) -> str:
    """HOST:PORT, without the http:// in front; `port` where none is named. Raises BadConfig."""
    rest = re.sub(r"^(?:http|grpc)://", "", text).removesuffix("/")
    if rest.lower().startswith("https://"):
        raise BadConfig(f"address {text!r}, want {rest[8:].removesuffix('/')} and --tls, or credentials with TLS")
    if re.fullmatch(r"[0-9A-Fa-f]*:[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*", rest):  # IPv6 without its brackets
        rest = f"[{rest}]"
    match = re.fullmatch(rf"({_HOST})(?::(\d+))?", rest)
    if match is None or (match[2] and not _is_port(match[2])):
        raise BadConfig(f"address {text!r}, want HOST:PORT such as 127.0.0.1:{port}")
    return rest if match[2] else f"{rest}:{port}"


def _is_port(text: str) -> bool:
    return re.fullmatch(r"\d{1,5}", text) is not None and 0 < int(text) < 65536
