"""R1 in short: whatever a caller or a file contains, the server goes on, and a good caller beside it is served."""

from pathlib import Path

import pytest

from tests.reliability import fuzz, r01_files, r01_http1, r01_http2, r01_images, r01_messages, r01_parsers
from tests.reliability.probe import Probe, Tally
from tests.service.running import skip_without

SEEDS = {"nghttp2": 0, "grpcio": 1}  # of which the transport follows


@pytest.fixture(params=SEEDS)
def seed(request: pytest.FixtureRequest) -> int:
    """One seed for each transport."""
    skip_without(request.param)
    return SEEDS[request.param]


def passed(tally: Tally) -> None:
    assert tally.failed == 0, "\n".join(tally.examples)


def test_ten_thousand_damaged_pictures_hurt_nobody() -> None:
    passed(r01_images.PROBE.run(10_000, 0))


def test_ten_thousand_damaged_messages_hurt_nobody(seed: int) -> None:
    passed(r01_messages.PROBE.run(5_000, seed))


def test_hostile_http2_sessions_hurt_nobody(seed: int) -> None:
    passed(r01_http2.PROBE.run(150, seed))


def test_hostile_http1_requests_hurt_nobody() -> None:
    passed(r01_http1.PROBE.run(300, 0))


def test_damaged_files_end_no_engine() -> None:
    passed(r01_files.PROBE.run(60, 0))


def test_our_own_parsers_refuse_in_their_own_words() -> None:
    passed(r01_parsers.PROBE.run(6_000, 0))


@pytest.mark.parametrize(
    "probe", [r01_images.PROBE, r01_messages.PROBE, r01_parsers.PROBE], ids=lambda probe: str(probe.unit)
)
def test_what_is_broken_on_purpose_is_found(probe: Probe) -> None:
    assert probe.control(0).failed > 0


@pytest.mark.skipif(fuzz.is_installed(), reason="atheris is installed")
def test_long_form_says_that_atheris_is_not_installed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(r01_parsers, "_GUIDED_FROM", 15)
    passed(r01_parsers.PROBE.run(15, 0))
    assert "atheris is not installed" in capsys.readouterr().err


REGRESSIONS = {
    "timeout": (b"/S/", b"1.5.5.5", bytes.fromhex("312e31008000002e312e312e33"), b"\xff" * 9),
    "frames": (bytes([0, 0]) + b"\0\0\0\0\0" * 3,),
    "settings": (b"a = " + b"[" * 2000, b"\xff\xfe"),
}


@pytest.mark.parametrize("name", fuzz.TARGETS)
def test_every_target_accepts_its_good_data_and_what_was_found_before(name: str) -> None:
    target = fuzz.TARGETS[name]
    for data in (*target.corpus(), *REGRESSIONS.get(name, ()), b"", b"\0"):
        target.try_(data)


def test_every_file_that_reads_bytes_of_others_is_a_target() -> None:
    text = Path(fuzz.__file__).read_text()
    for module in ("wire", "messages", "images", "metadata", "config", "access", "external_data", "trace", "ipc"):
        assert f"{module}." in text
