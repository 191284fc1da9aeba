"""File descriptors: how many a process may have open, and how many of them connections may take.

A server needs descriptors for more than connections: to start a process, to receive a channel, to read a file. So
connections are limited to what leaves some for these, however many there are.
"""

import resource
from contextlib import suppress

from convoy.service.errors import BadConfig

# Open in an idle process, and to start another one or to receive its channel: up to 31 in the supervisor, and 29 in a
# front end.
_OWN = 48
_PER_PROCESS = 4  # for each process that this one is connected to
_LEAST_CONNECTIONS = 4  # of each of the two HTTP ports
_MOST_PROBES = 64  # connections of each HTTP port, where there are descriptors for more
_SHARE = 4  # one in four connections of a front end is for HTTP
_MOST_BROWSERS = 4096
_UNLIMITED = 1 << 20


def raise_limit() -> None:
    """Raises this process's limit as far as it may, for those that it starts, too.

    The usual one of 1024 is there for programs that use select().
    """
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError, OSError):  # more than the kernel allows any process
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def check(processes: int = 2) -> None:
    """Raises BadConfig if the limit is too low. `processes` is how many the server has beside the supervisor."""
    least = _OWN + _PER_PROCESS * processes + 2 * _LEAST_CONNECTIONS
    if _limit() < least:
        raise BadConfig(
            f"a process may open {_limit()} files, want at least {least}: raise the limit, such as by 'ulimit -n 1024'"
        )


def of_http_port(processes: int) -> int:
    """How many connections each HTTP port may have."""
    return max(_LEAST_CONNECTIONS, min(_MOST_PROBES, (_limit() - _OWN - _PER_PROCESS * processes) // 2))


def of_front_end(engines: int) -> int:
    """How many connections a front end may have, on all its ports."""
    return max(_LEAST_CONNECTIONS, _limit() - _OWN - _PER_PROCESS * engines)


def of_http_api(engines: int) -> int:
    """How many of these its HTTP port may have."""
    return max(1, min(_MOST_BROWSERS, of_front_end(engines) // _SHARE))


def _limit() -> int:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return _UNLIMITED if soft == resource.RLIM_INFINITY else soft
