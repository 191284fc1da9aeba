import PIL.Image
import pytest

from convoy.service.bench import findings
from convoy.service.bench.calls import Outcome, Refusal
from convoy.service.bench.findings import Recorder, Sample
from convoy.service.bench.plan import Closed, ImageModel, Open, Piece, Plan, describe, edges
from convoy.service.bench.report import summarise
from convoy.service.commands import charts
from tests.service.bench.clocks import ANSWERED, timings

A, B, C = (Refusal(name, f"{name} happened") for name in "ABC")


def plan(load, models=("lenet5",), processes=1):
    asked = tuple(
        ImageModel(model=name, version="1", weight=1, task="classification", height=8, width=8, colour="L")
        for name in models
    )
    return Plan(
        server="nowhere:1",
        models=asked,
        load=load,
        warm_up=1.0,
        batch=1,
        deadline=1.0,
        seed=0,
        processes=processes,
        folder=None,
        sizes=(),
    )


def steady(seconds=1.0):
    return plan(Open((Piece(seconds, 10, 10),), "poisson", 1.0))


def found(of_plan, samples, late=()):
    recorder = Recorder(len(of_plan.models), edges(of_plan.load.pieces()), of_plan.warm_up)
    for sample in samples:
        recorder.record(sample)
        recorder.late(sample.due, sample.sent - sample.due)
    recorder.findings.cores.append(0.5)
    return recorder.findings


def report_of(of_plan, samples):
    return summarise(of_plan, found(of_plan, samples))


def test_warm_up_is_left_out():
    samples = [Sample(due, due, due + (5.0 if due < 1 else 0.1), ANSWERED) for due in (0.5, 1.0, 1.5, 2.5, 3.0)]
    report = report_of(steady(2.0), samples)
    assert (report.all.requests, report.all.images) == (3, 3)
    assert report.all.latency.max == pytest.approx(0.1, rel=1e-3)
    assert report.all.images_per_second == 1.5  # what came within the window: due at 1.0, 1.5 and 2.5


def test_answer_after_the_window_counts_for_latency_and_not_for_throughput():
    report = report_of(steady(), [Sample(1.0, 1.0, 10.0, ANSWERED), Sample(1.0, 1.0, 1.5, ANSWERED)])
    assert (report.all.images, report.all.images_per_second) == (2, 1.0)
    assert report.all.latency.max == pytest.approx(9.0, rel=1e-3)


def test_mean_batch_size_is_of_batches_and_not_of_images():
    # Two batches, of 1 and of 3: the mean of the images would be 2.5.
    outcome = Outcome(0, 4, (timings(1), timings(3), timings(3), timings(3)), ())
    assert report_of(steady(), [Sample(1, 1, 1.5, outcome)]).all.mean_batch_size == pytest.approx(2)


def test_errors_are_told_by_name_and_stages_by_mean():
    samples = [
        Sample(1.0, 1.1, 1.6, Outcome(0, 1, (timings(queue=0.1, run=0.2, total=0.4),), (A, B))),
        Sample(1.1, 1.1, 1.4, Outcome(0, 1, (timings(queue=0.3, run=0.2, total=0.2),), (Refusal("A", "again"),))),
        Sample(1.2, 1.2, 1.3, Outcome(0, 0, (), (C,))),
    ]
    report = report_of(steady(), samples)
    assert report.all.errors == {"A": 2, "B": 1, "C": 1}
    assert report.all.messages == {"A": "A happened", "B": "B happened", "C": "C happened"}
    assert (report.all.requests, report.all.images) == (3, 2)
    assert report.all.stage_seconds["queue"] == pytest.approx(0.2)
    assert report.all.stage_seconds["run"] == pytest.approx(0.2)
    assert report.all.outside_seconds == pytest.approx(0.1)
    assert report.all.latency.max == pytest.approx(0.6, rel=1e-3)  # a request without an answer has no latency
    assert report.since_sent.max == pytest.approx(0.5, rel=1e-3)
    assert report.generator.sent_late_max == pytest.approx(0.1, rel=1e-3)


def test_nothing_answered_has_no_latency():
    report = report_of(steady(), [Sample(1, 1, 2, Outcome(0, 0, (), (A,)))])
    assert (report.all.latency, report.since_sent, report.all.images, report.all.mean_batch_size) == (None, None, 0, 0)


def test_model_step_and_interval_have_their_own_figures():
    of_plan = plan(Open((Piece(2, 1, 1), Piece(1, 5, 5)), "constant", 1.0), ("lenet5", "unet"))
    slow = Outcome(1, 1, (), ())
    samples = [Sample(1.5, 1.5, 1.6, ANSWERED), Sample(2.5, 2.5, 2.7, slow), Sample(3.5, 3.5, 3.9, slow)]
    report = report_of(of_plan, samples)
    assert [(each.model, each.figures.requests) for each in report.models] == [("lenet5", 1), ("unet", 2)]
    assert [step.requests for step in report.steps] == [2, 1]
    assert [step.latency.max for step in report.steps] == pytest.approx([0.2, 0.4], rel=1e-3)
    assert {round(each.at, 2): each.requests for each in report.timeline if each.requests} == {0.5: 1, 1.5: 1, 2.5: 1}
    assert sum(each.seconds for each in report.timeline) == pytest.approx(3)


def test_findings_of_several_processes_add_up_to_those_of_one():
    outcomes = [Outcome(number % 2, 1, (timings(1 + number % 3, queue=number / 100),), (A,)) for number in range(60)]
    samples = [
        Sample(1 + number / 20, 1 + number / 19, 1 + number / 15, outcome) for number, outcome in enumerate(outcomes)
    ]
    of_plan = plan(Open((Piece(1, 10, 20), Piece(2, 30, 30)), "poisson", 1.0), ("lenet5", "unet"), processes=3)
    parts = [findings.decode(findings.encode(found(of_plan, samples[share::3]))) for share in range(3)]
    for part in parts[1:]:
        parts[0].add(part)
    parts[0].cores = [0.5]
    merged, one = summarise(of_plan, parts[0]), report_of(of_plan, samples)
    assert merged.histogram == one.histogram
    assert merged.all.requests == one.all.requests == 60
    assert merged.timeline == one.timeline
    assert merged.all.stage_seconds == pytest.approx(one.all.stage_seconds)
    assert merged.all.errors == one.all.errors


def test_generator_that_was_late_or_busy_is_told_and_one_that_was_not_is_not():
    of_plan = steady()
    prompt = found(of_plan, [Sample(1.0, 1.001, 1.1, ANSWERED)])
    assert summarise(of_plan, prompt).warnings == []
    late = found(of_plan, [Sample(1.0, 1.02, 1.1, ANSWERED)])
    assert "20.0 ms late" in summarise(of_plan, late).warnings[0]
    prompt.cores = [0.3, 0.97]
    assert "busy for 97%" in summarise(of_plan, prompt).warnings[0]


@pytest.mark.parametrize("seconds", [0.1, 0.35, 1, 7, 10, 30, 61, 600, 86_400])
def test_intervals_are_about_sixty_at_most_and_cover_the_whole_time(seconds):
    cuts = edges((Piece(seconds, 1, 1),))
    assert (cuts[0], cuts[-1]) == (0, pytest.approx(seconds))
    assert 20 <= len(cuts) - 1 <= 62


def test_step_ends_an_interval():
    cuts = edges((Piece(3.3, 1, 1), Piece(0.5, 2, 2), Piece(6.2, 1, 1)))
    for end in (3.3, 3.8, 10.0):
        assert min(abs(cut - end) for cut in cuts) < 1e-9


@pytest.mark.parametrize(
    ("load", "words"),
    [
        (Closed(4, 1.0), "4 callers"),
        (Open((Piece(1, 10, 10),), "poisson", 2.0), "10 requests a second, poisson"),
        (Open((Piece(1, 10, 500),), "constant", 2.0), "10 to 500 requests a second, constant"),
        (Open((Piece(1, 1, 1), Piece(1, 2, 2)), "gamma", 2.0), "1, 2 requests a second, gamma 2"),
    ],
)
def test_load_is_told_describe(load, words):
    assert describe(load) == words


@pytest.mark.parametrize("outcome", [ANSWERED, Outcome(0, 0, (), (A,))])
def test_picture_is_drawn_whether_or_not_anything_was_answered(tmp_path, outcome):
    charts.draw_load(report_of(steady(), [Sample(1.0, 1.0, 1.2, outcome)]), tmp_path / "load.png")
    with PIL.Image.open(tmp_path / "load.png") as drawn:
        assert (drawn.format, drawn.size) == ("PNG", (1000, 900))
