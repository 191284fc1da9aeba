"""`convoy profile` as a user types it, and the choice of batch sizes in words."""

import json
import re

import msgspec
import PIL.Image
import pytest

from convoy.service.bench import sweep
from convoy.service.bench.sweep import Served
from convoy.service.commands import profile_served
from convoy.service.commands.profile_model import chosen, which, why
from convoy.service.commands.profile_served import Row, verdict
from convoy.service.engine.profiles import BatchTime, Machine, Profile
from tests.service import networks
from tests.service.bench.clocks import begin_with_a_request

MACHINE = Machine(device="a machine", provider="CPUExecutionProvider", threads=1, onnxruntime="1", model_sha256="0")


def profile(seconds: dict[int, float], instances: int = 1) -> Profile:
    batches = {size: BatchTime(time, time) for size, time in seconds.items()}
    machine = msgspec.structs.replace(MACHINE, instances=instances, threads=4 // instances)
    return Profile(machine=machine, shape=(8, 8, 1), dtype="uint8", most=max(seconds), batches=batches)


GAINS = profile({size: 0.005 + 0.001 * size for size in (1, 2, 4, 8, 16, 32, 64)})
FLAT = profile({1: 0.02, 2: 0.04, 4: 0.08})


@pytest.mark.parametrize(("objective", "size"), [(1.0, 63), (0.1, 45), (0.02, 5), (0.001, 1)])
def test_two_batches_in_a_row_fit_into_the_objective(objective: float, size: int) -> None:
    assert chosen(GAINS, objective) == pytest.approx(size, abs=1)


def test_choice_is_told_with_its_reason() -> None:
    assert why(FLAT, 1.0) == "batches of up to 1: 50 images/s; larger ones reach less than 0.2 % more"
    assert "two of them in a row fit into the objective of 20 ms" in why(GAINS, 0.02)
    assert "even one image takes more than half of the objective of 10 ms" in why(GAINS, 0.01)


def test_largest_batch_that_was_tried_says_nothing_of_larger_ones() -> None:
    few = profile(dict.fromkeys((1, 2, 4), 0.02))
    assert why(few, 1.0) == "batches of up to 4: 200 images/s; larger ones were not tried"


@pytest.mark.parametrize(
    ("seconds", "objective", "words"),
    [
        (0.06, 1.0, "4 sessions of 1 thread each reach 33% more images/s; one image takes 20.0 ms with 4 threads"),
        (0.078, 1.0, "4 threads; 4 sessions of 1 thread each reach 3% more images/s, want at least 5% more"),
        (0.1, 1.0, "4 threads; 4 sessions of 1 thread each reach 20% fewer images/s, want at least 5% more"),
        (0.06, 0.1, "4 threads; with 4 sessions of 1 thread each one image takes more than half of the"),
    ],
)  # fmt: skip
def test_choice_of_sessions_is_told_with_its_reason(seconds: float, objective: float, words: str) -> None:
    assert which([FLAT], [profile({1: seconds, 2: 2 * seconds}, 4)], objective).startswith(words)


@pytest.fixture
def repository(tmp_path):
    networks.save(networks.classifier(), tmp_path, "letters", 1)
    networks.save(networks.segmenter(), tmp_path, "colours", 1)
    networks.save(networks.waves(), tmp_path, "waves", 1)
    networks.save(networks.doubler(), tmp_path, "doubler", 1)
    return tmp_path


def test_command_prints_a_row_for_each_size(convoy, repository):
    done = convoy("profile", "letters", "--repository", repository, "--max-batch-size", "4", "--threads", "1")
    assert (done.returncode, done.stderr) == (0, "")
    rows = [line.split() for line in done.stdout.splitlines()]
    assert rows[0][:2] == ["letters", "on"]
    assert {"1", "2", "4"} >= {row[0] for row in rows[2:-1]} >= {"1", "2"}
    assert "batches of up to" in done.stdout


def test_command_prints_json_that_is_a_profile(convoy, repository):
    file = repository / "letters" / "1" / "model.onnx"
    done = convoy("profile", file, "--json", "--threads", "1")
    (found,) = json.loads(done.stdout)
    assert found["machine"]["threads"] == 1
    assert found["batches"]["1"]["seconds"] > 0


def test_picture_has_a_line_for_each_layout(convoy, repository, tmp_path):
    picture = tmp_path / "profile.png"
    done = convoy(
        "profile",
        "letters",
        "--repository",
        repository,
        "--max-batch-size",
        "2",
        "--threads",
        "2",
        "--picture",
        picture,
    )
    assert (done.returncode, done.stderr) == (0, "")
    with PIL.Image.open(picture) as drawn:
        assert drawn.size == (1000, 420)
        assert {(0, 0x72, 0xB2), (0xE6, 0x9F, 0)} <= {colour for _, colour in drawn.convert("RGB").getcolors(1 << 20)}


def test_both_layouts_are_measured_and_the_choice_is_told(convoy, repository):
    command = ("profile", "letters", "--repository", repository, "--max-batch-size", "2", "--threads", "2")
    lines = convoy(*command).stdout.splitlines()
    heads = [line for line in lines if line.startswith("letters on")]
    assert len(heads) == 2
    assert ", 2 threads," in heads[0]
    assert ", 2 sessions of 1 thread each," in " ".join(lines)
    assert 'with instances = "auto": ' in " ".join(lines)
    found = json.loads(convoy(*command, "--json").stdout)
    assert [(each["machine"]["instances"], each["machine"]["threads"]) for each in found] == [(1, 2), (2, 1)]


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("lettres", "no model 'lettres' with a model.onnx in"),
        ("colours", "colours accepts inputs of any size: want --size HxW, or buckets in its model.toml"),
        ("waves", "waves accepts inputs of any size: its batches are measured while it serves"),
        ("doubler", "doubler does not describe its input: its batches are measured while it serves"),
        ("nowhere.onnx", "there is no file 'nowhere.onnx'"),
    ],
)
def test_model_that_cannot_be_profiled_is_told_in_one_line(convoy, repository, model, words):
    done = convoy("profile", model, "--repository", repository)
    assert done.returncode == 2
    assert done.stderr.startswith("convoy profile: ")
    assert words in done.stderr
    assert done.stderr.count("\n") == 1


def test_model_whose_settings_are_wrong_is_told_with_them(convoy, tmp_path):
    folder = tmp_path / "repository" / "letters"
    folder.mkdir(parents=True)
    (folder / "model.toml").write_text("max_batch_size = 0")
    done = convoy("profile", "letters", "--repository", folder.parent)
    said = "convoy profile: letters: model.toml: configuration: max_batch_size is 0, want int >= 1\n"
    assert (done.returncode, done.stderr) == (2, said)


def test_file_that_is_no_network_is_named_with_what_is_wrong(convoy, tmp_path):
    file = tmp_path / "notes.onnx"
    file.write_text("not a network")
    done = convoy("profile", file)
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    # What follows are onnxruntime's own words.
    assert re.fullmatch(f"convoy profile: {re.escape(str(file))}: onnxruntime cannot load it: .+", line)


def test_model_of_any_size_has_a_table_for_each_size(convoy, repository):
    sizes = ("--size", "30x61", "--size", "8x8")
    done = convoy("profile", "colours", "--repository", repository, "--max-batch-size", "2", "--threads", "1", *sizes)
    assert (done.returncode, done.stderr) == (0, "")
    heads = [line.split()[-1] for line in done.stdout.splitlines() if line.startswith("colours on")]
    assert heads == ["32x64x3", "8x8x3"]  # what an image of that size is padded to
    assert done.stdout.count("batches of up to") == 2


def test_buckets_of_the_model_are_measured_unless_sizes_are_given(convoy, repository):
    (repository / "colours" / "model.toml").write_text("buckets = [[16, 32], [8, 8]]\n")
    few = ("--max-batch-size", "2", "--threads", "1")
    profiled = convoy("profile", "colours", "--repository", repository, "--json", *few)
    assert [each["shape"] for each in json.loads(profiled.stdout)] == [[8, 8, 3], [16, 32, 3]]
    one = convoy("profile", "colours", "--repository", repository, "--json", "--size", "24x24", *few)
    assert [each["shape"] for each in json.loads(one.stdout)] == [[24, 24, 3]]


@pytest.mark.parametrize(
    ("model", "size", "words"),
    [
        ("letters", "8x8", "--size 8x8: letters accepts one size only, omit --size"),
        ("colours", "8", "--size '8', want HEIGHTxWIDTH such as 224x224"),
        ("colours", "0x8", "--size '0x8', want HEIGHTxWIDTH"),
        ("colours", "4096x4096", "--size '4096x4096' has 16777216 pixels, want at most 4194304"),
    ],
)
def test_wrong_size_is_told_in_one_line(convoy, repository, model, size, words):
    done = convoy("profile", model, "--repository", repository, "--size", size)
    assert done.returncode == 2
    assert words in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(profile_served, "_ROUNDS", 1)
    monkeypatch.setattr(sweep, "_WARM_UP", 0.0)
    begin_with_a_request(monkeypatch, answered=True)  # the first one of a server may take longer than all of the load


COMPARED = ("--max-batch-size", "2", "--threads", "1", "--callers", "4", "--seconds", "1")


@pytest.mark.usefixtures("quick")
def test_served_is_compared_with_what_the_profile_predicts(convoy, repository, tmp_path, monkeypatch):
    # A batch waits for a second image also where a busy machine takes long to send it.
    monkeypatch.setenv("CONVOY_BATCHING__MAX_QUEUE_DELAY_MS", "500")
    (repository / "letters" / "model.toml").write_text("batched = true\ninstances = 1\nmax_batch_size = 1\n")
    before = sorted(path for path in repository.rglob("*"))
    picture = tmp_path / "served.png"
    done = convoy("profile", "letters", "--repository", repository, *COMPARED, "--picture", picture)
    assert (done.returncode, done.stderr.count("\n")) == (0, 1), done.stderr
    lines = [line.split() for line in done.stdout.splitlines()]
    start = lines.index(["served", "to", "4", "callers"])
    names = [line[0] for line in lines[start + 2 : -1]]
    assert names == ["1", "2", "auto"]
    assert float(lines[start + 2][5]) == 1.0  # the mean of batches of at most one
    assert 1.0 < float(lines[start + 3][5]) <= 2.0
    assert re.fullmatch(r"auto reaches [\d.]+ of the best fixed batch size, [12]", " ".join(lines[-1]))
    assert sorted(path for path in repository.rglob("*") if path != picture) == before
    with PIL.Image.open(picture) as drawn:
        assert drawn.size == (1330, 420)


@pytest.mark.usefixtures("quick")
def test_comparison_of_an_image_of_any_size_is_in_the_json(convoy, repository):
    done = convoy("profile", "colours", "--repository", repository, *COMPARED, "--size", "16x32", "--json")
    assert (done.returncode, done.stderr.count("\n")) == (0, 1), done.stderr
    found = json.loads(done.stdout)
    assert [each["shape"] for each in found["profiles"]] == [[16, 32, 3]]
    assert [(row["automatic"], row["predicted"] > 0) for row in found["served"]] == [*[(False, True)] * 2, (True, True)]
    assert all(len(row["served"]["rounds"]) == 1 and row["served"]["rounds"][0] > 0 for row in found["served"])


def rows(rates: dict[int, float], auto: float) -> list[Row]:
    served = [*rates.items(), (0, auto)]
    return [
        Row(
            batch_size=size or 4,
            automatic=not size,
            predicted=None if size == 2 else 100.0,
            served=Served(rounds=[rate - 1, rate + 1], mean_batch_size=1.0),
        )
        for size, rate in served
    ]


def test_verdict_is_the_share_of_the_best_fixed_size() -> None:
    assert verdict(rows({1: 50.0, 2: 80.0, 4: 60.0}, 78.0)) == "auto reaches 0.97 of the best fixed batch size, 2"
    assert verdict(rows({1: 50.0}, 60.0)) == "auto reaches 1.20 of the best fixed batch size, 1"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("colours", "--size", "8x8", "--size", "16x16"), "images of one size, but --size is given 2 times"),
        (("letters", "--callers", "0"), "--callers"),
        (("waves",), "--callers sends images, want a classification or segmentation model, not waves"),
    ],
)
def test_what_cannot_be_compared_is_refused_at_once(convoy, repository, arguments, words):
    done = convoy("profile", "--repository", repository, "--callers", "4", *arguments)
    assert done.returncode == 2
    assert words in done.stderr
    assert done.stderr.count("\n") == 1
