"""All metrics, as the exposition names them: the reference, the dashboards and the rules are written from it."""

from typing import NamedTuple

from prometheus_client.metrics import MetricWrapperBase

from convoy.service import metrics
from convoy.service.metrics import Supplied

Declared = MetricWrapperBase | Supplied


class Described(NamedTuple):
    """A metric. The name of a histogram is without `_bucket`, `_sum` and `_count`."""

    name: str
    kind: str
    labels: tuple[str, ...]
    text: str


def described(metric: Declared) -> Described:
    """What the exposition says of a metric."""
    if isinstance(metric, Supplied):
        return Described(metric.name, metric.kind, metric.labels, metric.text)
    suffix = "_total" if metric._type == "counter" else ""
    return Described(metric._name + suffix, str(metric._type), tuple(metric._labelnames), metric._documentation)


def table() -> list[Described]:
    """All metrics, in the order of the source; those under Triton's names last."""
    declared = [metric for metric in vars(metrics).values() if isinstance(metric, MetricWrapperBase)]
    supplied = [metric for metric in vars(metrics).values() if isinstance(metric, Supplied)]
    triton = [Described(name, "unknown", ("model", "version"), text) for name, text, _ in metrics._TRITON]
    return [*map(described, declared), *map(described, supplied), *triton]
