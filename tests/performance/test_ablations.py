"""A server with a plain implementation answers as the real one does, so that only their costs differ."""

import importlib
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from operator import attrgetter
from pathlib import Path
from types import ModuleType
from typing import Any

import grpc
import numpy as np
import pytest
from google.protobuf.message import Message

from convoy.service.pb import inference_pb2
from convoy.service.pb.convoy.v1 import vision_pb2 as pb
from tests.performance import ablations
from tests.performance.ablations import BEGIN, END, Comparison
from tests.performance.figure import CLASSIFY, SEGMENT, request, serving
from tests.performance.plain.swaps import SWAPS, environment, swap
from tests.performance.rounds import settle
from tests.service.running import Server

INFER = "/inference.GRPCInferenceService/ModelInfer"
CLASSIFICATION = request(32, 1, 3, "small"), request(184, 3, 2, "large"), request(32, 1, 1, "small")
MEASURED = """
import os, tempfile
os.environ["PROMETHEUS_MULTIPROC_DIR"] = tempfile.mkdtemp()
from prometheus_client import values
as_it_comes = values.ValueClass
from convoy.service import metric_files, metrics
print(values.ValueClass is as_it_comes)
metrics.count_images("digits", "1", 3, [0.001] * len(metrics.STAGES))
metrics.count_request("digits", "1", "Classify", "OK", 0.02)
for family in metric_files.collect(__import__("pathlib").Path(os.environ["PROMETHEUS_MULTIPROC_DIR"])):
    for sample in family.samples:
        print(sample.name, sorted(sample.labels.items()), round(sample.value, 9))
"""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return ablations.repository(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def expected(root: Path) -> list[Message]:
    """The answers of the server as it is."""
    with started(root, "") as server:
        return answers(server)


@contextmanager
def started(root: Path, variant: str) -> Iterator[Server]:
    with serving(root, environment=environment(variant)) as server:
        yield server


def answers(server: Server) -> list[Message]:
    """Of requests of every kind, one with an image that cannot be read; without the times, which no two runs share."""
    found: list[Message] = []
    broken = pb.ClassifyRequest.FromString(CLASSIFICATION[0])
    broken.images[1].encoded = b"no image"
    with grpc.insecure_channel(server.grpc) as channel:
        ask = channel.unary_unary(CLASSIFY, response_deserializer=pb.ClassifyResponse.FromString)
        for body in (*CLASSIFICATION, broken.SerializeToString()):
            classified = ask(body)
            for result in classified.results:
                result.ClearField("timings")
            found.append(classified)
        ask = channel.unary_unary(SEGMENT, response_deserializer=pb.SegmentResponse.FromString)
        segmented = ask(ablations.sixteen_bit_request())
        segmented.results[0].ClearField("timings")
        found.append(segmented)
        ask = channel.unary_unary(INFER, response_deserializer=inference_pb2.ModelInferResponse.FromString)
        inferred = ask(ablations.tensor_request())
        inferred.ClearField("parameters")
        found.append(inferred)
    return found


def metrics_of(variant: str) -> list[str]:
    command = [sys.executable, "-c", MEASURED]
    done = subprocess.run(command, env=environment(variant), check=True, capture_output=True, text=True)
    return sorted(done.stdout.splitlines())  # files are read in any order


@pytest.mark.parametrize("variant", [name for name in SWAPS if name not in ("16 bits", "unobserved")])
def test_plain_variant_answers_as_the_real_server(root: Path, expected: list[Message], variant: str) -> None:
    with started(root, variant) as server:
        assert answers(server) == expected


def test_high_bytes_alone_change_masks_and_nothing_else(root: Path, expected: list[Message]) -> None:
    with started(root, "16 bits") as server:
        plain = answers(server)
        levels = ablations.levels_answered(server, ablations.sixteen_bit_request())
    differing = [number for number, both in enumerate(zip(plain, expected, strict=True)) if both[0] != both[1]]
    assert differing == [4]
    assert (levels == np.arange(2**16) >> 8).all()


@pytest.mark.parametrize("variant", SWAPS)
def test_every_replaced_name_is_there(variant: str) -> None:
    for name, replacements in SWAPS[variant].items():
        module = importlib.import_module(name)
        for path in replacements(module):
            attrgetter(path)(module)


def test_name_that_is_not_there_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    module: Any = ModuleType("somewhere")
    monkeypatch.setitem(SWAPS, "broken", {"somewhere": lambda _: {"Parser.parse": None}})
    with pytest.raises(AttributeError, match="Parser"):
        swap("broken", module)


def test_plain_metrics_count_the_same() -> None:
    as_it_comes, *counted = metrics_of("")
    assert (as_it_comes, len(counted) > 50) == ("False", True)
    assert metrics_of("process id") == ["True", *counted]
    assert metrics_of("counting") == ["False", *counted]


def test_best_figure_of_an_optimisation_decides() -> None:
    lines = [Comparison("a", "first", "1.0", "goes"), Comparison("a", "second", "0.9", "kept")]
    assert ablations.verdict(lines) == "kept"
    assert ablations.verdict(lines[:1]) == "goes"
    assert ablations.verdict([Comparison("none", "first", "1.0", "")]) == ""


@pytest.mark.parametrize(
    ("ratios", "less", "more"),
    [
        ([0.94] * 3, "kept", "goes"),
        ([0.97] * 3, "goes", "goes"),
        ([1.06] * 3, "goes", "kept"),
        ([0.8, 0.9, 1.2], "open", "goes"),
        ([0.8, 1.1, 1.2], "goes", "open"),
    ],
)
def test_gain_below_five_per_cent_is_none_and_one_that_may_be_noise_is_open(
    ratios: list[float], less: str, more: str
) -> None:
    both = ratios, [1.0] * 3
    assert (ablations.less(*both), ablations.more(*both)) == (less, more)


def test_table_names_an_optimisation_once_and_replaces_the_one_before() -> None:
    lines = [Comparison("a", "first", "1.0", "goes"), Comparison("a", "second", "0.9", "kept")]
    page = f"before\n{BEGIN}\nold\n{END}\nafter\n"
    written = ablations.replaced(page, ablations.table(lines))
    assert "| a | first | 1.0 | kept |\n|  | second | 0.9 |  |\n" in written
    assert "old" not in written
    assert written.startswith("before\n")
    assert written.endswith("\nafter\n")
    assert ablations.replaced(written, ablations.table(lines)) == written
    with pytest.raises(ValueError, match="want both"):
        ablations.replaced("no marks", "")


def test_processes_of_a_server_stay_on_cores_of_their_own(root: Path) -> None:
    cores = sorted(os.sched_getaffinity(0))
    with started(root, "") as server:
        settle(server)
        (front_end,), (engine,) = server.processes("frontend"), server.processes("engine")
        assert os.sched_getaffinity(front_end) == {cores[0]}
        assert os.sched_getaffinity(engine) == {cores[-1]}
