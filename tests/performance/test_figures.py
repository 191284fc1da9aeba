"""What the measurements of the report rest on sees what it should see."""

import math
import subprocess
import sys
from pathlib import Path

import numpy as np

from tests.performance import report
from tests.performance.figure import Figure
from tests.performance.loads import settled
from tests.performance.plain.swaps import environment
from tests.performance.report import REMARKS, Row

COUNTING = """
import os, tempfile
os.environ["PROMETHEUS_MULTIPROC_DIR"] = tempfile.mkdtemp()
from pathlib import Path
from convoy.service import metric_files, metrics
metrics.CANCELLED.labels("digits").inc()
metrics.BATCH_SIZE.labels("digits", "1").observe(4)
print(sum(sample.value for family in metric_files.collect(Path(os.environ[metric_files.DIRECTORY]))
          for sample in family.samples))
"""


def test_goodput_that_comes_back_after_a_while_is_settled_then() -> None:
    steady = np.arange(0, 10, 0.01)
    assert settled(steady, 2, 10, 0.4) == 0
    gap = steady[(steady < 2) | (steady >= 3)]
    assert math.isclose(settled(gap, 2, 10, 0.4), 1, abs_tol=0.05)


def test_nothing_is_counted_where_it_is_silenced() -> None:
    def counted(variant: str) -> float:
        command = [sys.executable, "-c", COUNTING]
        return float(
            subprocess.run(command, env=environment(variant), check=True, capture_output=True, text=True).stdout
        )

    assert counted("") > 0
    assert counted("unobserved") == 0


ROWS = [
    Row("P3", "cost of one", "<= 1", "2.0", False, "2026-01-01"),
    Row("P4", "cost of many", "<= 1", "0.5", True, "2026-01-01"),
    Row("P12", "unasked", "", "7", None, "2026-01-01"),
    Row("callers", "many at once", ">= 1", "1.5", True, "2026-01-01"),
]


def test_report_begins_with_what_is_reached_and_ends_with_what_is_not() -> None:
    page = report.page(ROWS, "here", "")
    places = [page.index(text) for text in ("cost of many", "many at once", "unasked", "cost of one")]
    assert places == sorted(places)
    assert page.index("## What Convoy reaches") < page.index("## What falls short") < page.index("cost of one")


def test_report_is_read_as_it_was_written() -> None:
    page = report.page(ROWS, "here", "")
    assert sorted(report.read(page)) == sorted(ROWS)
    assert report.machine_of(page) == "here"
    assert report.page(report.merged(report.read(page), []), "here", page) == page


def test_run_of_some_figures_replaces_their_lines_alone() -> None:
    measured = report.rows([Figure("P3", "cost of one, renamed", "<= 1", "0.9", True)])
    found = report.merged(report.read(report.page(ROWS, "here", "")), measured)
    assert [(row.number, row.measured, row.reached) for row in found] == [
        ("P3", "0.9", True),
        ("P4", "0.5", True),
        ("P12", "7", None),
        ("callers", "1.5", True),
    ]


def test_lines_are_in_the_order_of_their_numbers() -> None:
    numbers = ["callers", "N10", "N8b", "P18", "N8", "P3", "N2"]
    lines = report.merged([], [Row(number, "", "", "", None, "") for number in numbers])
    assert [line.number for line in lines] == ["P3", "P18", "N2", "N8", "N8b", "N10", "callers"]


def test_remarks_stay_below_the_lines() -> None:
    before = report.page(ROWS, "here", f"old lines\n{REMARKS}\n### Why\n\nBecause | of | that | and | this | one |\n")
    after = report.page(report.read(before), "there", before)
    assert after.endswith(f"{REMARKS}\n### Why\n\nBecause | of | that | and | this | one |\n")
    assert after.count(REMARKS) == 1


def test_report_of_the_repository_is_what_its_lines_make() -> None:
    page = (Path(__file__).parents[2] / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    lines = report.merged(report.read(page), [])
    assert report.page(lines, report.machine_of(page), page) == page
    assert {row.number for row in lines if row.reached} <= set(report.MEANINGS)
