"""What a good client keeps of its goodput while another misuses the server.

`python -m tests.performance.attacks KIND HOST:PORT SECONDS CALLERS` is that other one, bounded in time.
"""

import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.performance import load
from tests.performance.figure import CLASSIFY, Figure, request, serving
from tests.performance.trials import in_turns, ratio
from tests.service.frontend.transport import raw as wire
from tests.service.frontend.transport.raw import DATA, END_STREAM, RST_STREAM, SETTINGS, Raw, frame, message

_SECONDS = 4.0  # of an attack
_CALLS = 2000  # reset on one connection
_SLOW = 100  # connections that send or read hardly anything
_OFTEN, _SELDOM = 0.05, 0.5  # seconds between two bytes
_SENT = 1 << 14  # bytes of a request that are sent at once

Attack = Callable[[tuple[str, int], float, int], None]  # on an address, until a time, by so many callers


def rapid_reset(address: tuple[str, int], until: float, _callers: int) -> None:
    """Opens calls and resets them at once, as many as a connection bears, again and again."""
    _say_begun()
    while time.monotonic() < until:
        with suppress(OSError, AssertionError), Raw(address) as caller:  # its time may be over
            data = b"".join(
                caller.headers(stream, wire.request(CLASSIFY)) + frame(RST_STREAM, 0, stream, b"\0\0\0\x08")
                for stream in range(1, 2 * _CALLS, 2)
            )
            caller.pour(data, 1)
            caller.wait_for_end(until - time.monotonic())


def slow_senders(address: tuple[str, int], until: float, callers: int) -> None:
    """Begin requests of a megabyte, and send a byte now and then."""
    opened = _begin_to_send(address, callers)
    _say_begun()
    _send_slowly(opened, until, _OFTEN)
    _close(opened)


def slow_readers(address: tuple[str, int], until: float, callers: int) -> None:
    """Ask for what they do not read."""
    opened = _ask_and_do_not_read(address, callers)
    _say_begun()
    time.sleep(max(0.0, until - time.monotonic()))
    _close(opened)


def slow_callers(address: tuple[str, int], until: float, callers: int) -> None:
    """Half of them send a byte now and then, as whoever wants to hold places does; half of them do not read."""
    senders = _begin_to_send(address, callers // 2)
    readers = _ask_and_do_not_read(address, callers - callers // 2)
    _say_begun()
    _send_slowly(senders, until, _SELDOM)
    _close([*senders, *readers])


def honest(address: tuple[str, int], until: float, callers: int) -> None:
    """Send what everybody may send, all the time: nothing keeps them from it but a quota."""
    _say_begun()
    target, body = f"{address[0]}:{address[1]}", request(32, 1)
    while time.monotonic() < until:
        load.closed(target, CLASSIFY, body, callers, 10 * callers)


def _say_begun() -> None:
    """To the process that measures. Opening connections is no part of the attack: it costs what any connection does."""
    print("begun", flush=True)


def _begin_to_send(address: tuple[str, int], callers: int) -> list[Raw]:
    body = message(bytes(1 << 20))
    opened = [Raw(address) for _ in range(callers)]
    for caller in opened:
        caller.until(SETTINGS)
        caller.send(caller.headers(1, wire.request(CLASSIFY)) + frame(DATA, 0, 1, body[:_SENT]))
    return opened


def _send_slowly(callers: list[Raw], until: float, between: float) -> None:
    gone: set[Raw] = set()
    while time.monotonic() < until:
        for caller in callers:
            try:
                caller.send(frame(DATA, 0, 1, b"\0"))
            except OSError:  # the server does not put up with it
                gone.add(caller)
        callers = [caller for caller in callers if caller not in gone]
        time.sleep(between)


def _ask_and_do_not_read(address: tuple[str, int], callers: int) -> list[Raw]:
    opened = [Raw(address) for _ in range(callers)]
    for caller in opened:
        caller.until(SETTINGS)
        for stream in range(1, 200, 2):
            path = wire.request("/convoy.v1.Vision/ListModels")
            caller.send(caller.headers(stream, path) + frame(DATA, END_STREAM, stream, message(b"")))
    return opened


def _close(callers: list[Raw]) -> None:
    for caller in callers:
        caller.socket.close()


ATTACKS: dict[str, Attack] = {
    "rapid resets": rapid_reset,
    f"{_SLOW} slow senders": slow_senders,
    f"{_SLOW} slow readers": slow_readers,
}
_OTHERS: dict[str, Attack] = {"slow callers": slow_callers, "honest callers": honest}


@contextmanager
def attacking(kind: str, target: str, callers: int = _SLOW, seconds: float = _SECONDS) -> Iterator[None]:
    """An attack in a process of its own."""
    command = [sys.executable, "-m", "tests.performance.attacks", kind, target, str(seconds), str(callers)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()  # it has begun
        try:
            yield
        finally:
            process.terminate()


def goodput(root: Path, pairs: int) -> Iterator[Figure]:
    """Goodput of a good client beside each attack, over that beside the same attack on another server: the attacker's
    own CPU time counts for neither."""
    body = request(32, 1)
    for kind in ATTACKS:
        with serving(root, "engine.sleep_ms=[5, 0]") as attacked, serving(root, "engine.sleep_ms=[5, 0]") as other:

            def rate(target: str, good: str = attacked.grpc, kind: str = kind) -> float:
                with attacking(kind, target):
                    answers = load.closed(good, CLASSIFY, body, 4, 600)
                assert not answers.errors, answers.errors[:3]
                return len(answers.latencies) / answers.seconds

            found = ratio(
                *in_turns(
                    lambda target=attacked.grpc: rate(target),  # type: ignore[misc]
                    lambda target=other.grpc: rate(target),  # type: ignore[misc]
                    pairs,
                )
            )
        yield Figure(
            "N9",
            f"goodput of 4 good callers beside {kind}, divided by that beside the same at another server",
            ">= 0.95",
            str(found),
            found.median >= 0.95,
        )


def main(kind: str, target: str, seconds: float, callers: int) -> None:
    """Attacks a server for so many seconds, by so many callers if the attack needs several."""
    host, _, port = target.rpartition(":")
    {**ATTACKS, **_OTHERS}[kind]((host, int(port)), time.monotonic() + seconds, callers)


if __name__ == "__main__":
    socket.setdefaulttimeout(30)
    main(sys.argv[1], sys.argv[2], float(sys.argv[3]), int(sys.argv[4]))
