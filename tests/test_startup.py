"""What a slip of the keyboard costs: help and refusals that need no file's content come before any large import."""

import json
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from convoy.models.settings import Recipe
from convoy.models.training.run import Note, RunFolder, Settings
from convoy.service import cli

LARGE = ("torch", "lightning", "torchmetrics", "scipy", "matplotlib", "sklearn", "onnx", "onnxruntime")
MEDIUM = ("grpc", "numpy")  # a tenth of a second each, which help does not need
CPU_SECONDS = 0.5
# Work of a fixed size, and the seconds that it takes where the limit holds. A machine that is slower, or is busy with
# other things, makes all work take more CPU time.
FIXED = "import argparse\ntext = open(argparse.__file__).read()\nfor _ in range(4): compile(text, 'x', 'exec')"
FIXED_SECONDS = 0.1
TRIES = 12
COMMAND = "import sys\nfrom convoy.service import cli\nsys.exit(cli.run(sys.argv[1:]))"

BELOW = {
    "data": ["check"],
    "visualize": ["layers", "filters", "features", "neurons", "class", "dream", "evidence"],
}
LEAVES = [[name, *([below] if below else [])] for name in cli.COMMANDS for below in BELOW.get(name, [""])]
HELP = [["--help"], *([name, "--help"] for name in BELOW), *([*leaf, "--help"] for leaf in LEAVES)]

TRAIN = ["train", "lenet5", "--data", "digits"]
EXPORT = ["export", "file.ckpt", "--repository", "repository"]
TEMPLATE = ["template", "photograph.png", "--repository", "repository", "--name"]
REFUSALS = [
    (["trian"], "no command 'trian'; did you mean 'train'?"),
    *(([*leaf, "--quux"], "No such option") for leaf in LEAVES),
    (["data", "check", "nowhere"], "data set 'nowhere', want one of: digits, "),
    (["data", "check", "digits", "--sheet", "none/x.png"], "there is no folder 'none'"),
    (["train", "lenet6", "--data", "digits"], "architecture 'lenet6', want one of: lenet5, "),
    (["train", "lenet5", "--data", "nowhere"], "data set 'nowhere', want one of: digits, "),
    (["train", "lenet5", "--data", "none.csv"], "data set 'none.csv', want one of: digits, "),
    (["train", "lenet5"], "want --data DATA"),
    ([*TRAIN, "--epochs", "0"], "'--epochs'"),
    ([*TRAIN, "--optimizer", "adam"], "'sgd', 'adamw'"),
    ([*TRAIN, "--clip", "0"], "--clip 0.0: expected `float` > 0.0"),
    ([*TRAIN, "--scale", "2:1"], "--scale '2:1', want LEAST:LARGEST"),
    ([*TRAIN, "--size", "8x"], "--size '8x', want HEIGHTxWIDTH"),
    ([*TRAIN, "--set", "width=8"], "width = '8' is no argument of lenet5, it has none"),
    ([*TRAIN, "--crop", "16"], "crop 16: lenet5 accepts whole images only"),
    ([*TRAIN, "--gamma", "2"], "--gamma 2 requires --loss focal"),
    ([*TRAIN, "--mask-values", "x"], "--mask-values 'x', want the values of the classes"),
    ([*TRAIN, "--freeze", "body"], "--freeze requires --from CHECKPOINT"),
    ([*TRAIN, "--preview", "none/x.png"], "there is no folder 'none'"),
    ([*TRAIN, "--from", "none.ckpt"], "there is no checkpoint none.ckpt"),
    ([*TRAIN, "--from", "file.ckpt", "--size", "8x"], "--size '8x', want HEIGHTxWIDTH"),
    ([*TRAIN, "--resume", "none.ckpt"], "there is no checkpoint none.ckpt"),
    (["train", "--config", "none.toml"], "there is no file none.toml"),
    (["train", "unet", "--data", "aerial", "--size", "64x64"], "size 64x64: unet accepts images of any size"),
    (["train", "unet", "--data", "aerial", "--set", "width=x"], "width = 'x', want an integer"),
    (["evaluate", "none.ckpt"], "there is no checkpoint none.ckpt"),
    (["evaluate", "none.onnx"], "there is no file none.onnx"),
    (["evaluate", "empty"], "empty is not the folder of a run"),
    (["evaluate", "file.ckpt", "--data", "nowhere"], "data set 'nowhere', want one of: digits, "),
    (["evaluate", "file.ckpt", "--slices", "9,3"], "--slices '9,3', want ascending sides"),
    (["evaluate", "file.ckpt", "--picture", "none/x.png"], "there is no folder 'none'"),
    (["report", "none"], "none is not the folder of a run"),
    (["report", "run", "--data", "nowhere"], "data set 'nowhere', want one of: digits, "),
    (["compare", "run"], "1 run, want at least two"),
    (["compare", "run", "none"], "none is not the folder of a run"),
    (["compare", "run", "run", "--output", "none/x.html"], "cannot write 'none/x.html'"),
    (["compare", "run", "run", "--held-out", "--data", "nowhere"], "data set 'nowhere', want one of: digits, "),
    (["export", "file.ckpt"], "Missing option '--repository'"),
    (["export", "none.ckpt", "--repository", "repository"], "there is no checkpoint none.ckpt"),
    ([*EXPORT, "--name", "A b"], "'A b'"),
    ([*EXPORT, "--data", "nowhere"], "data set 'nowhere', want one of: digits, "),
    ([*EXPORT, "--variant", "fp8"], "'fp32', 'fp16', 'int8'"),
    ([*EXPORT, "--max-drop", "2"], "'--max-drop'"),
    ([*TEMPLATE, "A b"], "'A b'"),
    (["template", "none.png", "--name", "x"], "none.png cannot be read (No such file or directory)"),
    (["inspect", "resnet51"], "architecture 'resnet51', want one of: lenet5, "),
    (["inspect", "none.ckpt"], "there is no checkpoint none.ckpt"),
    (["inspect", "none.onnx"], "'none.onnx': No such file or directory"),
    (["inspect", "photograph.png"], "photograph.png is neither a checkpoint (.ckpt) nor an ONNX file (.onnx)"),
    (["inspect", "lenet5", "--size", "8x"], "--size '8x', want HEIGHTxWIDTH"),
    (["inspect", "lenet5", "--set", "width=8"], "width = '8' is no argument of lenet5, it has none"),
    (["inspect", "lenet5", "--classes", "0"], "'--classes'"),
    *(
        (["visualize", kind, "none.ckpt"], "there is no checkpoint none.ckpt")
        for kind in ("layers", "filters", "class")
    ),
    (["visualize", "layers", "file.ckpt", "--size", "8x"], "--size '8x', want HEIGHTxWIDTH"),
    (["visualize", "filters", "file.ckpt", "--output", "x.jpg"], "want a name that ends in .png"),
    (["visualize", "features", "file.ckpt", "--image", "none.png"], "there is no image 'none.png'"),
    (["visualize", "neurons", "file.ckpt", "--gif", "none/x.gif"], "there is no folder 'none'"),
    (["visualize", "neurons", "file.ckpt", "--space", "time"], "'pixels', 'frequency'"),
    (["visualize", "class", "file.ckpt", "--rate", "2"], "'--rate'"),
    (["visualize", "dream", "file.ckpt", "--image", "photograph.png", "--octaves", "0"], "'--octaves'"),
    (["visualize", "evidence", "file.ckpt", "--image", "photograph.png", "--at", "3"], "--at '3', want ROW,COLUMN"),
    (["adopt", "none.onnx"], "there is no file none.onnx"),
    (["adopt", "empty"], "empty is a folder, want an ONNX file"),
    (["adopt", "file.onnx", "--mean", "x"], "--mean 'x', want numbers"),
    (["adopt", "file.onnx", "--size", "8x"], "--size '8x', want HEIGHTxWIDTH"),
    (["adopt", "file.onnx", "--tail", "tanh"], "'softmax', 'sigmoid', 'argmax', 'none'"),
    (["adopt", "file.onnx", "--labels", "none.txt"], "'none.txt': No such file or directory"),
    (["adopt", "file.onnx", "--repository", "repository", "--name", "A b"], "'A b'"),
    (["adopt-weights", "resnet51", "file.pth"], "architecture 'resnet51', want one of: lenet5, "),
    (["adopt-weights", "resnet50", "none.pth"], "there is no file none.pth"),
    (["adopt-weights", "resnet50", "file.pth", "--labels", "none.txt"], "'none.txt': No such file or directory"),
    (["adopt-weights", "resnet50", "file.pth", "--set", "width=8"], "width = '8' is no argument of resnet50"),
    (["adopt-weights", "deeplab_v3", "file.pth", "--size", "64"], "size 64x64: deeplab_v3 accepts images of any size"),
    (["adopt-weights", "resnet50", "file.pth", "--preprocessing", "x"], "'plain', 'imagenet', 'caffe', 'symmetric'"),
    (["profile", "none.onnx"], "there is no file 'none.onnx'"),
    (["profile", "lenet5"], "there is no model repository 'repository'"),
    (["profile", "file.onnx", "--size", "8x"], "--size '8x', want HEIGHTxWIDTH"),
    (["profile", "file.onnx", "--provider", "tpu"], "'auto', 'cpu', 'cuda'"),
    (["simulate"], "want either --profile FILE or --times"),
    (["simulate", "--times", "x"], "--times 'x', want sizes and milliseconds"),
    (["simulate", "--times", "1:6", "--policy", "x"], "--policy 'x', want one of "),
    (["simulate", "--profile", "none.json"], "none.json is no profile: No such file or directory"),
]

# Runs commands one after the other, and answers for each the exit code, what stood on stderr, and which of the large
# packages it was the first to import.
SCRIPT = """
import contextlib, io, json, sys
from convoy.service import cli
commands, large = json.load(sys.stdin)
answers, before = [], set(large) & set(sys.modules)
for command in commands:
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()) as err:
        code = cli.run(command)
    loaded = set(large) & set(sys.modules)
    answers.append([code, err.getvalue(), sorted(loaded - before)])
    before = loaded
json.dump(answers, sys.stdout)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files with nothing of use in them, and a run."""
    root = tmp_path_factory.mktemp("startup")
    for name in ("file.ckpt", "file.onnx", "file.pth", "photograph.png"):
        (root / name).write_text("nothing")
    (root / "empty").mkdir()
    (root / "run").mkdir()
    settings = Settings(architecture="lenet5", arguments={}, data="digits", recipe=Recipe(epochs=1), seed=0)
    run = RunFolder(root / "run")
    run.last.write_text("nothing")
    run.write(
        Note(settings=settings, source="", complete=True, epochs=1, seconds=1.0, checkpoint="last.ckpt", validation={})
    )
    return root


def answers(
    commands: list[list[str]], folder: Path, large: tuple[str, ...] = LARGE
) -> list[tuple[int, str, list[str]]]:
    given = json.dumps([commands, large])
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], input=given, capture_output=True, text=True, check=True, cwd=folder
    )
    found: list[Any] = json.loads(done.stdout)
    return [(code, said, loaded) for code, said, loaded in found]


def cpu_seconds(code: str, arguments: list[str], folder: Path) -> float:
    """Of a fresh process, all its threads together."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, check=False, cwd=folder)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def is_quick(arguments: list[str], folder: Path, tries: int = TRIES) -> bool:
    """Whether a command takes less than the limit, on this machine as it is now."""
    return any(
        cpu_seconds(COMMAND, arguments, folder) < CPU_SECONDS * max(1, cpu_seconds(FIXED, [], folder) / FIXED_SECONDS)
        for _ in range(tries)
    )


def test_every_command_below_another_is_looked_at(folder: Path) -> None:
    groups = [[name, "no-such-command"] for name in cli.COMMANDS]
    refused = {command[0]: said for command, (_, said, _) in zip(groups, answers(groups, folder), strict=True)}
    assert {name for name, said in refused.items() if "No such command" in said} == set(BELOW)


def test_help_imports_nothing_large(folder: Path) -> None:
    for command, (code, said, loaded) in zip(HELP, answers(HELP, folder, LARGE + MEDIUM), strict=True):
        assert (command, code, said, loaded) == (command, 0, "", [])


def test_refusal_that_needs_no_content_imports_nothing_large(folder: Path) -> None:
    commands = [command for command, _ in REFUSALS]
    for (command, wanted), (code, said, loaded) in zip(REFUSALS, answers(commands, folder), strict=True):
        assert (command, code, said.count("\n"), loaded) == (command, 2, 1, [])
        assert wanted in said, command


def test_large_import_would_be_seen(folder: Path) -> None:
    (_, _, before), (code, _, loaded) = answers([["inspect", "resnet51"], ["inspect", "lenet5"]], folder)
    assert (before, code) == ([], 0)
    assert {"torch", "onnx"} <= set(loaded)


@pytest.mark.parametrize("leaf", LEAVES, ids=" ".join)
def test_help_and_refusal_cost_less_than_half_a_second(leaf: list[str], folder: Path) -> None:
    for option in ("--help", "--quux"):
        assert is_quick([*leaf, option], folder), option


@pytest.mark.parametrize(
    "command",
    [
        ["train", "lenet6", "--data", "digits"],
        ["train", "lenet5", "--data", "nowhere"],
        ["inspect", "resnet51"],
        ["adopt", "none.onnx"],
        [*EXPORT, "--data", "nowhere"],
        ["visualize", "evidence", "file.ckpt", "--image", "none.png"],
    ],
    ids=" ".join,
)
def test_misspelt_name_costs_less_than_half_a_second(command: list[str], folder: Path) -> None:
    assert is_quick(command, folder)


def test_large_import_costs_more_than_that(folder: Path) -> None:
    assert not is_quick(["inspect", "lenet5"], folder, tries=2)
