import io
import json

import pytest
from rich.console import Console

from convoy.service.client.client import Client
from convoy.service.commands.models import show
from convoy.service.pb.convoy.v1 import vision_pb2 as pb


@pytest.mark.parametrize("width", [80, 120])
def test_table_has_a_row_for_each_version_and_the_reason_below(vision_target, width):
    file = io.StringIO()
    with Client(vision_target) as client:
        show(Console(file=file, width=width), client.models())
    lines = [line.split() for line in file.getvalue().splitlines()]
    assert lines[1][:9] == ["digits", "3", "ready", "classify", "CPU", "32×32", "L", "10", "top1"]
    pets = next(line for line in lines if line[0] == "pets")
    assert pets == ["pets", "2", "ready", "segment", "CPU", "any", "size", "RGB", "3"]
    assert lines[-2] == ["broken", "1", "unavailable"]
    assert lines[-1] == ["broken", "1:", "model.onnx", "is", "cut", "short"]


@pytest.mark.parametrize("width", [20, 60, 200])
def test_nothing_is_cut_off_however_narrow_the_terminal_is(vision_target, fake_vision, width):
    name, reason = "a-model-with-a-long-name", "a reason " * 20
    fake_vision.models = [pb.ModelInfo(model=name, version=1, metrics={"pixel_accuracy": 0.5, "mean_iou": 0.25})]
    fake_vision.models += [pb.ModelInfo(model=name, version=2, reason=reason)]
    file = io.StringIO()
    with Client(vision_target) as client:
        show(Console(file=file, width=width), client.models())
    lines = file.getvalue().splitlines()
    assert [line.split() for line in lines[1:4]] == [
        [name, "1", "unspecified", "mean_iou", "0.25"],
        ["pixel_accuracy", "0.5"],
        [name, "2", "unspecified"],
    ]
    assert lines[4] == f"{name} 2: {reason}"


def test_model_of_tensors_tells_their_sides(vision_target, fake_vision):
    axes = [pb.TensorAxis(name="channel", size=3), pb.TensorAxis(name="time", spacing=0.01, unit="s")]
    tensor = pb.TensorInput(name="waveform", datatype="FP32", axes=axes)
    fake_vision.models = [pb.ModelInfo(model="gait", version=1, task=pb.TASK_CLASSIFICATION, tensor=tensor)]
    file = io.StringIO()
    with Client(vision_target) as client:
        show(Console(file=file, width=80), client.models())
    assert "infer  " in file.getvalue()
    assert "[3, time] FP32" in file.getvalue()


def test_command_prints_the_table(convoy, vision_target):
    done = convoy("models", "--server", vision_target)
    assert (done.returncode, done.stderr, "digits" in done.stdout) == (0, "", True)


def test_json_says_everything(convoy, vision_target):
    digits, pets, broken = json.loads(convoy("models", "--json", "--server", vision_target).stdout)
    assert (digits["input"]["fit"], digits["metrics"]) == ("letterbox", {"top1": 0.9912})
    assert pets["palette"] == [[0, 0, 0], [255, 0, 0], [0, 0, 255]]
    assert (broken["state"], broken["reason"]) == ("unavailable", "model.onnx is cut short")


def test_empty_repository_is_said(convoy, vision_target, fake_vision):
    fake_vision.models = []
    assert "holds no model" in convoy("models", "--server", vision_target).stdout


def test_absent_server_is_one_line_and_exit_code_2(convoy):
    done = convoy("models", "--server", "127.0.0.1:1")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert "127.0.0.1:1" in done.stderr
