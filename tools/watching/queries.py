"""PromQL over the objects of `service.metrics`: text follows a metric that is renamed; a label it lacks is an error."""

from collections.abc import Sequence

from convoy.service import metrics
from convoy.service.frontend.status import Code
from tools.watching.table import Declared, described

# Codes of requests that failed through no fault of their caller. RESOURCE_EXHAUSTED is not among them: a refusal keeps
# the others in time, comes with a hint, is sent again by clients, and is what a quota answers. Alerts on saturation are
# for refusals. Whoever promises that none is refused adds it here.
FAULTS = (Code.INTERNAL, Code.UNAVAILABLE, Code.DATA_LOSS, Code.UNKNOWN)

# Labels that Prometheus adds.
_TARGET = ("job", "instance")
# Those that the variables of a dashboard choose.
_CHOSEN = ("job", "instance", "model", "version")

INFERENCE = {"method": f"=~{'|'.join(metrics.INFERENCE)}"}
FAULTY = {"code": f"=~{'|'.join(code.name for code in FAULTS)}"}

Matchers = dict[str, str]  # label -> operator and value, such as `=OK`, `=~a|b`, `!=OK`


def labels_of(metric: Declared) -> tuple[str, ...]:
    """All labels of a metric's series in Prometheus."""
    return (*_TARGET, *described(metric).labels)


def series(metric: Declared, part: str = "", matchers: Matchers | None = None, *, chosen: bool = False) -> str:
    """A selector. `part` is that of a histogram: bucket, sum, count; `chosen` adds the variables of a dashboard.

    Raises ValueError for a label that the metric does not have.
    """
    name, kind, _, _ = described(metric)
    if (kind == "histogram") != bool(part):
        raise ValueError(f"{name} is a {kind}, want a part exactly of histograms")
    labels = labels_of(metric)
    check(metric, matchers or {})
    # Without a model, `version` is that of something else.
    choosing = _CHOSEN if "model" in labels else _TARGET
    variables = [label for label in choosing if chosen and label in labels and label not in (matchers or {})]
    words = [f'{label}=~"${label}"' for label in variables]
    words += [_matcher(label, text) for label, text in (matchers or {}).items()]
    full = f"{name}_{part}" if part else name
    return f"{full}{{{', '.join(words)}}}" if words else full


def check(metric: Declared, labels: Sequence[str] | Matchers) -> None:
    """Raises ValueError for a label that a metric does not have."""
    if unknown := [label for label in labels if label not in labels_of(metric)]:
        raise ValueError(f"{described(metric).name} has no label {unknown[0]!r}, want one of {labels_of(metric)}")


def _matcher(label: str, text: str) -> str:
    operator = text[: 2 if text[:2] in ("=~", "!~", "!=") else 1]
    return f'{label}{operator}"{text[len(operator) :]}"'


def summed(expression: str, by: Sequence[str] = (), of: str = "sum") -> str:
    """An aggregation over all labels but `by`."""
    return f"{of} by ({', '.join(by)}) ({expression})" if by else f"{of}({expression})"


def rate(
    metric: Declared,
    by: Sequence[str] = (),
    window: str = "$__rate_interval",
    part: str = "",
    matchers: Matchers | None = None,
) -> str:
    """A rate a second, summed by labels; with the variables of a dashboard if the window is one."""
    check(metric, [label for label in by if label != "le"])
    selector = series(metric, part, matchers, chosen=window.startswith("$"))
    return summed(f"rate({selector}[{window}])", by)


def quantile(share: float, metric: Declared, by: Sequence[str] = (), matchers: Matchers | None = None) -> str:
    """A quantile of a histogram over the rate interval of a dashboard."""
    return f"histogram_quantile({share:g}, {rate(metric, ['le', *by], part='bucket', matchers=matchers)})"


def mean(metric: Declared, by: Sequence[str] = (), matchers: Matchers | None = None) -> str:
    """The mean of a histogram over the rate interval of a dashboard."""
    total, times = (rate(metric, by, part=part, matchers=matchers) for part in ("sum", "count"))
    return f"{total} / {times}"


def level(metric: Declared, by: Sequence[str] = (), of: str = "sum", matchers: Matchers | None = None) -> str:
    """A gauge now, aggregated by labels, with the variables of a dashboard."""
    check(metric, by)
    return summed(series(metric, matchers=matchers, chosen=True), by, of)


def grown(
    metric: Declared,
    by: Sequence[str] = (),
    window: str = "$__range",
    part: str = "",
    matchers: Matchers | None = None,
) -> str:
    """How much a counter has grown, summed by labels; with the variables of a dashboard if the window is one."""
    check(metric, [label for label in by if label != "le"])
    selector = series(metric, part, matchers, chosen=window.startswith("$"))
    return summed(f"increase({selector}[{window}])", by)
