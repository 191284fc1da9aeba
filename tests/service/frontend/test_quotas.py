"""Quotas: on a virtual clock, what one caller may send in any time."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from convoy.service.config import AccessConfig, QuotasConfig
from convoy.service.errors import QuotaExceeded
from convoy.service.frontend.doors import _MOST_PEERS, Doors
from convoy.service.frontend.quotas import Account, Bucket, peer_of


class Clock:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def account(clock: Clock, requests: float = 0, nbytes: float = 0, burst: float = 1.0) -> Account:
    return Account(QuotasConfig(requests_per_second=requests, bytes_per_second=nbytes, burst_seconds=burst), clock)


def admitted(of: Account, nbytes: int = 0) -> float:
    """0 if a request is admitted; else the seconds to wait."""
    try:
        of.admit()
    except QuotaExceeded as error:
        return error.retry_after or -1.0
    of.spend(nbytes)
    return 0


def test_burst_comes_at_once_and_then_the_rate() -> None:
    clock = Clock()
    caller = account(clock, requests=10, burst=2)
    assert [admitted(caller) for _ in range(20)] == [0] * 20
    assert admitted(caller) == pytest.approx(0.1)
    clock.now += 0.1
    assert [admitted(caller) > 0 for _ in range(2)] == [False, True]
    clock.now += 1000
    assert sum(not admitted(caller) for _ in range(100)) == 20


def test_refused_request_is_not_counted() -> None:
    clock = Clock()
    caller = account(clock, requests=1)
    assert admitted(caller) == 0
    assert [admitted(caller) for _ in range(10)] == [pytest.approx(1.0)] * 10
    clock.now += 1
    assert admitted(caller) == 0


def test_large_message_is_admitted_and_those_after_it_wait_for_it() -> None:
    clock = Clock()
    caller = account(clock, nbytes=1000)
    assert admitted(caller, 50_000) == 0
    assert admitted(caller) == pytest.approx(49.001)
    clock.now += 49
    assert admitted(caller) > 0
    clock.now += 0.01
    assert admitted(caller) == 0


def test_rate_below_one_a_second_admits_one_at_once() -> None:
    clock = Clock()
    caller = account(clock, requests=0.1)
    assert admitted(caller) == 0
    assert admitted(caller) == pytest.approx(10)


def test_hint_is_long_enough_and_never_endless() -> None:
    clock = Clock()
    caller = account(clock, requests=3)
    while not (wait := admitted(caller)):
        pass
    clock.now += wait
    assert admitted(caller) == 0
    slow = account(clock, requests=1e-300)
    assert [admitted(slow), admitted(slow)] == [0, 3600]


def test_message_names_the_quota() -> None:
    caller = account(Clock(), requests=0.5)
    caller.admit()
    with pytest.raises(QuotaExceeded, match=r"^caller has sent more than 0\.5 requests a second$"):
        caller.admit()


@given(
    rate=st.floats(0.01, 1e6),
    burst=st.floats(0.1, 1e6),
    steps=st.lists(st.tuples(st.floats(0, 100), st.integers(0, 50)), max_size=30),
)
def test_never_more_than_burst_and_rate(rate: float, burst: float, steps: list[tuple[float, int]]) -> None:
    now, taken, began = 0.0, 0, 0.0
    bucket = Bucket(rate, burst, now)
    for gap, attempts in steps:
        now += gap
        for _ in range(attempts):
            if not bucket.wait(now):
                bucket.take(1)
                taken += 1
    assert taken <= max(1.0, burst) + rate * (now - began) + 1e-3


@given(rate=st.floats(0.01, 1e6), burst=st.floats(1, 1e3))
def test_wait_is_enough(rate: float, burst: float) -> None:
    bucket = Bucket(rate, burst, 0.0)
    bucket.take(burst * 3)
    wait = bucket.wait(0.0)
    assert wait > 0
    assert bucket.wait(wait) == 0


@pytest.mark.parametrize(
    ("host", "name"),
    [
        ("10.0.0.1", "10.0.0.1"),
        ("::ffff:10.0.0.1", "10.0.0.1"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::1", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("unix", "unix"),
    ],
)
def test_callers_of_one_network_share_a_quota(host: str, name: str) -> None:
    assert peer_of(host) == name


def test_number_of_callers_without_a_name_is_bounded() -> None:
    doors = Doors(AccessConfig(), None, QuotasConfig(requests_per_second=0.001, burst_seconds=1000))
    assert doors.needed

    def refused(peer: str) -> bool:
        try:
            doors.admit(b"/a/b", None, (), peer)
        except QuotaExceeded:
            return True
        return False

    assert [refused("first"), refused("first")] == [False, True]
    for number in range(_MOST_PEERS - 1):
        assert not refused(str(number))
    assert refused("first")  # which makes it the one that has called last
    assert not refused("another")
    assert refused("first")
    assert not refused("0")  # which was quiet for longest, and is forgotten
    assert len(doors._peers) == _MOST_PEERS


def test_without_callers_and_quotas_there_is_nothing_to_decide() -> None:
    assert not Doors(AccessConfig(), None, QuotasConfig()).needed
