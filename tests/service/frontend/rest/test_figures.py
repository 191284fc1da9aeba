"""The figures of the page, read from the metrics of all processes."""

import math
from pathlib import Path

import pytest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

from convoy.service import metric_files, metrics
from convoy.service.frontend.rest import figures


def histogram(name: str, labels: dict[str, str], counts: dict[float, int]) -> Metric:
    """A family with one series; `counts` are of each bucket alone, by its bound."""
    family = HistogramMetricFamily(name, "", labels=list(labels))
    total, buckets = 0, []
    for bound in (*metrics.SECONDS, math.inf):
        total += counts.get(bound, 0)
        buckets.append(("+Inf" if math.isinf(bound) else str(bound), float(total)))
    family.add_metric(list(labels.values()), buckets, sum_value=1.5)
    return family


def counter(name: str, *series: tuple[dict[str, str], float]) -> Metric:
    family = CounterMetricFamily(name, "", labels=list(series[0][0]))
    for labels, value in series:
        family.add_metric(list(labels.values()), value)
    return family


OF_VERSION = {"model": "digits", "version": "3"}


def test_figures_of_a_version() -> None:
    found = figures.read(
        [
            counter("convoy_images", (OF_VERSION, 7)),
            counter(
                "convoy_batches",
                ({**OF_VERSION, "batch_size": "1", "device": "0"}, 2),
                ({**OF_VERSION, "batch_size": "1", "device": "1"}, 1),
                ({**OF_VERSION, "batch_size": "4", "device": "0"}, 1),
            ),
            histogram(
                "convoy_request_duration_seconds",
                {**OF_VERSION, "method": "Classify", "code": "OK"},
                {0.001: 3, 0.01: 2, math.inf: 1},
            ),
            histogram(
                "convoy_request_duration_seconds", {**OF_VERSION, "method": "Segment", "code": "INTERNAL"}, {5: 2}
            ),
            histogram("convoy_request_duration_seconds", {**OF_VERSION, "method": "ModelReady", "code": "OK"}, {5: 9}),
            histogram("convoy_stage_duration_seconds", {**OF_VERSION, "stage": "run"}, {0.0001: 7}),
        ],
        {"engine": 1},
        12.5,
    )
    (version,) = found.versions
    assert (version.model, version.version, version.images) == ("digits", 3, 7)
    assert version.requests == {"OK": 6, "INTERNAL": 2}
    assert version.batch_sizes == {1: 3, 4: 1}
    assert version.duration.counts[metrics.SECONDS.index(0.001)] == 3
    assert version.duration.counts[metrics.SECONDS.index(0.01)] == 2
    assert version.duration.counts[-1] == 1
    assert sum(version.duration.counts) == 6
    assert version.stages["run"].counts[0] == 7
    assert (found.restarts, found.at) == ({"engine": 1}, 12.5)


def test_figures_of_models_and_of_the_server() -> None:
    queue = GaugeMetricFamily("convoy_queue_depth", "", labels=["model", "device"])
    queue.add_metric(["digits", "0"], 2)
    queue.add_metric(["digits", "1"], 3)
    flight = GaugeMetricFamily("convoy_requests_in_flight", "", labels=["pid"])
    flight.add_metric(["1"], 4)
    flight.add_metric(["2"], 1)
    refusals = counter(
        "convoy_refusals",
        ({"model": "digits", "reason": "QUEUE_FULL"}, 5),
        ({"model": "", "reason": "UNKNOWN_MODEL"}, 1),
    )
    found = figures.read([queue, flight, refusals], {}, 0)
    assert found.in_flight == 5
    by_model = {each.model: each for each in found.models}
    assert by_model["digits"].queue == 5
    assert by_model["digits"].refusals == {"QUEUE_FULL": 5}
    assert by_model[""].refusals == {"UNKNOWN_MODEL": 1}


def test_callers_see_only_their_models() -> None:
    found = figures.read(
        [
            counter("convoy_images", (OF_VERSION, 7), ({"model": "secret", "version": "1"}, 1)),
            counter("convoy_refusals", ({"model": "secret", "reason": "BAD_IMAGE"}, 5)),
        ],
        {},
        0,
    )
    seen = found.visible(lambda model: model == "digits")
    assert [each.model for each in seen.versions] == ["digits"]
    assert seen.models == []
    assert len(found.versions) == 2


def test_restarts_are_read_back(tmp_path: Path) -> None:
    assert metric_files.restarts(tmp_path) == {}
    metric_files.note_restarts(tmp_path, {"engine": 2, "frontend": 0})
    metric_files.note_restarts(tmp_path, {"engine": 3, "frontend": 1})
    assert metric_files.restarts(tmp_path) == {"engine": 3, "frontend": 1}
    assert list(metric_files.collect(tmp_path)) == []


def test_restarts_that_cannot_be_written_stop_nobody(tmp_path: Path) -> None:
    metric_files.note_restarts(tmp_path / "gone", {"engine": 1})
    with pytest.raises(FileNotFoundError):
        (tmp_path / "gone" / "restarts.json").read_bytes()
