"""The ports of a server, bound before anything else starts."""

import errno
import socket
import stat
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from convoy.service.config import AdminConfig, ServerConfig
from convoy.service.errors import BadConfig

_LOOPBACK = "127.0.0.1"


@dataclass(frozen=True, slots=True)
class Addresses:
    """The listening addresses of the server, once the ports are known."""

    grpc: str
    http: str
    metrics: str
    admin: str = ""  # unix:PATH of a Unix socket; "": there is none


class Sockets:
    """The bound ports of a server. The gRPC port and that of administration are only reserved: front ends listen on
    them, on sockets of their own. A front end that is the only one gets the gRPC port's socket itself, unless the
    server must not accept connections before it can serve: callers who come between its death and the next one's start
    wait there."""

    def __init__(self, config: ServerConfig, admin: AdminConfig | None = None) -> None:
        # The reserved ports last: nothing listens on them yet, so another of the three could bind them again.
        self.http = _bound(config.host, config.http_port, "server.http_port")
        self.metrics = _bound(config.host, config.metrics_port, "server.metrics_port")
        self.reserved = _bound(config.host, config.grpc_port, "server.grpc_port", shared=True)
        addresses = [_address(bound) for bound in (self.reserved, self.http, self.metrics)]
        self._unix: Path | None = None
        if admin is not None and admin.enabled and admin.socket:
            self._unix = Path(admin.socket).absolute()
            _try_unix_socket(self._unix)
            addresses.append(f"unix:{self._unix}")
        elif admin is not None and admin.enabled:
            self.admin = _bound(_LOOPBACK, admin.port, "admin.port", shared=True)
            while self.admin.getsockname()[1] == self.reserved.getsockname()[1]:  # rare: of ports that the system picks
                self.admin.close()
                self.admin = _bound(_LOOPBACK, 0, "admin.port", shared=True)
            addresses.append(_address(self.admin))
        self.addresses = Addresses(*addresses)

    def refuse(self) -> None:
        """Refuses callers of the gRPC port from now on, also those who wait there, until a front end listens again."""
        with suppress(OSError):  # nobody has listened on this socket
            self.reserved.shutdown(socket.SHUT_RD)

    def remove(self) -> None:
        """Removes what would stay in the file system."""
        if self._unix is not None:
            with suppress(OSError):
                self._unix.unlink()


def _try_unix_socket(path: Path) -> None:
    """Raises BadConfig if no socket can be bound to a path. Removes one that nobody listens on any more."""
    key = f"admin.socket is {str(path)!r}"
    try:
        with suppress(FileNotFoundError):
            if not stat.S_ISSOCK(path.lstat().st_mode):
                raise BadConfig(f"{key}, where something else is, want a path that is free")
            if _listens(path):
                raise BadConfig(f"{key}, where another process listens: stop it, or set another path")
            path.unlink()
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as tried:
            tried.bind(str(path))
        path.unlink()
    except OSError as error:  # such as a path of more than 107 bytes
        raise BadConfig(f"{key}, which cannot be used ({error.strerror or error})") from None


def _listens(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as other:
        other.setblocking(False)
        try:
            other.connect(str(path))
        except ConnectionRefusedError:
            return False
        except BlockingIOError:
            pass
        return True


def _bound(host: str, port: int, key: str, *, shared: bool = False) -> socket.socket:
    """A bound socket, which listens unless it is `shared`. Raises BadConfig if the host or port is not available."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except OSError as error:
        raise _bad_host(host, error) from None
    bound = socket.socket(family, kind, protocol)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
        if shared:
            # Bound without SO_REUSEPORT first: with it, two servers would silently share the port.
            address = bound.getsockname()
            bound.close()
            bound = socket.socket(family, kind, protocol)
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            bound.bind(address)
        else:
            bound.listen()  # now: with SO_REUSEADDR, a port that is only bound could be bound again
    except OSError as error:
        bound.close()
        if error.errno == errno.EADDRNOTAVAIL:
            raise _bad_host(host, error) from None
        raise BadConfig(
            f"port {port} on {host} cannot be used ({error.strerror}): stop the process that uses it, or set {key}"
        ) from None
    return bound


def _bad_host(host: str, error: OSError) -> BadConfig:
    hint = "want an address or a name of this machine such as 127.0.0.1, or 0.0.0.0 for all of its addresses"
    return BadConfig(f"server.host is {host!r} ({error.strerror}), {hint}")


def _address(bound: socket.socket) -> str:
    host, port = bound.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
