import json

import pytest

from tests.service.fake_inference import FakeInference, serving


def bench(convoy, target, *arguments):
    done = convoy("bench", "--protocol", "oip", "--server", target, "--json", *arguments)
    return done, json.loads(done.stdout) if done.stdout else {}


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr("convoy.service.commands.bench._WARM_UP", 0.05)


@pytest.mark.usefixtures("quick")
def test_any_server_of_the_protocol_can_be_loaded(convoy):
    fake = FakeInference(("image", "UINT8", (-1, 8, 8, 3)), ("threshold", "FP32", (1,)))
    with serving(fake) as target:
        arguments = ("--model", "net", "--model", "other", "--rate", 100, "--batch", 2, "--seconds", 0.5)
        done, figures = bench(convoy, target, *arguments)
    assert (done.returncode, done.stderr.count("\n")) == (0, 1)
    assert {request.model_name for request in fake.requests} == {"net", "other"}
    assert {tuple(request.inputs[0].shape) for request in fake.requests} == {(2, 8, 8, 3)}
    assert figures["all"]["images"] == 2 * figures["all"]["requests"] > 0
    assert (figures["all"]["errors"], figures["all"]["stage_seconds"]) == ({}, {})


@pytest.mark.usefixtures("quick")
def test_server_that_stands_still_is_late_for_all_that_were_due_meanwhile(convoy):
    fake = FakeInference(("x", "FP32", (-1, 4)))
    fake.stall_at, fake.stall = 40, 0.5
    with serving(fake) as target:
        load = ("--rate", 100, "--arrivals", "constant", "--seconds", 1.2)
        _, figures = bench(convoy, target, "--model", "net", *load)
    # 50 of 120 were due while nothing was answered, evenly from 0.5 s to nothing before its end.
    assert figures["all"]["latency"]["max"] > 0.45
    assert figures["all"]["latency"]["p90"] > 0.25
    assert figures["all"]["latency"]["p50"] < 0.1


@pytest.mark.usefixtures("quick")
def test_convoy_itself_is_loaded_over_the_protocol(convoy, small):
    for arguments in (
        ("--model", "letters", "--concurrency", 2),
        ("--model", "colours", "--rate", 50, "--shape", "image:1x8x12x3", "--shape", "image:2x4x4x3"),
    ):
        done, figures = bench(convoy, small.grpc, "--seconds", 0.4, *arguments)
        assert done.returncode == 0
        assert figures["all"]["errors"] == {}
        assert figures["all"]["images"] >= figures["all"]["requests"] > 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--model", "unknown"), "no model 'unknown' here"),
        (("--model", "net", "--shape", "y:1x4"), "--shape of 'y': the inputs are x"),
        (("--model", "net"), "give them, as in --shape x:1x224"),
    ],
)
def test_what_cannot_be_asked_is_one_line_and_exit_code_2(convoy, arguments, said):
    with serving(FakeInference(("x", "FP32", (-1, -1)))) as target:
        done, _ = bench(convoy, target, "--rate", 1, *arguments)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert said in done.stderr
