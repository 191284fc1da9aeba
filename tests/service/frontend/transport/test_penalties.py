"""Callers whose connections were ended for abuse wait before the next one is read."""

import time

import pytest

from convoy.service.frontend.transport import penalties
from convoy.service.frontend.transport.penalties import Penalties
from tests.service.frontend.transport.raw import PING, SETTINGS, Raw, frame, message
from tests.service.frontend.transport.serving import LIMITS, Serving


def test_each_strike_doubles_the_wait_up_to_a_limit() -> None:
    found = Penalties()
    delays = []
    for _ in range(9):
        delays.append(found.delay("10.0.0.1", 100.0))
        found.strike("10.0.0.1", 100.0)
    assert delays == [0.0, 0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 2.0, 2.0]


def test_strikes_are_those_of_their_address_and_forgotten_after_a_while() -> None:
    found = Penalties()
    for second in range(5):
        found.strike("10.0.0.1", float(second))
    assert found.delay("10.0.0.2", 4.0) == 0.0
    assert found.delay("10.0.0.1", 13.9) == 0.8
    assert found.delay("10.0.0.1", 14.0) == 0.0
    found.strike("10.0.0.1", 14.0)
    assert found.delay("10.0.0.1", 14.0) == 0.05


def test_callers_of_a_unix_socket_have_no_address_to_be_known_by() -> None:
    found = Penalties()
    found.strike("", 0.0)
    assert found.delay("", 0.0) == 0.0


def test_only_so_many_addresses_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(penalties, "_MOST", 3)
    found = Penalties()
    for number in (1, 2, 3, 1, 4):
        found.strike(f"10.0.0.{number}", 0.0)
    assert [found.delay(f"10.0.0.{number}", 0.0) for number in (1, 2, 3, 4)] == [0.1, 0.0, 0.05, 0.05]


def test_abuser_that_connects_again_waits_and_who_is_connected_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(penalties, "_FIRST", 0.5)
    with Serving("nghttp2") as serving, Raw(serving.address) as good:
        good.call(1)
        assert good.answer(1)[0] == message(b"hello")
        with Raw(serving.address) as raw:
            raw.send(frame(SETTINGS, 0, 1))  # of a stream: there is no such thing
            raw.wait_for_end()
        began = time.monotonic()
        with Raw(serving.address) as raw:
            good.call(3)
            assert good.answer(3)[0] == message(b"hello")
            raw.call(1)
            assert raw.answer(1)[0] == message(b"hello")
            assert time.monotonic() - began >= 0.4


@pytest.mark.parametrize("polite", [True, False])
def test_callers_that_leave_get_no_strike(polite: bool) -> None:
    """The control."""
    goodbye = frame(7, 0, 0, bytes(8))
    with Serving("nghttp2", LIMITS._replace(connection_idle=0)) as serving:
        for _ in range(3):
            with Raw(serving.address) as raw:
                raw.call(1)
                assert raw.answer(1)[0] == message(b"hello")
                raw.send(goodbye if polite else frame(PING, 0, 0, bytes(8)))
                if polite:
                    raw.wait_for_end()
        assert serving.do(lambda: serving.hub.penalties.delay("127.0.0.1", serving.hub.loop.time())) == 0.0
