"""The figures of all processes for the page: counts since the start, of which it subtracts two looks."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import msgspec
from prometheus_client.core import Metric

from convoy.service import metrics


class Histogram(msgspec.Struct):
    """How many observations are in each bucket, alone: the last bucket has no upper bound."""

    counts: list[int] = []
    sum: float = 0.0


class VersionFigures(msgspec.Struct):
    """Counts of one version of a model.

    requests     by gRPC's code, such as OK
    duration     of requests that were answered, in seconds
    stages       seconds of an image in each stage
    batch_sizes  batches that ran, by their size
    """

    model: str
    version: int
    requests: dict[str, int] = {}
    images: int = 0
    duration: Histogram = msgspec.field(default_factory=Histogram)
    stages: dict[str, Histogram] = {}
    batch_sizes: dict[int, int] = {}


class ModelFigures(msgspec.Struct):
    """Counts of a model that are not of one of its versions. `queue` is how many images wait now."""

    model: str
    refusals: dict[str, int] = {}
    queue: int = 0


class Figures(msgspec.Struct, kw_only=True):
    """Everything that the page draws. `bounds` are the upper bounds of the buckets, in seconds; `at` is the server's
    clock in seconds, for rates; `restarts` are those of processes, by kind."""

    at: float
    bounds: tuple[float, ...] = metrics.SECONDS
    stages: tuple[str, ...] = metrics.STAGES
    in_flight: int = 0
    restarts: dict[str, int] = {}
    models: list[ModelFigures] = []
    versions: list[VersionFigures] = []

    def visible(self, sees: Callable[[str], bool]) -> "Figures":
        """The same without models that a caller may not know of."""
        return msgspec.structs.replace(
            self,
            models=[each for each in self.models if not each.model or sees(each.model)],
            versions=[each for each in self.versions if sees(each.model)],
        )


def read(families: Iterable[Metric], restarts: Mapping[str, int], at: float) -> Figures:
    """Returns the figures in the metrics of all processes."""
    figures = Figures(at=at, restarts=dict(restarts))
    models: dict[str, ModelFigures] = {}
    versions: dict[tuple[str, str], VersionFigures] = {}
    for family in families:
        for sample in family.samples:
            labels = sample.labels
            if sample.name == "convoy_requests_in_flight":
                figures.in_flight += round(sample.value)
            elif sample.name in ("convoy_refusals_total", "convoy_queue_depth"):
                model = labels["model"]
                _read_model(models.setdefault(model, ModelFigures(model)), sample.name, labels, sample.value)
            elif labels.get("model") and labels.get("version"):
                key = (labels["model"], labels["version"])
                if key not in versions:
                    versions[key] = VersionFigures(key[0], int(key[1]))
                _read_version(versions[key], sample.name, labels, sample.value)
    for entry in versions.values():
        for histogram in (entry.duration, *entry.stages.values()):
            histogram.counts = _alone(histogram.counts)
    figures.models = [models[model] for model in sorted(models)]
    figures.versions = [versions[key] for key in sorted(versions)]
    return figures


def _read_model(entry: ModelFigures, name: str, labels: Mapping[str, str], value: float) -> None:
    if name == "convoy_queue_depth":
        entry.queue += round(value)  # of all devices
    else:
        entry.refusals[labels["reason"]] = entry.refusals.get(labels["reason"], 0) + round(value)


def _read_version(entry: VersionFigures, name: str, labels: Mapping[str, str], value: float) -> None:
    match name:
        case "convoy_images_total":
            entry.images += round(value)
        case "convoy_batches_total":
            size = int(labels["batch_size"])
            entry.batch_sizes[size] = entry.batch_sizes.get(size, 0) + round(value)
        case _ if name.startswith("convoy_request_duration_seconds_"):
            if labels["method"] in metrics.INFERENCE:
                if name.endswith("_count"):
                    entry.requests[labels["code"]] = entry.requests.get(labels["code"], 0) + round(value)
                elif labels["code"] == "OK":
                    _add(entry.duration, name, labels, value)
        case _ if name.startswith("convoy_stage_duration_seconds_"):
            _add(entry.stages.setdefault(labels["stage"], Histogram()), name, labels, value)


def _add(histogram: Histogram, name: str, labels: Mapping[str, str], value: float) -> None:
    if name.endswith("_sum"):
        histogram.sum += value
    elif name.endswith("_bucket"):
        if not histogram.counts:
            histogram.counts = [0] * (len(metrics.SECONDS) + 1)
        bound = float(labels["le"])
        place = metrics.SECONDS.index(bound) if bound in metrics.SECONDS else len(metrics.SECONDS)
        histogram.counts[place] += round(value)


def _alone(cumulative: list[int]) -> list[Any]:
    return [count - before for count, before in zip(cumulative, [0, *cumulative], strict=False)]
