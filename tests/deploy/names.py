"""A server of names for one zone, so that a test decides which addresses a name has at a time."""

import contextlib
import socket
import struct
import threading
from types import TracebackType
from typing import Self

_HEADER = struct.Struct(">6H")  # RFC 1035, section 4.1.1
_ANSWER = struct.Struct(">3HIH4s")
_A, _IN = 1, 1


class Names:
    """Answers every question for an IPv4 address with `addresses`, over UDP; `target(port)` is one of gRPC's."""

    def __init__(self, addresses: list[str]) -> None:
        self.addresses = addresses
        self.asked = 0
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(("127.0.0.1", 0))
        self._thread = threading.Thread(target=self._serve)

    def target(self, port: int) -> str:
        return f"dns://127.0.0.1:{self._socket.getsockname()[1]}/convoy.test:{port}"

    def _serve(self) -> None:
        while True:
            question, asker = self._socket.recvfrom(1024)
            if not question:
                return
            with contextlib.suppress(OSError):
                self._socket.sendto(self._answer(question), asker)

    def _answer(self, message: bytes) -> bytes:
        number, flags, *_ = _HEADER.unpack_from(message)
        end = message.index(b"\0", _HEADER.size) + 1
        kind, _ = struct.unpack_from(">2H", message, end)
        found = list(self.addresses) if kind == _A else []
        self.asked += kind == _A
        # An answer, without recursion; its names point to that of the question. Nobody may keep it.
        header = _HEADER.pack(number, 0x8000 | flags & 0x0100, 1, len(found), 0, 0)
        answers = [_ANSWER.pack(0xC000 | _HEADER.size, _A, _IN, 0, 4, socket.inet_aton(one)) for one in found]
        return b"".join((header, message[_HEADER.size : end + 4], *answers))

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as last:
            last.sendto(b"", self._socket.getsockname())
        self._thread.join()
        self._socket.close()
