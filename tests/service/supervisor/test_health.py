"""Who hangs and who only seems to; restarts; versions whose inputs end engines."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from convoy.service.ipc import messages
from convoy.service.ipc.messages import Suspect
from convoy.service.supervisor.health import (
    LoadDeaths,
    Offences,
    Quarantine,
    Reading,
    Silence,
    Weight,
    read,
    restart_delay,
)

STEP = 0.25


def reading(beats: int, **flags: bool | float) -> Reading:
    return Reading(**{"beats": beats, "loading": False, "stopped": False, "traced": False, "starved": 0.0, **flags})


def seconds_until_hung(silence: Silence, *looks: Reading, most: float = 200.0) -> float | None:
    """Repeats the last look."""
    seconds = 0.0
    for look in looks:
        seconds += STEP
        if silence.observe(look, STEP):
            return seconds
    while seconds < most:
        seconds += STEP
        if silence.observe(looks[-1], STEP):
            return seconds
    return None


def test_process_whose_loop_is_silent_hangs() -> None:
    assert seconds_until_hung(Silence(1.0), reading(7)) == pytest.approx(1.5)


def test_process_that_beats_does_not_hang() -> None:
    silence = Silence(1.0)
    assert not any(silence.observe(reading(beats), STEP) for beats in range(1, 1000))


def test_process_that_waits_for_a_cpu_does_not_hang() -> None:
    silence = Silence(1.0)
    assert not any(silence.observe(reading(7, starved=STEP * turn), STEP) for turn in range(1000))
    assert seconds_until_hung(silence, reading(7, starved=STEP * 1000)) is not None


def test_process_that_a_debugger_holds_does_not_hang() -> None:
    silence = Silence(1.0)
    assert seconds_until_hung(silence, reading(7, traced=True)) is None
    assert seconds_until_hung(silence, reading(7)) is not None


def test_process_that_loads_may_be_silent_for_longer_but_not_if_it_is_stopped() -> None:
    assert seconds_until_hung(Silence(1.0), reading(7, loading=True)) == pytest.approx(60.5)
    assert seconds_until_hung(Silence(1.0), reading(7, loading=True, stopped=True)) == pytest.approx(1.5)


def test_silence_while_loading_is_forgotten_when_it_has_loaded() -> None:
    looks = [reading(7, loading=True)] * 20
    assert seconds_until_hung(Silence(1.0), *looks, reading(7)) == pytest.approx(20 * STEP + 1.5)


def test_process_that_has_not_begun_may_be_silent_until_it_has_imported() -> None:
    assert seconds_until_hung(Silence(1.0), reading(0)) == pytest.approx(60.25)


def test_kernel_says_who_is_stopped() -> None:
    sleeping = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        assert not read(sleeping.pid, 7, loading=False).stopped
        os.kill(sleeping.pid, signal.SIGSTOP)
        os.waitid(os.P_PID, sleeping.pid, os.WSTOPPED | os.WNOWAIT)
        found = read(sleeping.pid, 7, loading=True)
        assert (found.beats, found.loading, found.stopped, found.traced) == (7, True, True, False)
    finally:
        sleeping.kill()
        sleeping.communicate()


@pytest.mark.parametrize(("state", "tracer", "wanted"), [("S (sleeping)", 0, False), ("t (tracing stop)", 99, True)])
def test_kernel_says_whom_a_debugger_holds(tmp_path: Path, state: str, tracer: int, wanted: bool) -> None:
    folder = tmp_path / "42"
    folder.mkdir()
    (folder / "status").write_text(f"Name:\tpython\nState:\t{state}\nTracerPid:\t{tracer}\n")
    (folder / "schedstat").write_text("5 1500000000 3\n")
    found = read(42, 7, loading=False, proc=tmp_path)
    assert (found.traced, found.stopped, found.starved) == (wanted, False, 1.5)


def test_process_that_has_ended_is_not_looked_at(tmp_path: Path) -> None:
    assert read(42, 7, loading=False, proc=tmp_path) == reading(7)


def test_restarts_are_delayed_only_by_starts_that_fail() -> None:
    delays = [restart_delay(failed) for failed in range(8)]
    assert delays[0] <= 0.05
    assert delays == sorted(delays)
    assert delays[-1] == delays[-2]


def test_version_stops_serving_after_three_different_inputs_within_a_minute() -> None:
    offences = Offences()
    assert [offences.add("dies", 1, digest, 0.0) for digest in (b"a", b"a", b"b", b"a")] == [False] * 4
    assert not offences.add("dies", 2, b"c", 1.0)
    assert not offences.add("other", 1, b"c", 1.0)
    assert offences.withdrawn(1.0) == ()
    assert offences.add("dies", 1, b"c", 59.0)
    assert offences.withdrawn(60.0) == (("dies", 1),)
    assert offences.withdrawn(700.0) == ()


def test_inputs_of_different_minutes_do_not_add_up() -> None:
    offences = Offences()
    assert not any(offences.add("dies", 1, bytes([number]), 40.0 * number) for number in range(20))


SUSPECT, OTHER = Suspect("letters", 1, "stamp"), Suspect("others", 1, "stamp")


def test_version_is_charged_with_deaths_in_a_row() -> None:
    deaths = LoadDeaths()
    for _ in range(2):
        deaths.add(SUSPECT, elsewhere=True)
        deaths.add(OTHER, elsewhere=False)
    assert dict(deaths.most()) == {SUSPECT: 2, OTHER: 2}
    deaths.survived(SUSPECT)
    assert dict(deaths.most()) == {OTHER: 2}


def test_version_that_was_loaded_before_is_hardly_charged_with_deaths_that_may_have_another_cause() -> None:
    deaths = LoadDeaths()
    deaths.survived(SUSPECT)
    for _ in range(7):
        deaths.add(SUSPECT, elsewhere=True)
    assert deaths.most() == ()
    for _ in range(17):
        deaths.add(SUSPECT, elsewhere=True)
    assert dict(deaths.most()) == {SUSPECT: 3}
    deaths.survived(SUSPECT)
    deaths.add(SUSPECT, elsewhere=False)
    assert dict(deaths.most()) == {SUSPECT: 1}


def replaced_at(limit: int, memory: list[int], *, serving: bool = True) -> int | None:
    """The second in which a process is replaced that has so much memory in each."""
    weight = Weight(limit)
    for second, own in enumerate(memory):
        if weight.exceeds(own, float(second), serving=serving):
            return second
    return None


def test_process_with_too_much_memory_for_five_seconds_is_replaced() -> None:
    assert replaced_at(100, [50] * 10 + [200] * 10) == 15


def test_moment_with_too_much_memory_does_not_count() -> None:
    assert replaced_at(100, ([50] * 2 + [200] * 5) * 10) is None


def test_process_that_needs_more_than_its_limit_to_serve_is_not_replaced_for_ever() -> None:
    assert replaced_at(100, [300] * 100) is None
    assert replaced_at(100, [300] * 10 + [500] * 10) == 15


def test_memory_does_not_count_before_a_process_serves_or_without_a_limit() -> None:
    assert replaced_at(100, [50] + [200] * 100, serving=False) is None
    assert replaced_at(0, [50] + [200] * 100) is None


def test_what_is_known_of_pictures_and_inputs_ends_with_its_time_and_fits_a_message() -> None:
    known = Quarantine()
    digests = [number.to_bytes(16) for number in range(1, 301)]
    assert not known.decoding([], -11, 0.0)
    assert known.pictures(0.0).apart_until == 0
    for number, digest in enumerate(digests):
        assert known.decoding([digest], -9, float(number))
        known.add_guilty(messages.Pictures(guilty=((digest, 1000.0 + number),)))
        known.add_deadly(messages.Deadly("m" * 64, 1, digest, bytes(8), 1000.0 + number))
    found = known.pictures(300.0)
    assert [digest for digest, _ in found.suspects] == [digest for digest, _ in found.guilty] == digests[-64:]
    assert [each.digest for each in known.deadly(300.0)] == digests[-64:]
    assert found.apart_until == 0  # they were killed from outside
    known.decoding(digests[:1], -11, 300.0)
    assert known.pictures(300.0).apart_until == 900.0
    size = len(msgspec.json.encode(found)) + len(msgspec.json.encode(known.deadly(300.0)))
    assert size < 32_768
    assert not known.pictures(5000.0).suspects
    assert known.deadly(5000.0) == ()
