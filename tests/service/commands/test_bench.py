import asyncio
import io
import json
import selectors

import numpy as np
import PIL.Image
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.client import Input, Timings
from service.commands import bench
from service.commands.arrivals import poisson
from service.commands.drive import Outcome, Refusal, Sample, closed_loop, open_loop
from service.commands.load_images import generated
from service.commands.report import percentile, summarise


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop whose time passes only by being waited for, and then at once."""

    def __init__(self):
        super().__init__(_NeverWaits(self))
        self.now = 0.0

    def time(self):
        return self.now


class _NeverWaits(selectors.DefaultSelector):
    def __init__(self, loop):
        super().__init__()
        self.loop = loop

    def select(self, timeout=None):
        self.loop.now += timeout or 0.0
        return super().select(0)


def timings(batch_size=1, **seconds):
    stages = dict.fromkeys(Timings.__struct_fields__, 0.0)
    return Timings(**{**stages, **seconds, "batch_size": batch_size})


ANSWERED = Outcome((timings(),), ())
A, B, C = (Refusal(name, f"{name} happened") for name in "ABC")


def run(drive):
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return sorted(runner.run(drive()))


def one_at_a_time(service_seconds):
    """A server that answers each request after `service_seconds`, one after the other."""
    free_at = 0.0

    async def send(number):
        nonlocal free_at
        now = asyncio.get_running_loop().time()
        free_at = max(now, free_at) + service_seconds
        await asyncio.sleep(free_at - now)
        return ANSWERED

    return send


def test_closed_loop_keeps_each_caller_waiting_for_its_answer():
    samples = run(lambda: closed_loop(one_at_a_time(0.01), callers=4, seconds=1.0))
    assert len(samples) == pytest.approx(103, abs=1)  # 1 s of one after the other, and those under way at its end
    in_the_middle = [sample.finished - sample.sent for sample in samples if 0.1 < sample.sent < 0.9]
    assert in_the_middle == pytest.approx([0.04] * len(in_the_middle))  # three ahead of it


def test_open_loop_sends_when_due_whatever_is_unanswered():
    samples = run(lambda: open_loop(one_at_a_time(10.0), [0.0, 0.1, 0.2]))
    assert [sample.sent for sample in samples] == pytest.approx([0.0, 0.1, 0.2])
    assert [sample.finished for sample in samples] == pytest.approx([10.0, 20.0, 30.0])


def test_open_loop_counts_latency_from_when_a_request_was_due():
    async def stalls(number):
        if number == 0:
            asyncio.get_running_loop().now += 1.0  # the generator itself stands still for a second
        return ANSWERED

    samples = run(lambda: open_loop(stalls, [0.0, 0.1, 0.2]))
    latencies = [sample.finished - sample.due for sample in samples]
    assert latencies == pytest.approx([1.0, 0.9, 0.8])
    assert samples[2].sent - samples[2].due == pytest.approx(0.8)


def test_requests_are_numbered_in_the_order_they_are_sent():
    numbers = []

    async def send(number):
        numbers.append(number)
        await asyncio.sleep(0.1)
        return ANSWERED

    run(lambda: closed_loop(send, callers=3, seconds=0.25))
    assert numbers == list(range(9))


def test_poisson_arrivals_have_their_rate_and_its_spread():
    times = np.array(list(poisson(rate=200, seconds=100)))
    gaps = np.diff(times)
    assert len(times) == pytest.approx(20_000, rel=0.03)
    assert gaps.mean() == pytest.approx(1 / 200, rel=0.03)
    assert gaps.std() == pytest.approx(1 / 200, rel=0.05)  # equal to the mean: exponential; evenly spaced would be 0
    assert (gaps >= 0).all()
    assert times[-1] < 100


def test_poisson_arrivals_are_the_same_for_a_seed():
    assert list(poisson(10, 5, seed=1)) == list(poisson(10, 5, seed=1)) != list(poisson(10, 5, seed=2))


@given(st.lists(st.floats(0, 1e6), min_size=1), st.sampled_from([50, 90, 99, 99.9, 100]))
def test_percentile_is_the_smallest_value_that_enough_do_not_exceed(values, percent):
    found = percentile(values, percent)
    need = percent / 100 * len(values)
    assert found in values
    assert sum(value <= found for value in values) >= need - 1e-9 * len(values)
    assert sum(value < found for value in values) < need + 1e-9 * len(values)


def test_report_leaves_warm_up_out():
    samples = [Sample(due, due, due + (5.0 if due < 1 else 0.1), ANSWERED) for due in (0.5, 1.0, 1.5, 2.5, 3.0)]
    report = summarise(samples, start=1.0, seconds=2.0)
    assert (report.requests, report.images) == (3, 3)
    assert report.latency.max == pytest.approx(0.1)
    assert report.images_per_second == 1.5  # what came within the window: due at 1.0, 1.5 and 2.5


def test_answer_after_the_window_counts_for_latency_and_not_for_throughput():
    report = summarise([Sample(0.0, 0.0, 9.0, ANSWERED), Sample(0.0, 0.0, 0.5, ANSWERED)], 0.0, 1.0)
    assert (report.images, report.images_per_second, report.latency.max) == (2, 1.0, 9.0)


def test_mean_batch_size_is_of_batches_and_not_of_images():
    # Two batches, of 1 and of 3: the mean of the images would be 2.5.
    outcome = Outcome((timings(1), timings(3), timings(3), timings(3)), ())
    assert summarise([Sample(0, 0, 0.5, outcome)], 0, 1).mean_batch_size == pytest.approx(2)


def test_report_tells_errors_by_name_and_stages_by_mean():
    samples = [
        Sample(0.0, 0.1, 0.6, Outcome((timings(queue=0.1, run=0.2, total=0.4),), (A, B))),
        Sample(0.1, 0.1, 0.4, Outcome((timings(queue=0.3, run=0.2, total=0.2),), (Refusal("A", "a second time"),))),
        Sample(0.2, 0.2, 0.3, Outcome((), (C,))),
    ]
    report = summarise(samples, 0.0, 1.0)
    assert report.errors == {"A": 2, "B": 1, "C": 1}
    assert report.messages == {"A": "A happened", "B": "B happened", "C": "C happened"}
    assert (report.requests, report.images) == (3, 2)
    assert report.stage_seconds["queue"] == pytest.approx(0.2)
    assert report.stage_seconds["run"] == pytest.approx(0.2)
    assert report.outside_seconds == pytest.approx(0.1)
    assert report.latency.max == pytest.approx(0.6)  # from due; a request without an answer has no latency
    assert report.sent_late_p99 == pytest.approx(0.1)


def test_report_of_nothing_answered_has_no_latency():
    report = summarise([Sample(0, 0, 1, Outcome((), (A,)))], 0, 1)
    assert (report.latency, report.images, report.mean_batch_size, report.images_per_second) == (None, 0, 0.0, 0.0)


@pytest.mark.parametrize(
    ("taken", "size", "mode"),
    [
        (Input(height=28, width=32, multiple=1, colour="L", fit="stretch"), (32, 28), "L"),
        (Input(height=0, width=0, multiple=8, colour="RGB", fit="pad"), (256, 256), "RGB"),
    ],
)
def test_generated_images_suit_the_models_input_and_differ(taken, size, mode):
    files = generated(taken)
    images = [PIL.Image.open(io.BytesIO(file)) for file in files]
    assert {(image.format, image.size, image.mode) for image in images} == {("PNG", size, mode)}
    assert len(set(files)) == len(files) > 1
    assert generated(taken) == files


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(bench, "_WARM_UP", 0.05)


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("load", [["--concurrency", 4], ["--rate", 200]])
@pytest.mark.parametrize(("model", "task"), [("digits", "ClassifyRequest"), ("pets", "SegmentRequest")])
def test_bench_sends_the_models_kind_of_request_and_prints_the_figures(
    convoy, vision_target, fake_vision, load, model, task
):
    done = convoy("bench", "--model", model, *load, "--seconds", 0.3, "--server", vision_target)
    assert done.returncode == 0
    assert {type(request).__name__ for request in fake_vision.requests} == {task}
    for wanted in ("images/s", "in batches of 4.0", "p50", "p99.9", "max", "queue", "outside the server"):
        assert wanted in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80
    assert "refused" not in done.stdout
    assert model in done.stderr


@pytest.mark.usefixtures("quick")
def test_bench_sends_several_images_of_a_folder_in_turn(convoy, vision_target, fake_vision, tmp_path):
    for value in (1, 2, 3):
        PIL.Image.fromarray(np.full((4, 4), value, np.uint8)).save(tmp_path / f"{value}.png")
    (tmp_path / "notes.txt").write_text("not sent")
    arguments = ("--concurrency", 1, "--batch", 2, "--images", tmp_path, "--seconds", 0.2, "--json")
    done = convoy("bench", "--model", "digits", *arguments, "--server", vision_target)
    figures = json.loads(done.stdout)
    assert figures["images"] == 2 * figures["requests"] > 0
    assert (figures["model"], figures["version"], figures["mean_batch_size"]) == ("digits", 3, 4.0)
    sent = [image.encoded for request in fake_vision.requests for image in request.images]
    files = [(tmp_path / f"{value}.png").read_bytes() for value in (1, 2, 3)]
    assert sent == [files[place % 3] for place in range(len(sent))]


@pytest.mark.usefixtures("quick")
def test_bench_where_everything_failed_counts_the_errors_and_exits_1(convoy, vision_target, fake_vision):
    fake_vision.models[0].model = "full"
    done = convoy("bench", "--model", "full", "--rate", 50, "--seconds", 0.2, "--server", vision_target)
    assert done.returncode == 1
    assert "RESOURCE_EXHAUSTED QUEUE_FULL" in done.stdout
    assert "1024 images wait already" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80
    assert done.stdout.startswith("0.0 images/s")


@pytest.mark.usefixtures("quick")
def test_bench_where_some_images_failed_counts_them_and_exits_0(convoy, vision_target, tmp_path):
    PIL.Image.fromarray(np.zeros((4, 4), np.uint8)).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_text("no image")
    arguments = ("--concurrency", 1, "--batch", 2, "--images", tmp_path, "--seconds", 0.2, "--json")
    done = convoy("bench", "--model", "digits", *arguments, "--server", vision_target)
    figures = json.loads(done.stdout)
    assert done.returncode == 0
    assert figures["errors"] == {"INVALID_ARGUMENT BAD_IMAGE": figures["images"]}
    assert figures["messages"] == {"INVALID_ARGUMENT BAD_IMAGE": "image is not a PNG, want a JPEG or PNG file"}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--model", "nope", "--rate", 1], "it has broken, digits, pets"),
        (["--model", "broken", "--rate", 1], "is not ready: model.onnx is cut short"),
        (["--model", "digits", "--rate", 1, "--images", "/nowhere"], "is not a folder"),
    ],
)
def test_bench_that_cannot_start_is_one_line_and_exit_code_2(convoy, vision_target, arguments, said):
    done = convoy("bench", *arguments, "--server", vision_target)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert said in done.stderr
