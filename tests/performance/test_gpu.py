"""The measurement of a GPU says what it found, and where there is none, that."""

import time
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from convoy.service.errors import ConvoyError
from convoy.service.pb.convoy.v1 import vision_pb2 as pb
from tests.performance import gpu, models
from tests.performance.device import Watch
from tests.performance.figure import CLASSIFY
from tests.performance.trials import Ratio

CUDA = "CUDAExecutionProvider"
WORK = gpu.Work("a network", CLASSIFY, b"", 16)


def test_machine_without_cuda_is_told_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if CUDA in onnxruntime.get_available_providers():
        pytest.skip("CUDA is there")
    assert gpu.main([str(tmp_path / "report.md")]) == 2
    told = capsys.readouterr()
    assert told.err == "no GPU is measured: this onnxruntime does not offer CUDA\n"
    assert not list(tmp_path.iterdir())


def test_cuda_that_is_asked_for_is_not_measured_on_the_cpu(tmp_path: Path) -> None:
    if CUDA in onnxruntime.get_available_providers():
        pytest.skip("CUDA is there")
    file = models.nothing(tmp_path, "nothing", 32, "RGB")
    with pytest.raises(ConvoyError, match="provider cuda was requested"):
        gpu.Raw(file, "cuda")


def test_onnxruntime_alone_runs_the_batches_that_are_sent(tmp_path: Path) -> None:
    raw = gpu.Raw(models.nothing(tmp_path, "nothing", 32, "RGB"), "cpu")
    begin = time.perf_counter()
    assert 0 < 3 * raw.seconds(4, 3) <= time.perf_counter() - begin
    sent = pb.ClassifyRequest.FromString(raw.request(4))
    assert [(len(image.raw.pixels), image.raw.channels) for image in sent.images] == [(32 * 32 * 3, 3)] * 4


@pytest.mark.parametrize(("median", "reached"), [(0.91, True), (0.89, False)])
def test_throughput_counts_as_reached_from_nine_tenths_on(median: float, reached: bool) -> None:
    line = gpu.throughput(WORK, 64, Ratio(median, 0.8, 1.0), [900.0, 910.0], [1000.0, 1000.0], Watch())
    assert (line.reached, line.wanted) == (reached, ">= 0.90")
    assert "905 over 1,000 images/s" in line.measured


@pytest.mark.parametrize(("slowest", "reached"), [(0.014, True), (0.016, False)])
def test_latency_counts_as_reached_by_its_99th_percentile(slowest: float, reached: bool) -> None:
    line = gpu.latency(WORK, 64, [*np.full(970, 0.005), *np.full(30, slowest)])
    assert line.reached is reached
    assert "p50 5.0 ms" in line.measured
