"""Ports for programs that are told theirs before they start."""

import random
import socket
from pathlib import Path

_HANDED_OUT = Path("/proc/sys/net/ipv4/ip_local_port_range")
_LEAST = 10_000  # below are those that other programs use by default


def free_ports(count: int, host: str = "127.0.0.1") -> list[int]:
    """Ports that nobody listens on now, each another one.

    The system hands none of them out: until the program listens there, or while it starts again, no connection of
    another process gets it.
    """
    try:
        first = int(_HANDED_OUT.read_text().split()[0])
    except OSError:  # not Linux
        first = 0
    ports = range(_LEAST, max(first, 2 * _LEAST))
    found: list[int] = []
    for port in random.SystemRandom().sample(ports, len(ports)):  # two processes that ask at once get others
        with socket.socket() as one:
            try:
                one.bind((host, port))
            except OSError:
                continue
        found.append(port)
        if len(found) == count:
            return found
    raise OSError(f"{len(found)} of {len(ports)} ports of {host} are free, want {count}")
