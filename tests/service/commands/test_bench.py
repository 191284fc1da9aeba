import io
import json

import numpy as np
import PIL.Image
import pytest

from convoy.service.bench.findings import Histogram
from convoy.service.commands import bench, options
from convoy.service.pb.convoy.v1 import vision_pb2 as pb
from tests.service.bench.clocks import begin_with_a_request
from tests.service.fake_inference import FakeInference, serving
from tests.service.running import skip_without


@pytest.fixture
def quick(monkeypatch):
    """The first requests count, which are sent however busy the machine is."""
    monkeypatch.setattr(bench, "_WARM_UP", 0.0)
    begin_with_a_request(monkeypatch)


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
    assert figures["all"]["images"] == 2 * figures["all"]["requests"] > 0
    assert (figures["models"][0]["model"], figures["models"][0]["version"]) == ("digits", "3")
    assert figures["all"]["mean_batch_size"] == 4.0
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
    figures = json.loads(done.stdout)["all"]
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


@pytest.mark.usefixtures("quick")
def test_bench_shares_the_requests_among_models_by_weight(convoy, vision_target, fake_vision):
    arguments = ("--model", "digits:3", "--model", "pets", "--rate", 400, "--arrivals", "constant", "--seconds", 0.5)
    done = convoy("bench", *arguments, "--server", vision_target)
    asked = [request.model for request in fake_vision.requests]
    assert asked.count("digits") / len(asked) == pytest.approx(0.75, abs=0.1)
    assert done.returncode == 0
    lines = [line.split() for line in done.stdout.splitlines()]
    assert {"digits", "pets"} <= {line[0] for line in lines if line}


@pytest.mark.usefixtures("quick")
def test_bench_of_a_model_that_takes_no_images_says_how_it_is_asked(convoy, vision_target, fake_vision):
    tensor = pb.TensorInput(name="waveform", datatype="FP32", axes=[pb.TensorAxis(name="time")])
    model = pb.ModelInfo(
        model="gait", version=1, state=pb.MODEL_STATE_READY, task=pb.TASK_CLASSIFICATION, tensor=tensor
    )
    fake_vision.models = [model]
    done = convoy("bench", "--model", "gait", "--rate", "5", "--server", vision_target)
    said = "convoy bench: model 'gait' accepts no images: use --protocol oip\n"
    assert (done.returncode, done.stderr) == (2, said)


@pytest.mark.usefixtures("quick")
def test_bench_generates_images_of_all_sizes_that_are_asked_for(convoy, vision_target, fake_vision):
    arguments = ("--model", "digits", "--size", "20x30", "--size", "40x50", "--rate", 50, "--seconds", 0.2)
    assert convoy("bench", *arguments, "--server", vision_target).returncode == 0
    sizes = {PIL.Image.open(io.BytesIO(each.images[0].encoded)).size for each in fake_vision.requests}
    assert sizes == {(30, 20), (50, 40)}


@pytest.mark.usefixtures("quick")
def test_bench_of_several_processes_sends_what_one_would_send(convoy, vision_target, fake_vision):
    arguments = ("--model", "digits", "--rate", 60, "--seconds", 0.5, "--seed", 3, "--server", vision_target, "--json")
    one, sent_by_one = json.loads(convoy("bench", *arguments).stdout), len(fake_vision.requests)
    fake_vision.requests.clear()
    several = json.loads(convoy("bench", *arguments, "--processes", 3).stdout)
    assert len(fake_vision.requests) == sent_by_one
    assert several["all"]["requests"] == several["all"]["images"] == one["all"]["requests"] > 0
    assert [each["requests"] for each in several["timeline"]] == [each["requests"] for each in one["timeline"]]
    assert several["generator"]["processes"] == 3


@pytest.mark.usefixtures("quick")
def test_bench_tells_each_step_and_draws_a_picture(convoy, vision_target, tmp_path):
    picture = tmp_path / "load.png"
    arguments = ("--steps", "40:0.3,120:0.3", "--arrivals", "constant", "--picture", picture, "--server", vision_target)
    done = convoy("bench", "--model", "digits", *arguments)
    assert done.returncode == 0
    steps = [line.split() for line in done.stdout.splitlines() if line.startswith(("0 to 0.3 s", "0.3 to 0.6 s"))]
    assert [float(words[4]) for words in steps] == pytest.approx([40, 120], rel=0.1)
    with PIL.Image.open(picture) as drawn:
        assert drawn.format == "PNG"
        assert drawn.width > 500
        assert len(drawn.convert("RGB").getcolors(1 << 20)) > 20


@pytest.mark.usefixtures("quick")
def test_bench_report_in_json_holds_the_whole_report(convoy, vision_target):
    arguments = ("--model", "digits", "--ramp", "20:200", "--seconds", 0.4, "--json", "--server", vision_target)
    figures = json.loads(convoy("bench", *arguments).stdout)
    assert figures["plan"]["load"]["rates"] == [{"seconds": 0.4, "begin": 20.0, "end": 200.0}]
    assert figures["plan"]["seed"] == 0
    assert set(figures["all"]["latency"]) == {"p50", "p90", "p99", "p999", "max"}
    assert sum(each["requests"] for each in figures["timeline"]) == figures["all"]["requests"] > 0
    assert figures["generator"]["sent_late_max"] >= figures["generator"]["sent_late_p99"] >= 0
    halves = [each["requests"] for each in figures["timeline"]]
    assert sum(halves[len(halves) // 2 :]) > sum(halves[: len(halves) // 2])
    assert Histogram.decode(figures["histogram"]).count == figures["all"]["requests"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--rate", 1, "--ramp", "1:2"], "want either --concurrency N"),
        (["--steps", "10:1", "--seconds", 3], "omit --seconds"),
        (["--steps", "10:1,20"], "--steps '20', want numbers such as 100:10,200:10"),
        (["--steps", "10:0.01"], "want at least 0.1"),
        (["--ramp", "fast"], "--ramp 'fast', want numbers such as 10:500"),
        (["--ramp", "0:0"], "less than one request"),
        (["--rate", 1, "--model", "digits"], "names a model twice"),
        (["--rate", 1, "--model", "pets:0"], "want a name, or a name and a weight"),
        (["--rate", 1, "--size", "64"], "want HEIGHTxWIDTH such as 224x224"),
        (["--rate", 1, "--shape", "image:1x2"], "--shape is for --protocol oip"),
        (["--rate", 1, "--protocol", "oip", "--size", "8x8"], "sends random tensors"),
        (["--rate", 1, "--protocol", "oip", "--shape", "image"], "want an input and all of its sides"),
        (["--rate", 1, "--stream", "--protocol", "oip"], "--stream is for Convoy's own protocol"),
        (["--rate", 1, "--raw-client", "--stream"], "--raw-client sends calls only: omit --stream"),
        (
            ["--rate", 1, "--raw-client", "--server", "dns:///x"],
            "--server 'dns:///x:8001', want HOST:PORT or unix:PATH",
        ),
        (["--rate", 1, "--picture", "load.jpg"], "want a name that ends in .png"),
        (["--rate", 1, "--picture", "/nowhere/load.png"], "there is no such folder"),
        (["--rate", 1, "--processes", 0], "--processes"),
        (["--rate", 1, "--arrivals", "uniform"], "'poisson', 'gamma', 'constant'"),
        (["--rate", 1, "--server", "127.0.0.1:1"], "no answer from 127.0.0.1:1"),
    ],
)
def test_bench_that_is_asked_for_what_cannot_be_is_one_line_and_exit_code_2(convoy, arguments, said):
    done = convoy("bench", "--model", "digits", *arguments)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert said in done.stderr


def test_bench_that_cannot_draw_says_so_before_the_load(convoy, monkeypatch, tmp_path):
    monkeypatch.setattr(options.importlib.util, "find_spec", lambda name: None)
    done = convoy("bench", "--model", "digits", "--rate", 1, "--picture", tmp_path / "load.png")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "convoy bench: --picture needs matplotlib: install convoy[bench]\n"


def test_raw_client_without_its_packages_names_them(convoy, monkeypatch):
    monkeypatch.setattr(options.importlib.util, "find_spec", lambda name: None)
    done = convoy("bench", "--model", "digits", "--rate", 1, "--raw-client")
    said = "convoy bench: --raw-client needs cffi and uvloop: install convoy[bench]\n"
    assert (done.returncode, done.stdout, done.stderr) == (2, "", said)


def over_oip(convoy, target, *arguments):
    done = convoy("bench", "--protocol", "oip", "--server", target, "--json", *arguments)
    return done, json.loads(done.stdout) if done.stdout else {}


@pytest.mark.usefixtures("quick")
def test_any_server_of_the_protocol_can_be_loaded(convoy):
    fake = FakeInference(("image", "UINT8", (-1, 8, 8, 3)), ("threshold", "FP32", (1,)))
    with serving(fake) as target:
        arguments = ("--model", "net", "--model", "other", "--rate", 100, "--batch", 2, "--seconds", 0.5)
        done, figures = over_oip(convoy, target, *arguments)
    assert (done.returncode, done.stderr.count("\n")) == (0, 1)
    assert {request.model_name for request in fake.requests} == {"net", "other"}
    assert {tuple(request.inputs[0].shape) for request in fake.requests} == {(2, 8, 8, 3)}
    assert figures["all"]["images"] == 2 * figures["all"]["requests"] > 0
    assert (figures["all"]["errors"], figures["all"]["stage_seconds"]) == ({}, {})


@pytest.mark.usefixtures("quick")
def test_server_that_stands_still_is_late_for_all_that_were_due_meanwhile(convoy):
    # So few a second that a busy machine, too, has soon answered what has gathered meanwhile.
    load = ("--rate", 25, "--arrivals", "constant", "--seconds", 6)
    for _ in range(5):  # the machine may stand still, too
        fake = FakeInference(("x", "FP32", (-1, 4)))
        fake.stall_at, fake.stall = 40, 2.0
        with serving(fake) as target:
            _, figures = over_oip(convoy, target, "--model", "net", *load)
        # 50 of 150 were due while nothing was answered, evenly from 2 s to nothing before its end.
        assert figures["all"]["latency"]["max"] > 1.8
        assert figures["all"]["latency"]["p90"] > 1.0
        if figures["all"]["latency"]["p50"] < 0.4:
            return
    pytest.fail(f"half of the requests took {figures['all']['latency']['p50']:g} s or longer")


@pytest.mark.usefixtures("quick")
def test_convoy_itself_is_loaded_over_the_protocol(convoy, small):
    for arguments in (
        ("--model", "letters", "--concurrency", 2),
        ("--model", "colours", "--rate", 50, "--shape", "image:1x8x12x3", "--shape", "image:2x4x4x3"),
    ):
        done, figures = over_oip(convoy, small.grpc, "--seconds", 0.4, *arguments)
        assert done.returncode == 0
        assert figures["all"]["errors"] == {}
        assert figures["all"]["images"] >= figures["all"]["requests"] > 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--model", "unknown"), "no model 'unknown' here"),
        (("--model", "net", "--shape", "y:1x4"), "--shape of 'y': the inputs are x"),
        (("--model", "net"), "set them, as in --shape x:1x224"),
    ],
)
def test_what_cannot_be_asked_is_one_line_and_exit_code_2(convoy, arguments, said):
    with serving(FakeInference(("x", "FP32", (-1, -1)))) as target:
        done, _ = over_oip(convoy, target, "--rate", 1, *arguments)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert said in done.stderr


LOADS = pytest.mark.parametrize(
    "load", [("--concurrency", 4), ("--rate", 100), ("--ramp", "10:200"), ("--steps", "100:0.2,50:0.2")]
)


@LOADS
@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("model", ["letters", "colours"])
def test_raw_client_loads_a_server_and_says_so(convoy, small, model, load):
    skip_without("nghttp2")
    seconds = () if "--steps" in load else ("--seconds", 0.4)
    arguments = ("--model", model, *load, *seconds, "--raw-client", "--server", small.grpc)
    done = convoy("bench", *arguments)
    assert done.returncode == 0
    for wanted in ("images/s", "in batches of", "answered in 0.4 s, raw client", "queue", "outside the server"):
        assert wanted in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80
    assert "by the raw client" in done.stderr
    figures = json.loads(convoy("bench", *arguments, "--batch", 3, "--json").stdout)
    assert figures["plan"]["raw_client"]
    assert figures["all"]["images"] == 3 * figures["all"]["requests"] > 0


@pytest.mark.usefixtures("quick")
def test_raw_client_loads_a_server_of_the_protocol_from_several_processes(convoy, small):
    skip_without("nghttp2")
    shared = ("--model", "letters", "--rate", 60, "--seconds", 0.5, "--raw-client")
    _, one = over_oip(convoy, small.grpc, *shared)
    done, several = over_oip(convoy, small.grpc, *shared, "--processes", 2)
    assert done.returncode == 0
    assert several["all"]["requests"] == several["all"]["images"] == one["all"]["requests"] > 0
    assert len(several["timeline"]) == len(one["timeline"])
    # So long that at least one process sends something before it is over.
    callers = ("--concurrency", 4, "--seconds", 4, "--raw-client", "--processes", 2)
    _, closed = over_oip(convoy, small.grpc, *shared[:2], *callers)
    assert closed["all"]["images"] > 0
    assert closed["all"]["errors"] == {}


@pytest.mark.usefixtures("quick")
def test_raw_client_counts_images_that_failed_in_answered_requests(convoy, vision_target, tmp_path):
    skip_without("nghttp2")
    PIL.Image.fromarray(np.zeros((4, 4), np.uint8)).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_text("no image")
    arguments = ("--concurrency", 1, "--batch", 2, "--images", tmp_path, "--seconds", 0.3, "--json", "--raw-client")
    figures = json.loads(convoy("bench", "--model", "digits", *arguments, "--server", vision_target).stdout)["all"]
    assert figures["errors"] == {"INVALID_ARGUMENT BAD_IMAGE": figures["images"]}
    assert figures["images"] == figures["requests"] > 0
    assert figures["mean_batch_size"] == 4.0


@pytest.mark.usefixtures("quick")
def test_raw_client_counts_requests_that_failed(convoy, vision_target, fake_vision):
    skip_without("nghttp2")
    fake_vision.models[0].model = "full"
    arguments = ("--rate", 50, "--seconds", 0.2, "--raw-client", "--server", vision_target)
    done = convoy("bench", "--model", "full", *arguments)
    assert done.returncode == 1
    assert "RESOURCE_EXHAUSTED QUEUE_FULL" in done.stdout
    assert "1024 images wait already" in done.stdout
