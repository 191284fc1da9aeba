"""The frame that runs the probes: what it counts, keeps and writes."""

from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.reliability import __main__ as soaking
from tests.reliability import history, page
from tests.reliability.history import Line
from tests.reliability.probe import Count, Probe, Tally

EMPTY = f"# Page\n\n{page.BEGIN}\n{page.END}\n\nThe end.\n"


def a_probe(number: str = "R99", wanted: int = 1000, *, broken_every: int = 0, blind: bool = False) -> Probe:
    def run(trials: int, seed: int) -> Tally:
        count = Count()
        for trial in range(trials):
            if broken_every and trial % broken_every == 0:
                count.bad(f"trial {trial} of seed {seed}")
            else:
                count.good()
        count.see("seed", seed)
        return count.tally()

    return Probe(number, "It holds.", "trials", wanted, 10, run, lambda seed: Tally(1, 0 if blind else 1))


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(soaking, "TOTALS", tmp_path / "cache" / "totals.json")
    # A millisecond passes between two looks at the clock, however long a chunk takes.
    ticks = count()
    monkeypatch.setattr(soaking, "time", SimpleNamespace(monotonic=lambda: next(ticks) / 1000))
    file = tmp_path / "page.md"
    file.write_text(EMPTY)
    return file


def soak(monkeypatch: pytest.MonkeyPatch, file: Path, *probes: Probe, seconds: float = 0.05) -> int:
    monkeypatch.setattr(soaking, "PROBES", probes)
    return soaking.soak(probes, seconds, file)


def test_totals_add_up_over_runs_and_each_chunk_has_a_seed_of_its_own(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    probe = a_probe()
    assert soak(monkeypatch, file, probe) == 0
    first = history.load(soaking.TOTALS)[probe.key]
    assert first.tally.trials == 10 * first.chunks
    assert first.control
    soak(monkeypatch, file, probe)
    second = history.load(soaking.TOTALS)[probe.key]
    assert second.chunks > first.chunks
    assert second.tally.worst["seed"] == second.chunks - 1


def test_probes_progress_alike_whatever_they_want(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    short, long = a_probe("R1", wanted=100), a_probe("R2", wanted=1000)
    soak(monkeypatch, file, short, long, seconds=0.3)
    lines = history.load(soaking.TOTALS)
    ratio = lines[long.key].chunks / lines[short.key].chunks
    assert 5 < ratio < 12, ratio


def test_failures_are_counted_and_described_on_the_page(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert soak(monkeypatch, file, a_probe(broken_every=5)) > 0
    text = file.read_text()
    assert "- R99: trial 5 of seed 0" in text
    assert text.endswith(f"{page.END}\n\nThe end.\n")


def test_control_that_is_not_found_is_a_failure(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert soak(monkeypatch, file, a_probe(blind=True)) == 1
    assert "**not found**" in file.read_text()


def test_lines_that_were_not_tried_here_stay_on_the_page(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere, here = a_probe("R98", broken_every=5), a_probe("R99")
    soak(monkeypatch, file, elsewhere, here)
    soaking.TOTALS.unlink()  # another machine has no totals
    said = rows(file, "R98")
    assert len(said) > 1  # the row, and what failed
    assert soaking.soak([here], 0.01, file) == 0
    assert rows(file, "R98") == said
    assert len(rows(file, "R99")) == 1


def test_another_machine_goes_on_where_the_page_ends(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    probe, broken = a_probe(wanted=10_000), a_probe("R98", broken_every=5)
    soak(monkeypatch, file, probe, broken)
    before = soaking.totals(file)
    soaking.TOTALS.unlink()
    assert {key: line._replace(machine="") for key, line in before.items()} == soaking.totals(file)
    soak(monkeypatch, file, probe, broken)
    after = soaking.totals(file)
    for key, line in before.items():
        assert after[key].chunks > line.chunks
        assert after[key].tally.trials == 10 * after[key].chunks
        assert after[key].tally.worst["seed"] == after[key].chunks - 1
        assert after[key].tally.examples[: len(line.tally.examples)] == line.tally.examples


def test_fresh_run_forgets_what_the_page_says(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    soak(monkeypatch, file, a_probe("R98"), a_probe("R99"))
    monkeypatch.setattr("sys.argv", ["soak", str(file), "--only", "R99", "--fresh", "--again"])
    with pytest.raises(SystemExit):
        soaking.main()
    lines = soaking.totals(file)
    assert lines["R99 trials"] == Line()
    assert lines["R98 trials"].chunks


def test_runs_at_once_lose_no_line_of_each_other(tmp_path: Path) -> None:
    totals = tmp_path / "totals.json"

    def add(name: int) -> None:
        for chunk in range(20):
            history.update(totals, {f"R{name}": Line(chunks=chunk + 1)})

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(add, range(4)))
    assert {key: line.chunks for key, line in history.load(totals).items()} == {f"R{name}": 20 for name in range(4)}


def rows(file: Path, number: str) -> list[str]:
    return [line for line in file.read_text().splitlines() if number in line]


def test_page_without_marks_is_an_error() -> None:
    with pytest.raises(ValueError, match="has no"):
        page.replaced("# Page\n", "table")


def test_tallies_keep_the_first_failures_and_the_worst_figures() -> None:
    one = Tally(3, 1, ("a",), {"p99": 1.0, "rss": 5.0})
    other = Tally(4, 30, tuple(map(str, range(30))), {"p99": 2.0})
    both = one + other
    assert (both.trials, both.failed, len(both.examples)) == (7, 31, 20)
    assert both.examples[0] == "a"
    assert both.worst == {"p99": 2.0, "rss": 5.0}


def test_history_survives_being_written_and_read(tmp_path: Path) -> None:
    line = Line(Tally(3, 1, ("a",), {"x": 1.5}), 2, True, "2026-01-01", "a machine")
    history.save(tmp_path / "totals.json", {"R1 images": line})
    assert history.load(tmp_path / "totals.json") == {"R1 images": line}
    assert history.load(tmp_path / "none.json") == {}
