"""What happened between two scrapes: of a recorded server, and of texts with one thing in them."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from convoy.service import metrics
from convoy.service.monitor import figures as monitor
from convoy.service.monitor.exposition import parse
from convoy.service.monitor.figures import Figures, Scrape, Spread, figures, quantile, scraped
from tests.service.monitor.pages import RECORDED


def between(before: str, after: str, seconds: float = 2.0) -> Figures:
    return figures(scraped(parse(before), 10.0), scraped(parse(after), 10.0 + seconds))


@pytest.fixture(scope="module")
def recorded() -> Figures:
    return between(*RECORDED)


def test_names_are_those_of_the_server() -> None:
    assert monitor.STAGES == metrics.STAGES
    assert frozenset(metrics.INFERENCE) == monitor.INFERENCE


def test_rates_are_of_the_time_between(recorded: Figures) -> None:
    assert (recorded.seconds, recorded.requests, recorded.failed) == (2.0, 67.5, 7.5)
    assert recorded.images == (1371 - 1172 + 588 - 568) / 2
    assert (recorded.in_flight, recorded.queued, recorded.missed, recorded.cancelled) == (0, 0, 0, 0)


def test_each_version_has_its_own_figures(recorded: Figures) -> None:
    colours, letters = recorded.versions
    assert [(one.model, one.version, one.state, one.provider) for one in (colours, letters)] == [
        ("colours", "1", "ready", "CPU"),
        ("letters", "1", "ready", "CPU"),
    ]
    assert (colours.requests, letters.requests, letters.images) == (10, 57.5, 99.5)
    assert letters.mean_batch == 1.99
    assert letters.batch == Spread(2, 3)
    assert set(letters.stages) == {"queue", "run"}
    assert all(0 < spread.p50 <= spread.p99 < 1 for spread in letters.stages.values())


def test_refusals_are_by_reason(recorded: Figures) -> None:
    (one,) = recorded.refusals
    assert (one.model, one.reason, one.rate, one.total) == ("letters", "BAD_IMAGE", 7.5, 20)


def test_restarts_are_by_process(recorded: Figures) -> None:
    assert recorded.restarts == {"engine 0": 0, "front end": 0}


def test_server_that_did_nothing_has_no_percentiles() -> None:
    idle = between(RECORDED[1], RECORDED[1])
    assert (idle.requests, idle.images, idle.failed) == (0, 0, 0)
    assert [(one.latency, one.batch, one.mean_batch, one.stages) for one in idle.versions] == [
        (None, None, None, {})
    ] * 2
    assert [one.rate for one in idle.refusals] == [0]


def test_server_that_was_started_again_has_no_negative_rates() -> None:
    assert between(RECORDED[1], RECORDED[0]).images == (1172 + 568) / 2
    assert all(one.requests >= 0 for one in between(RECORDED[1], RECORDED[0]).versions)


def test_information_about_a_model_is_no_request_that_runs_it() -> None:
    line = 'convoy_request_duration_seconds_count{{code="OK",method="{}",model="m",version="1"}} 4\n'
    text = line.format("ModelMetadata") + line.format("ModelInfer") + 'convoy_images_total{model="m",version="1"} 4\n'
    (one,) = between("", text).versions
    assert one.requests == 2


def ready(device: int, value: int, version: str = "1") -> str:
    labels = f'device="{device}",model="m",provider="CUDAExecutionProvider",version="{version}"'
    return f"convoy_model_ready{{{labels}}} {value}\n"


@pytest.mark.parametrize(
    ("text", "state"),
    [
        (ready(0, 1) + ready(1, 1), "ready"),
        (ready(0, 1) + ready(1, 0), "ready on 1 of 2"),
        (ready(0, 0), "not ready"),
        (ready(0, 0).replace("CUDAExecutionProvider", ""), "failed"),
        (ready(0, 0).replace("CUDA", "CPU") + ready(0, 1), "ready"),
        (ready(0, 0) + 'convoy_model_quarantined{model="m",version="1",device="0"} 1\n', "quarantined"),
        ('convoy_images_total{model="m",version="1"} 4\n', "not ready"),
    ],
)
def test_state_is_that_of_all_devices(text: str, state: str) -> None:
    (one,) = between("", text).versions
    assert one.state == state


def test_queue_of_a_model_is_shown_once_beside_its_highest_version() -> None:
    text = ready(0, 1, "9") + ready(0, 1, "10") + 'convoy_queue_depth{model="m",device="0"} 7\n'
    assert [(one.version, one.queued) for one in between("", text).versions] == [("9", None), ("10", 7)]


def test_processes_that_were_replaced_are_counted_by_kind() -> None:
    text = "".join(
        f'convoy_recycled_total{{process="{process}",device="{device}",reason="memory"}} 2\n'
        for process, device in (("engine", 1), ("frontend", 0), ("frontend", 1))
    )
    assert between("", text).recycled == {"engine 1": 2, "front end": 4}


def test_nothing_at_all_is_a_server_without_models() -> None:
    assert between("", "").versions == ()


@pytest.mark.parametrize(
    ("share", "wanted"), [(0.0, 0.0), (0.1, 0.5), (0.2, 1.0), (0.5, 1.5), (0.8, 2.0), (0.9, 3.0), (1.0, 4.0)]
)
def test_quantile_lies_between_the_bounds_of_its_bucket(share: float, wanted: float) -> None:
    assert quantile(share, {1.0: 20, 2.0: 80, 4.0: 100, math.inf: 100}) == pytest.approx(wanted)


def test_quantile_above_the_largest_bound_is_that_bound() -> None:
    assert quantile(0.99, {10.0: 1, math.inf: 100}) == 10.0


@pytest.mark.parametrize("buckets", [{}, {1.0: 0, math.inf: 0}])
def test_no_observations_have_no_quantile(buckets: dict[float, float]) -> None:
    assert quantile(0.5, buckets) is None


@given(st.lists(st.floats(0.0002, 9), min_size=1, max_size=200), st.sampled_from([0.5, 0.9, 0.99]))
def test_quantile_is_in_the_bucket_of_the_true_one(times: list[float], share: float) -> None:
    bounds = [*metrics.SECONDS, math.inf]
    buckets = {bound: float(sum(time <= bound for time in times)) for bound in bounds}
    true = float(np.quantile(times, share, method="inverted_cdf"))
    upper = next(bound for bound in bounds if true <= bound)
    lower = max((bound for bound in bounds if bound < true), default=0.0)
    found = quantile(share, buckets)
    assert found is not None
    assert lower <= found <= upper


def test_buckets_that_were_read_while_they_changed_are_no_failure() -> None:
    assert quantile(0.5, {1.0: 3, 2.0: 2, math.inf: 4}) is not None


def test_many_models_are_read_quickly_enough() -> None:
    """The work grows with the series, not with their square: counted in calls, not in seconds."""
    lines = [
        f'convoy_stage_duration_seconds_bucket{{model="m{model}",version="1",stage="run",le="{bound}"}} 1\n'
        for model in range(200)
        for bound in (0.1, 1, math.inf)
    ]
    scrape = scraped(parse("".join(lines)), 1.0)
    seen = Counting(scrape.metrics)
    figures(Scrape(0.0, {}), Scrape(1.0, seen))
    assert seen.asked < 50


class Counting(dict[str, dict[frozenset[tuple[str, str]], float]]):
    """Counts how often a metric is looked up."""

    asked = 0

    def get(self, *arguments: object) -> object:  # type: ignore[override]
        self.asked += 1
        return super().get(*arguments)  # type: ignore[call-overload]
