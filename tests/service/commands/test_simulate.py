"""`convoy simulate` as a user types it."""

import json

import PIL.Image
import pytest

TIMES = "1:6.286,64:74.452"


def test_command_compares_all_policies_with_the_oracle(convoy):
    done = convoy("simulate", "--times", TIMES, "--requests", "3000", "--offered", "3")
    assert (done.returncode, done.stderr) == (0, "")
    first = [line.split()[0] for line in done.stdout.splitlines()]
    assert first[2:7] == first[8:13] == ["deferred", "eager", "timeout", "aimd", "nexus"]
    assert first[13] == "oracle"
    assert "827.2/s" in done.stdout


def test_json_has_shares_that_add_up(convoy):
    done = convoy("simulate", "--times", TIMES, "--requests", "3000", "--offered", "3", "--json", "--policy", "nexus")
    (found,) = json.loads(done.stdout)
    assert found["policy"] == "nexus"
    assert sum(found[how] for how in ("in_time", "late", "refused", "dropped")) == pytest.approx(1)
    assert 0.9 < found["of_oracle"] < 1.1


def test_profile_says_what_batches_take(convoy, tmp_path):
    machine = {"device": "", "provider": "", "threads": 1, "onnxruntime": "", "model_sha256": ""}
    batches = {"1": {"seconds": 0.006286, "cpu_seconds": 0}, "64": {"seconds": 0.074452, "cpu_seconds": 0}}
    file = tmp_path / "profile.json"
    made = {"machine": machine, "shape": [1], "dtype": "uint8", "most": 64, "batches": batches}
    file.write_text(json.dumps([made]))
    done = convoy("simulate", "--profile", file, "--requests", "1000", "--json")
    by_hand = convoy("simulate", "--times", TIMES, "--requests", "1000", "--json")
    assert json.loads(done.stdout) == json.loads(by_hand.stdout)

    file.write_text(json.dumps([made, made | {"shape": [2]}]))
    done = convoy("simulate", "--profile", file)
    assert done.returncode == 2
    assert "has 2 shapes, want one: set the times of one of them with --times" in done.stderr


def test_picture_has_every_policy_also_where_nobody_is_answered(convoy, tmp_path):
    for number, options in enumerate([("--offered", "2"), ("--rate", "10", "--deadline", "0.001")]):
        picture = tmp_path / f"{number}.png"
        done = convoy("simulate", "--times", TIMES, "--requests", "2000", *options, "--picture", picture)
        assert (done.returncode, done.stderr) == (0, "")
        with PIL.Image.open(picture) as drawn:
            assert drawn.size == (1000, 800)
            assert len(drawn.convert("L").getcolors(256)) > 20


def test_trace_says_when_requests_come(convoy, tmp_path):
    trace = tmp_path / "trace"
    trace.write_text("0.5\n0.6\n0.6\n2\n")
    done = convoy("simulate", "--times", TIMES, "--load", "trace", "--trace", trace)
    assert done.stdout.startswith("4 requests in 2.0 s, trace")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "want either --profile FILE or --times"),
        (["--profile", "/nowhere.json"], "/nowhere.json is no profile: No such file"),
        (["--profile", "/dev/null"], "/dev/null is no profile"),
        (["--times", "1:x"], "--times '1:x', want sizes and milliseconds"),
        (["--times", "0:1"], "--times '0:1', want sizes and milliseconds"),
        (["--times", TIMES, "--picture", "outcome.jpg"], "want a name that ends in .png"),
        (["--times", TIMES, "--policy", "lazy"], "--policy 'lazy', want one of deferred, eager"),
        (["--times", TIMES, "--load", "trace"], "--load trace and --trace FILE require each other"),
        (["--times", "1:6000"], "one image takes more than half of the deadline of 0.1 s"),
    ],
)
def test_what_cannot_be_simulated_is_told_in_one_line(convoy, arguments, words):
    done = convoy("simulate", *arguments)
    assert done.returncode == 2
    assert words in done.stderr
    assert done.stderr.count("\n") == 1


def test_trace_that_does_not_ascend_is_refused(convoy, tmp_path):
    trace = tmp_path / "trace"
    trace.write_text("2\n1\n")
    done = convoy("simulate", "--times", TIMES, "--load", "trace", "--trace", trace)
    assert "contains 2 times, want at least one, in ascending order" in done.stderr
