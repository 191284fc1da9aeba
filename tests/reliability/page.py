"""docs/reliability.md: what was tried how often, and what was found."""

from collections.abc import Mapping, Sequence

from tests.reliability.history import Line
from tests.reliability.probe import Probe

BEGIN = "<!-- Below: written by `make soak`. -->"
END = "<!-- Above: written by `make soak`. -->"


def replaced(page: str, table: str) -> str:
    """The page with this table between its marks. Raises ValueError if it has none."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"the page has no {BEGIN!r} followed by {END!r}")
    return f"{before}{BEGIN}\n\n{table}\n{END}{after}"


def table(probes: Sequence[Probe], lines: Mapping[str, Line]) -> str:
    """One row for each probe, and below it what failed."""
    rows = [_row(probe, lines.get(probe.key, Line())) for probe in probes]
    failures = [
        f"- {probe.number}: {example}\n" for probe in probes for example in lines.get(probe.key, Line()).tally.examples
    ]
    last = max(lines.values(), key=lambda line: line.day, default=Line())
    head = "| # | promise | trials so far (long form) | broken | worst | control | last run |\n"
    return (
        (f"Last run on: {last.machine}\n\n" if last.machine else "")
        + head
        + "| --- | --- | --- | --- | --- | --- | --- |\n"
        + "".join(rows)
        + ("\nFailures:\n\n" + "".join(failures) if failures else "")
    )


def _row(probe: Probe, line: Line) -> str:
    tally = line.tally
    worst = ", ".join(f"{name} {value:.4g}" for name, value in sorted(tally.worst.items())) or "-"
    control = "-" if not line.chunks else "found" if line.control else "**not found**"
    trials = f"{tally.trials:,} of {probe.wanted:,} {probe.unit}"
    return f"| {probe.number} | {probe.what} | {trials} | {tally.failed} | {worst} | {control} | {line.day or '-'} |\n"
