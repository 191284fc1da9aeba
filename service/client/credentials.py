"""How a client connects: in plain text or by TLS, and how it says who it is."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from convoy.service.errors import BadConfig

if TYPE_CHECKING:
    import grpc
    import grpc.aio

# The server's limit decides how large a request may be; the size of an answer follows from the request.
OPTIONS = (
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    ("grpc.use_local_subchannel_pool", 1),  # own connection: the kernel distributes connections over the front ends
    ("grpc.enable_http_proxy", 0),  # the caller, never the environment, decides where to connect
)


class Credentials(msgspec.Struct, frozen=True, kw_only=True):
    """TLS, and who the client is. Files are in PEM. Any of the files turns TLS on.

    tls          whether the connection is encrypted
    ca           file of the authorities that may have signed the server's certificate; empty: those that gRPC knows
    certificate  file of the client's own certificate, where the server asks for one; `key` is the file of its key
    token        what the server knows the client by; `token_file` is a file that contains it
    """

    tls: bool = False
    ca: str = ""
    certificate: str = ""
    key: str = ""
    token: str = ""
    token_file: str = ""

    def __post_init__(self) -> None:
        if bool(self.certificate) != bool(self.key):
            raise BadConfig("a client's certificate and its key go together, want both or neither")
        if self.token and self.token_file:
            raise BadConfig("token and token_file are both set, want one of them")

    def channel(self, target: str, options: Sequence[tuple[str, Any]] = OPTIONS) -> "grpc.Channel":
        """A connection for threads. Raises BadConfig for a file that cannot be read."""
        import grpc  # noqa: PLC0415  large: a command that only has options to check goes without

        secure = self._secure()
        if secure is None:
            return grpc.insecure_channel(target, options=options)
        return grpc.secure_channel(target, secure, options=options)

    def aio_channel(self, target: str, options: Sequence[tuple[str, Any]] = OPTIONS) -> "grpc.aio.Channel":
        """A connection for asyncio, on the running loop. Raises BadConfig for a file that cannot be read."""
        import grpc.aio  # noqa: PLC0415  see above

        secure = self._secure()
        if secure is None:
            return grpc.aio.insecure_channel(target, options=options)
        return grpc.aio.secure_channel(target, secure, options=options)

    def metadata(self) -> tuple[tuple[str, str], ...]:
        """The headers of every call. Raises BadConfig for a file that cannot be read."""
        token = self.token or (_read(self.token_file) or b"").decode("ascii", "replace").strip()
        if not token:
            if self.token_file:
                raise BadConfig(f"{self.token_file!r} is empty, want a token")
            return ()
        if not _TOKEN.fullmatch(token):
            raise BadConfig("token has characters that no token has, want letters, digits and - . _ ~ + / =")
        return (("authorization", f"Bearer {token}"),)

    def _secure(self) -> "grpc.ChannelCredentials | None":
        if not (self.tls or self.ca or self.certificate):
            return None
        import grpc  # noqa: PLC0415  see above

        ca, key, certificate = (_read(name) for name in (self.ca, self.key, self.certificate))
        return grpc.ssl_channel_credentials(ca, key, certificate)


_TOKEN = re.compile(r"[A-Za-z0-9._~+/=-]+")  # RFC 6750, section 2.1
PLAIN = Credentials()


def _read(name: str) -> bytes | None:
    if not name:
        return None
    try:
        return Path(name).read_bytes()
    except OSError as error:
        raise BadConfig(f"{name!r}: {error.strerror}") from None
