"""`convoy top`: what it draws, and how it looks on terminals, in pipes and without a server."""

import io
import json
import signal
import socket
from collections.abc import Iterator

import pytest
from rich.console import Console

from convoy.service.commands.top import looking, screen
from convoy.service.monitor.exposition import parse
from convoy.service.monitor.figures import Figures, Scrape, figures, scraped
from convoy.service.monitor.scrape import NoAnswer, NoMetrics
from tests.service.monitor.pages import RECORDED, answering
from tests.service.terminal import piped, plain, terminal

QUICK = ("--interval", "0.5")


def recorded(second: str = RECORDED[1]) -> Figures:
    return figures(scraped(parse(RECORDED[0]), 10.0), scraped(parse(second), 12.0))


def drawn(shown: Figures | None, problem: str = "", columns: int = 80, lines: int = 24) -> list[str]:
    file = io.StringIO()
    out = Console(file=file, width=columns, color_system=None)
    out.print(screen(shown, problem, "host:8002", columns, lines))
    return [line.rstrip() for line in file.getvalue().splitlines()]


def test_screen_has_rates_versions_stages_and_refusals() -> None:
    lines = drawn(recorded())
    assert lines[:5] == [
        "convoy top  host:8002",
        "67.5 requests/s · 109.5 images/s · 0 in flight · 0 queued · 7.5 failed/s",
        "restarts of engine 0: 0, front end: 0",
        "",
        "model      state  provider  requests/s  p50 ms  p99 ms  batch  queue",
    ]
    letters = next(line for line in lines if line.startswith("letters 1"))
    assert letters.split()[:5] == ["letters", "1", "ready", "CPU", "57.5"]
    assert letters.split()[-2:] == ["2.0", "0"]
    words = [line.split() for line in lines]
    assert ["p50,", "p99", "ms", "letters", "1", "colours", "1"] in words
    assert [row[0] for row in words if row][-12:-2] == [
        "receive", "decode", "preprocess", "queue", "gather", "run", "scatter", "postprocess", "whole", "images",
    ]  # fmt: skip
    assert words[-1] == ["BAD_IMAGE", "letters", "7.5", "20"]


@pytest.mark.parametrize("columns", [60, 80, 200])
def test_screen_fits_into_its_columns(columns: int) -> None:
    long = RECORDED[1].replace('"letters"', f'"{"letters" * 9}"').replace('"colours"', '"grün [bold]"')
    lines = drawn(recorded(long), columns=columns)
    assert max(map(len, lines)) <= columns
    row = next(line for line in lines if line.startswith("lettersle"))
    assert ("…" in row) == (columns < 200)
    assert all(word in row for word in ("ready", "CPU"))
    assert any("grün [bold] 1" in line for line in lines)


def test_problem_stands_above_figures_that_are_older() -> None:
    lines = drawn(recorded(), "no answer from host:8002 (Connection refused)")
    assert lines[1] == "no answer from host:8002 (Connection refused); still asking"
    assert any(line.startswith("letters 1") for line in lines)


def test_before_the_second_scrape_it_says_so() -> None:
    assert drawn(None) == ["convoy top  host:8002  measuring ..."]


def test_refusals_that_do_not_fit_are_left_out_the_rarest_first() -> None:
    more = "".join(f'convoy_refusals_total{{model="letters",reason="R{number}"}} {number}\n' for number in range(1, 30))
    lines = drawn(recorded(RECORDED[1] + more), lines=30)
    assert 20 < len(lines) <= 30
    assert lines[-1].split()[0] > "R20"


class Scripted:
    """A scraper whose answers are known; `waits` is how long was waited before each."""

    address = "host:8002"

    def __init__(self, *answers: float | Exception) -> None:
        self.answers, self.now, self.waits = iter(answers), 0.0, list[float]()

    def clock(self) -> float:
        return self.now

    def wait(self, seconds: float) -> None:
        self.waits.append(seconds)
        self.now += seconds

    def scrape(self) -> Scrape:
        answer = next(self.answers, None)
        if answer is None:
            raise KeyboardInterrupt
        if isinstance(answer, Exception):
            raise answer
        self.now += 0.25
        return scraped(parse(f'convoy_images_total{{model="m",version="1"}} {answer}\n'), self.now)

    def looks(self, forgiving: bool = True) -> Iterator[tuple[float | None, str]]:
        looks = looking(self, 1.0, forgiving=forgiving, clock=self.clock, wait=self.wait)
        try:
            for shown, problem in looks:
                yield None if shown is None else shown.images, problem
        except KeyboardInterrupt:
            return


def test_each_look_is_an_interval_after_the_one_before_whatever_a_scrape_takes() -> None:
    scraper = Scripted(0, 10, 30)
    assert list(scraper.looks()) == [(None, ""), (10, ""), (20, "")]
    assert scraper.waits == [0, 0.75, 0.75, 0.75]


def test_server_that_goes_is_told_and_its_successor_is_measured_from_its_own_start() -> None:
    scraper = Scripted(0, 10, NoAnswer("gone"), NoAnswer("gone"), 1000, 1005)
    assert list(scraper.looks()) == [(None, ""), (10, ""), (10, "gone"), (10, "gone"), (10, ""), (5, "")]


def test_server_that_is_not_there_yet_is_waited_for() -> None:
    assert list(Scripted(NoAnswer("gone"), 0, 1).looks()) == [(None, "gone"), (None, ""), (1, "")]


def test_once_there_is_no_waiting_for_a_server() -> None:
    with pytest.raises(NoAnswer):
        list(Scripted(0, NoAnswer("gone")).looks(forgiving=False))


def test_first_answer_without_metrics_ends_it_a_later_one_does_not() -> None:
    with pytest.raises(NoMetrics):
        list(Scripted(NoMetrics("401")).looks())
    assert list(Scripted(0, NoMetrics("401"), 1, 2).looks())[1] == (None, "401")


def test_once_prints_one_block(convoy) -> None:
    with answering(RECORDED) as (address, _):
        done = convoy("top", "--metrics", address, "--once", *QUICK)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"convoy top  {address}\n")
    assert "letters 1" in done.stdout


def test_json_is_an_object_with_the_same_figures(convoy) -> None:
    with answering(RECORDED) as (address, _):
        done = convoy("top", "--metrics", f"http://{address}/", "--once", "--json", *QUICK)
    (line,) = done.stdout.splitlines()
    shown = json.loads(line)
    assert (shown["metrics"], shown["restarts"]) == (address, {"engine 0": 0, "front end": 0})
    assert [one["model"] for one in shown["versions"]] == ["colours", "letters"]
    assert shown["versions"][1]["batch"] == {"p50": 2, "p99": 3}
    assert shown["refusals"][0]["reason"] == "BAD_IMAGE"


def test_once_without_a_server_is_one_line_and_exit_code_2(convoy) -> None:
    with socket.socket() as taken:  # bound but not listening: nobody else gets the port meanwhile
        taken.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        done = convoy("top", "--metrics", address, "--once")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"convoy top: no answer from {address} (Connection refused)\n"


def test_pipe_gets_a_block_an_interval_and_is_told_when_the_server_ends() -> None:
    with answering(RECORDED) as (address, _):
        running = piped("top", "--metrics", address, *QUICK, COLUMNS="80")
        process, lines = running.__enter__()
        blocks = 0
        while blocks < 2:
            blocks += next(lines).startswith("letters 1")
    try:
        assert any("no answer from" in line and "still asking" in line for line in lines)
        process.send_signal(signal.SIGINT)
        assert "\x1b" not in "".join(lines)
        assert process.wait(20) == 130
    finally:
        running.__exit__(None, None, None)


@pytest.mark.parametrize("columns", [60, 80])
def test_terminal_is_redrawn_in_place_and_given_back(columns: int) -> None:
    with answering(RECORDED) as (address, _), terminal("top", "--metrics", address, *QUICK, columns=columns) as shown:
        shown.read_until("letters 1")
        shown.type("q")
        assert shown.end() == 0
    assert shown.shown.count("\x1b[?1049h") == shown.shown.count("\x1b[?1049l") == 1
    assert "\x1b[H" in shown.shown
    assert shown.widest <= columns


def test_interrupt_and_termination_give_the_terminal_back() -> None:
    with answering(RECORDED) as (address, _):
        for number in (signal.SIGINT, signal.SIGTERM):
            with terminal("top", "--metrics", address, *QUICK) as shown:
                shown.read_until("letters 1")
                shown.process.send_signal(number)
                assert shown.end() == 0
            assert "\x1b[?1049l" in shown.shown


def test_dumb_terminal_gets_blocks_without_escape_codes() -> None:
    with answering(RECORDED) as (address, _), terminal("top", "--metrics", address, *QUICK, TERM="dumb") as shown:
        shown.read_until("BAD_IMAGE")
        shown.process.send_signal(signal.SIGINT)
        assert shown.end() == 130
    assert plain(shown.shown) == shown.shown.replace("\r", "")
