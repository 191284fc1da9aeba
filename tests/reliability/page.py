"""docs/reliability.md: what was tried how often, and what was found."""

import re
from collections.abc import Mapping, Sequence

from tests.reliability.history import Line
from tests.reliability.probe import Probe, Tally

BEGIN = "<!-- Below: written by `make soak`. -->"
END = "<!-- Above: written by `make soak`. -->"


def replaced(page: str, table: str) -> str:
    """The page with this table between its marks. Raises ValueError if it has none."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"the page has no {BEGIN!r} followed by {END!r}")
    return f"{before}{BEGIN}\n\n{table}\n{END}{after}"


def table(probes: Sequence[Probe], lines: Mapping[str, Line], before: str = "") -> str:
    """One row for each probe, and below it what failed. Of a probe without totals, what the page said `before` stays:
    another machine may have tried it."""
    rows, failures = [], []
    for probe in probes:
        line = lines.get(probe.key)
        if line is None and (kept := re.search(rf"^\| {re.escape(_promise(probe))} \|.*\n", before, re.MULTILINE)):
            rows.append(kept[0])
            if kept[0].split(" | ")[3] != "0":
                failures += re.findall(rf"^- {probe.number}: .*\n", before, re.MULTILINE)
        else:
            line = line or Line()
            rows.append(_row(probe, line))
            failures += [f"- {probe.number}: {example}\n" for example in line.tally.examples]
    last = max(lines.values(), key=lambda line: line.day, default=Line())
    head = "| # | promise | trials so far (long form) | broken | worst | control | last run |\n"
    return (
        (
            f"Last run on: {last.machine}\n\n"
            if last.machine
            else "".join(re.findall(r"^Last run on: .*\n\n", before, re.M))
        )
        + head
        + "| --- | --- | --- | --- | --- | --- | --- |\n"
        + "".join(rows)
        + ("\nFailures:\n\n" + "".join(dict.fromkeys(failures)) if failures else "")
    )


def lines(probes: Sequence[Probe], page: str) -> dict[str, Line]:
    """What the page says of each probe that it has a row for: what another machine has tried. Figures are as exact as
    they are written, and the next seed is one that no chunk can have had."""
    found = {}
    for probe in probes:
        trials = rf"([\d,]+) of [\d,]+ {re.escape(probe.unit)}"
        row = re.search(
            rf"^\| {re.escape(_promise(probe))} \| {trials} \| (\d+) \| (.*) \| (.*) \| (.*) \|$", page, re.M
        )
        if row is None or row[5] == "-":
            continue
        count, failed, worst, control, day = row.groups()
        tally = Tally(
            int(count.replace(",", "")),
            int(failed),
            tuple(re.findall(rf"^- {probe.number}: (.*)$", page, re.MULTILINE)) if failed != "0" else (),
            {name: float(value) for name, value in re.findall(r"(\S.*?) (-?[\d.e+-]+)(?:, |$)", worst)},
        )
        found[probe.key] = Line(tally, -(-tally.trials // probe.chunk), control == "found", day)
    return found


def _promise(probe: Probe) -> str:
    return f"{probe.number} | {probe.what}"


def _row(probe: Probe, line: Line) -> str:
    tally = line.tally
    worst = ", ".join(f"{name} {value:.4g}" for name, value in sorted(tally.worst.items())) or "-"
    control = "-" if not line.chunks else "found" if line.control else "**not found**"
    trials = f"{tally.trials:,} of {probe.wanted:,} {probe.unit}"
    return f"| {_promise(probe)} | {trials} | {tally.failed} | {worst} | {control} | {line.day or '-'} |\n"
