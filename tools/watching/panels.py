"""What dashboards consist of, and the panels that several of them show."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

from convoy.service import metrics
from tools.watching.queries import INFERENCE, Matchers, mean, quantile

OK: Matchers = {"code": "=OK"}
MISSED: Matchers = {"objective": "=missed"}
IMAGES_A_SECOND = "suffix: images/s"
BATCHES_A_SECOND = "suffix: batches/s"
MODEL = ("model",)
VERSION = ("model", "version")
NAMED = "{{model}} version {{version}}"

_QUANTILES = (0.5, 0.9, 0.99)


class Query(NamedTuple):
    """An expression, and what its series are called: {{label}} stands for the label's value."""

    expression: str
    legend: str = ""


class Panel(NamedTuple):
    """A panel of a dashboard, `width` of 24 wide.

    good, bad  of a stat: from which value on it is green, or red
    """

    title: str
    text: str
    unit: str
    queries: Sequence[Query]
    kind: Literal["timeseries", "stat", "heatmap", "table"] = "timeseries"
    width: int = 8
    height: int = 8
    stacked: bool = False
    good: float | None = None
    bad: float | None = None


class Row(NamedTuple):
    """Panels under a heading."""

    title: str
    panels: Sequence[Panel]


class Dashboard(NamedTuple):
    """A page. The `uid` is part of its address and never changes."""

    uid: str
    title: str
    text: str
    rows: Sequence[Row]

    @property
    def file(self) -> str:
        return f"{self.uid.removeprefix('convoy-')}.json"

    @property
    def panels(self) -> list[Panel]:
        return [panel for row in self.rows for panel in row.panels]


def stat(
    title: str, text: str, unit: str, expression: str, good: float | None = None, bad: float | None = None
) -> Panel:
    """One number."""
    return Panel(title, text, unit, [Query(expression)], "stat", width=4, height=4, good=good, bad=bad)


def or_zero(expression: str) -> str:
    """An expression whose series may be missing as long as nothing has happened."""
    return f"({expression} or vector(0))"


def latency(by: Sequence[str], legend: str) -> list[Query]:
    """Quantiles of answered requests."""
    return [
        Query(quantile(share, metrics.REQUEST_DURATION, by, {**INFERENCE, **OK}), f"p{100 * share:g}{legend}")
        for share in _QUANTILES
    ]


def stages(of: Sequence[str] = metrics.STAGES) -> list[Query]:
    """The mean of each stage; one query for each, so that a stack is in the order of a request's way."""
    return [Query(mean(metrics.STAGE_DURATION, matchers={"stage": f"={stage}"}), stage) for stage in of]
