"""What processes count adds up, whether they ended well or not, and reads back as statistics."""

import asyncio
import importlib.metadata
import os
import platform
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import onnxruntime
import pytest
from prometheus_client import REGISTRY, generate_latest
from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families

from convoy.service import metrics
from convoy.service.metric_files import DIRECTORY, collect, forget_process
from convoy.service.metrics import Duration, Running, registry, statistics

# A process counts what its arguments say, tells that it has, and ends when its input does.
COUNTING = """
import sys
from convoy.service import metrics
batches, depth, moment = int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
for _ in range(batches):
    metrics.BATCH_SIZE.labels("digits", "1").observe(4)
    metrics.BATCHES.labels("digits", "1", 4, 0).inc()
    metrics.BATCH_STAGE.labels("digits", "1", 4, "run").inc(0.25)
    metrics.STAGE_DURATION.labels("digits", "1", "queue").observe(0.5)
    metrics.REQUEST_DURATION.labels("digits", "1", "Classify", "OK").observe(2)
metrics.REQUEST_DURATION.labels("digits", "1", "Classify", "INVALID_ARGUMENT").observe(0.125)
metrics.QUEUE_DEPTH.labels("digits", 0).set(depth)
metrics.MODEL_READY.labels("digits", "1", "CPUExecutionProvider", 0).set(1)
metrics.LAST_INFERENCE.labels("digits", "1").set(moment)
print("counted", flush=True)
sys.stdin.read()
"""


Start = Callable[[int, int, float], subprocess.Popen[str]]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start a process that has counted when this returns."""
    started: list[subprocess.Popen[str]] = []

    def begin(batches: int, depth: int, moment: float) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", COUNTING, str(batches), str(depth), str(moment)],
            env={**os.environ, DIRECTORY: str(tmp_path)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "counted\n"
        return process

    yield begin
    for process in started:
        process.kill()
        process.communicate()


def value(families: list[Metric], sample: str, **labels: str) -> float | None:
    """The one sample of that name and labels; None where there is none."""
    found = [
        one.value
        for family in families
        for one in family.samples
        if one.name == sample and labels.items() <= one.labels.items()
    ]
    assert len(found) <= 1, found
    return found[0] if found else None


def test_sums_are_exact_over_processes_that_live_ended_and_were_killed(tmp_path: Path, start: Start) -> None:
    living, ended, killed = start(3, 1, 100.0), start(5, 2, 300.0), start(7, 4, 200.0)
    assert value(collect(tmp_path), "convoy_queue_depth", model="digits") == 7
    ended.communicate("")
    assert ended.returncode == 0
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    forget_process(ended.pid, tmp_path)
    forget_process(killed.pid, tmp_path)
    families = collect(tmp_path)
    assert value(families, "convoy_batch_size_count", model="digits") == 15
    assert value(families, "convoy_batch_size_sum", model="digits") == 60
    assert value(families, "convoy_batches_total", batch_size="4") == 15
    assert value(families, "convoy_batch_stage_seconds_total", stage="run") == 15 * 0.25
    assert value(families, "convoy_request_duration_seconds_count", code="OK") == 15
    assert value(families, "convoy_request_duration_seconds_count", code="INVALID_ARGUMENT") == 3
    # What was counted stays; what was the case then is so no longer.
    assert value(families, "convoy_queue_depth", model="digits") == 1
    assert value(families, "convoy_last_inference_timestamp_seconds", model="digits") == 300.0
    living.communicate("")
    forget_process(living.pid, tmp_path)
    families = collect(tmp_path)
    assert value(families, "convoy_queue_depth", model="digits") is None
    assert value(families, "convoy_model_ready", model="digits") is None
    assert value(families, "convoy_batches_total", batch_size="4") == 15


def test_statistics_are_the_metrics_read_back(tmp_path: Path, start: Start) -> None:
    start(3, 0, 100.0)
    start(4, 0, 50.0)
    (key, entry), *others = statistics(collect(tmp_path)).items()
    assert not others
    assert key == ("digits", "1")
    assert entry.success == Duration(7, 14.0)
    assert entry.fail == Duration(2, 0.25)
    assert entry.stages["queue"] == Duration(7, 3.5)
    assert entry.stages["decode"] == Duration(0, 0.0)
    assert (entry.images, entry.batches, entry.last_inference) == (28, 7, 100.0)
    assert entry.by_batch_size == {
        4: {"gather": Duration(7, 0.0), "run": Duration(7, 1.75), "scatter": Duration(7, 0.0)}
    }


def test_statistics_and_tritons_names_agree_with_what_is_scraped(tmp_path: Path, start: Start) -> None:
    start(3, 0, 100.0)
    exposed = registry(tmp_path, {("engine", 0): 2, ("engine", 1): 3})
    text = generate_latest(exposed).decode()
    families = list(text_string_to_metric_families(text))
    assert value(families, "convoy_engine_restarts_total", device="0") == 2
    assert value(families, "convoy_engine_restarts_total", device="1") == 3
    assert value(families, "convoy_frontend_restarts_total") == 0
    digits = {"model": "digits", "version": "1"}
    assert value(families, "nv_inference_count", **digits) == 12
    assert value(families, "nv_inference_exec_count", **digits) == 3
    assert value(families, "nv_inference_request_success", **digits) == 3
    assert value(families, "nv_inference_request_failure", **digits) == 1
    assert value(families, "nv_inference_request_duration_us", **digits) == 6_000_000
    assert value(families, "nv_inference_queue_duration_us", **digits) == 1_500_000
    assert statistics(families) == statistics(collect(tmp_path))


def test_processes_and_versions_in_use_are_shown(tmp_path: Path) -> None:
    running = [Running("supervisor", "", os.getpid()), Running("engine", "0", 1 << 30)]  # the second has ended
    families = list(
        text_string_to_metric_families(generate_latest(registry(tmp_path, {}, running=lambda: running)).decode())
    )
    samples = [sample for each in families for sample in each.samples if sample.name.startswith("convoy_process_")]
    labels = {"process": "supervisor", "device": "", "pid": str(os.getpid())}
    names = {"convoy_process_cpu_seconds_total", "convoy_process_resident_bytes"}
    assert {sample.name for sample in samples} == names
    assert [sample.labels for sample in samples] == [labels, labels]
    assert all(sample.value > 0 for sample in samples)
    (build,) = [each.samples[0] for each in families if each.name == "convoy_build_info"]
    assert build.value == 1
    assert build.labels == {
        "version": importlib.metadata.version("convoy"),
        "python": platform.python_version(),
        "onnxruntime": onnxruntime.__version__,
    }


def family(name: str, *samples: tuple[str, dict[str, str], float]) -> Metric:
    made = Metric(name, "made for a test", "unknown")
    for suffix, labels, number in samples:
        made.add_sample(name + suffix, labels, number)
    return made


def durations(method: str, code: str, count: int, seconds: float) -> Metric:
    labels = {"model": "m", "version": "2", "method": method, "code": code}
    return family("convoy_request_duration_seconds", ("_count", labels, count), ("_sum", labels, seconds))


def test_only_inference_counts_as_a_models_requests() -> None:
    found = statistics(
        [
            durations("Classify", "OK", 2, 1.0),
            durations("Segment", "OK", 3, 1.0),
            durations("ModelInfer", "OK", 4, 1.0),
            durations("ModelMetadata", "OK", 90, 9.0),
            durations("ModelInfer", "CANCELLED", 5, 0.5),
            durations("ModelConfig", "NOT_FOUND", 90, 9.0),
        ]
    )
    entry = found["m", "2"]
    assert (entry.success, entry.fail) == (Duration(9, 3.0), Duration(5, 0.5))


def test_what_belongs_to_no_version_is_in_no_statistics() -> None:
    nameless = {"model": "", "version": "", "method": "Classify", "code": "OK"}
    assert statistics([family("convoy_request_duration_seconds", ("_count", nameless, 3))]) == {}
    assert statistics([family("convoy_refusals_total", ("", {"model": "m", "reason": "BAD_IMAGE"}, 3))]) == {}


def test_versions_and_batch_sizes_are_kept_apart() -> None:
    found = statistics(
        [
            family(
                "convoy_batches",
                ("_total", {"model": "m", "version": "1", "batch_size": "1"}, 5),
                ("_total", {"model": "m", "version": "1", "batch_size": "8"}, 2),
                ("_total", {"model": "m", "version": "2", "batch_size": "8"}, 7),
            ),
            family(
                "convoy_batch_stage_seconds",
                ("_total", {"model": "m", "version": "1", "batch_size": "8", "stage": "run"}, 0.5),
            ),
        ]
    )
    assert set(found) == {("m", "1"), ("m", "2")}
    assert set(found["m", "1"].by_batch_size) == {1, 8}
    assert found["m", "1"].by_batch_size[8]["run"] == Duration(2, 0.5)
    assert found["m", "2"].by_batch_size[8]["run"] == Duration(7, 0.0)


def test_nothing_counted_is_nothing_found(tmp_path: Path) -> None:
    assert collect(tmp_path) == []
    assert statistics(collect(tmp_path)) == {}


@pytest.mark.parametrize("seconds", [0.0, 0.0001, 0.00011, 0.3, 10.0, 99.0])
def test_many_images_at_once_are_counted_as_one_after_another(seconds: float) -> None:
    metrics.count_images("at-once", "1", 5, [seconds] * len(metrics.STAGES))
    one_by_one = metrics.STAGE_DURATION.labels("one-by-one", "1", "queue")
    for _ in range(5):
        one_by_one.observe(seconds)
    samples = [sample for family in metrics.STAGE_DURATION.collect() for sample in family.samples]

    def of(model: str) -> dict[tuple[str, str], float]:
        return {
            (sample.name, sample.labels.get("le", "")): sample.value
            for sample in samples
            if sample.labels["model"] == model
            and sample.labels["stage"] == "queue"
            and not sample.name.endswith("_created")
        }

    assert of("at-once") == pytest.approx(of("one-by-one"))
    assert of("at-once")["convoy_stage_duration_seconds_count", ""] % 5 == 0


def test_answers_are_counted_by_the_objective_of_their_version() -> None:
    def counted(model: str) -> tuple[float | None, float | None]:
        found = [{"model": model, "version": "1", "objective": each} for each in ("met", "missed")]
        met, missed = (REGISTRY.get_sample_value("convoy_answers_total", labels) for labels in found)
        return met, missed

    metrics.count_answers("quick", "1", 0.1, [0.02, 0.1, 0.1001, 5.0])
    assert counted("quick") == (2, 2)
    metrics.count_answers("quick", "1", 0.1, [0.05])
    assert counted("quick") == (3, 2)
    metrics.count_answer("slow", "1", 0.073, 0.0729)  # between two edges of the histograms
    metrics.count_answer("slow", "1", 0.073, 0.0731)
    assert counted("slow") == (1, 1)


def test_levels_change_in_any_thread_and_are_written_in_the_loop() -> None:
    async def play() -> list[int]:
        threads: list[int] = []
        written = asyncio.Event()

        def write() -> None:
            threads.append(threading.get_ident())
            written.set()

        levels = metrics.Levels(write)
        for _ in range(2):
            for _ in range(3):
                thread = threading.Thread(target=levels.changed)
                thread.start()
                thread.join()  # the loop stands still meanwhile, and writes nothing in between
            levels.changed()
            await written.wait()
            written.clear()
        return threads

    assert asyncio.run(play()) == [threading.get_ident()] * 2


def test_child_of_a_fork_counts_in_files_of_its_own(tmp_path: Path) -> None:
    code = f"""
import os
os.environ[{DIRECTORY!r}] = {str(tmp_path)!r}
from convoy.service import metrics
metrics.count_request("digits", "1", "Classify", "OK", 0.02)
child = os.fork()
metrics.count_request("digits", "1", "Classify", "OK", 0.02)
if child:
    os.waitpid(child, 0)
"""
    subprocess.run([sys.executable, "-c", code], check=True)
    (family,) = [each for each in collect(tmp_path) if each.name == "convoy_request_duration_seconds"]
    counts = [sample.value for sample in family.samples if sample.name.endswith("_count")]
    assert counts == [3]


def test_process_keeps_nothing_of_versions_that_are_forgotten_and_counts_the_others(tmp_path: Path) -> None:
    code = f"""
import gc, os
os.environ[{DIRECTORY!r}] = {str(tmp_path)!r}
from convoy.service import metrics

def count(version):
    metrics.count_request("digits", version, "Classify", "OK", 0.02)
    metrics.count_images("digits", version, 1, [0.01] * len(metrics.STAGES))
    metrics.batch_counters("digits", version, 1, 0)[0].observe(1)
    metrics.MODEL_READY.labels("digits", version, "cpu", 0).set(1)

def objects():
    gc.collect()
    return len(gc.get_objects())

kept = []
for version in range(3, 30):
    count("1")
    count(str(version))
    metrics.forget_version("digits", version)
    kept.append(objects())
assert max(kept[9:]) <= kept[8] + 20, kept
metrics.forget_version("digits", 1)
count("1")
"""
    subprocess.run([sys.executable, "-c", code], check=True)
    (family,) = [each for each in collect(tmp_path) if each.name == "convoy_request_duration_seconds"]
    counts = [(sample.labels["version"], sample.value) for sample in family.samples if sample.name.endswith("_count")]
    assert counts == [("1", 1)]


def test_version_that_cannot_be_served_is_shown_until_it_can(tmp_path: Path) -> None:
    code = f"""
import os
os.environ[{DIRECTORY!r}] = {str(tmp_path)!r}
from convoy.service import metrics

metrics.MODEL_READY.labels("digits", "1", "cpu", 0).set(1)
for version in (1, 2, 0):
    metrics.count_unready("digits", version, 0, unready=True)
metrics.count_unready("digits", 1, 0, unready=False)
"""
    subprocess.run([sys.executable, "-c", code], check=True)
    (family,) = [each for each in collect(tmp_path) if each.name == "convoy_model_ready"]
    found = {(sample.labels["version"], sample.labels["provider"]): sample.value for sample in family.samples}
    assert found == {("1", "cpu"): 1, ("2", ""): 0, ("", ""): 0}
