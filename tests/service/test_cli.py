import contextlib
import os
import subprocess
import sys
import tempfile
import types
from pathlib import Path
from typing import Annotated

import pytest
import typer

from convoy.service import cli
from convoy.service.errors import BadConfig
from convoy.service.supervisor import processes

ROOT = Path(cli.__file__).parents[1]
SERVING = sorted(name for name, command in cli.COMMANDS.items() if command.module.startswith("convoy.service."))
TRAINING_PACKAGES = ("torch", "onnx", "lightning", "sklearn", "convoy.models")


def loaded_by(statement: str) -> set[str]:
    """Which of the training packages a fresh interpreter has loaded after `statement`."""
    code = f"import sys\nfrom convoy.service import cli\n{statement}\nprint('\\n', *sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    return set(TRAINING_PACKAGES) & set(done.stdout.splitlines()[-1].split())


@pytest.fixture
def command(monkeypatch):
    """Makes a function a command of `convoy`."""

    def add(function):
        name = function.__name__
        module = types.ModuleType(f"convoy.service.commands.{name}")
        setattr(module, name, function)
        monkeypatch.setitem(sys.modules, module.__name__, module)
        monkeypatch.setitem(cli.COMMANDS, name, cli.Command(module.__name__, "For a test"))

    return add


def one_line(capsys) -> str:
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    return err


def test_serving_commands_are_all_found():
    assert {"classify", "segment", "models", "bench"} <= set(SERVING)


@pytest.mark.parametrize("name", SERVING)
def test_serving_command_loads_no_training_package(name):
    assert loaded_by(f"assert cli.run([{name!r}, '--help']) == 0") == set()


def test_a_training_package_that_is_loaded_would_be_seen():
    assert loaded_by("import convoy.models; import onnx") == {"convoy.models", "onnx"}


def test_overview_names_every_command_and_imports_none():
    code = (
        "import sys\nfrom convoy.service import cli\ncli.run(['--help'])\n"
        "print([m for m in sys.modules if '.commands.' in m])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.splitlines()[-1] == "[]"
    for name, command in cli.COMMANDS.items():
        assert any(line.split() == [name, *command.summary.split()] for line in done.stdout.splitlines())


def test_console_script_is_main():
    script = Path(sys.executable).with_name("convoy")
    done = subprocess.run([script, "--version"], capture_output=True, text=True, check=True)
    assert (done.stdout.split()[0], done.stderr) == ("convoy", "")


def unread() -> int:
    """A pipe that nobody reads. A process that another thread has just forked may have its reader for a moment."""
    reader, writer = os.pipe()
    os.close(reader)
    with contextlib.suppress(BrokenPipeError):
        while os.write(writer, b"x"):
            pass
    return writer


@pytest.mark.parametrize("arguments", [["--help"], ["simulate", "--times", "1:6", "--requests", "10", "--json"]])
def test_reader_that_goes_early_is_no_error_to_tell(arguments):
    writer = unread()
    script = Path(sys.executable).with_name("convoy")
    done = subprocess.run([script, *arguments], stdout=writer, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writer)
    assert (done.returncode, done.stderr) == (1, "")


@pytest.mark.parametrize("arguments", [["--help"], ["simulate", "--times", "1:6", "--requests", "10", "--json"]])
def test_full_disk_behind_standard_output_is_one_line(arguments):
    script = Path(sys.executable).with_name("convoy")
    with Path("/dev/full").open("w") as output:
        done = subprocess.run([script, *arguments], stdout=output, stderr=subprocess.PIPE, text=True, check=False)
    said = "convoy: standard output cannot be written: No space left on device\n"
    assert (done.returncode, done.stderr) == (2, said)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "no command, want one of serve, "),
        (["clasify"], "did you mean 'classify'?"),
        (["--verison"], "did you mean '--version'?"),
        (["quux"], "see 'convoy --help'"),
        (["classify"], "Missing argument 'IMAGE|FOLDER'"),
        (["classify", "a.png", "--modle", "x"], "did you mean '--model'?"),
        (["classify", "a.png", "--quux"], "see 'convoy classify --help'"),
        (["classify", "a.png", "--top-k", "many"], "'--top-k'"),
        (["classify", "a.png", "--top-k", "0"], "'--top-k'"),
        (["classify", "a.png", "--top-k", "99999999999"], "'--top-k'"),
        (["segment", "a.png"], "'--output'"),
        (["segment", "a.png", "-o", "b.png", "--format", "gif"], "'raw', 'png', 'rle'"),
        (["bench", "--model", "x"], "want either --concurrency N"),
        (["bench", "--model", "x", "--rate", "1", "--concurrency", "1"], "want either --concurrency N"),
    ],
)
def test_what_cannot_be_done_as_asked_is_one_line_and_exit_code_2(capsys, arguments, said):
    assert cli.run(arguments) == 2
    assert said in one_line(capsys)


def test_error_of_ours_is_one_line_even_where_its_message_has_several(capsys, command):
    def failing() -> None:
        raise BadConfig("port is\n  70000, want 0 to 65535")

    command(failing)
    assert cli.run(["failing"]) == 2
    assert one_line(capsys) == "convoy failing: port is 70000, want 0 to 65535\n"


def test_file_that_cannot_be_written_is_one_line_that_names_it(capsys, command, tmp_path):
    (tmp_path / "file").write_text("")

    def store() -> None:
        (tmp_path / "file" / "below").mkdir()

    command(store)
    assert cli.run(["store"]) == 2
    assert one_line(capsys) == f"convoy store: '{tmp_path}/file/below': Not a directory\n"


@pytest.mark.parametrize(
    ("value", "wanted"), [("11", "less than or equal to 10"), ("many", "a valid integer, unable to parse string as an")]
)
def test_number_out_of_range_is_named_with_what_was_wanted(command, capsys, value, wanted):
    def count(number: Annotated[int, typer.Option("--number", max=10)] = 0) -> None: ...

    command(count)
    assert cli.run(["count", "--number", value]) == 2
    assert one_line(capsys).startswith(f"convoy count: Invalid value for '--number': {value!r}, want {wanted}")


@pytest.fixture
def group(monkeypatch):
    """`convoy group`, a command with two further ones below it."""
    app = typer.Typer(add_completion=False, rich_markup_mode=None)

    @app.command()
    def first(number: Annotated[int, typer.Option("--number")] = 0) -> None:
        raise typer.Exit(number)

    @app.command()
    def second() -> None:
        raise BadConfig("no")

    module = types.ModuleType("convoy.service.commands.group")
    module.group = app
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setitem(cli.COMMANDS, "group", cli.Command(module.__name__, "For a test"))


@pytest.mark.usefixtures("group")
def test_command_below_a_command_runs_with_its_own_options():
    assert cli.run(["group", "first", "--number", "5"]) == 5


@pytest.mark.usefixtures("group")
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "convoy group: Missing command; see 'convoy group --help'\n"),
        (["frist"], "convoy group: No such command 'frist'. Did you mean 'first'?\n"),
        (["first", "--number", "x"], "see 'convoy group first --help'\n"),
        (["first", "--numbr", "1"], "did you mean '--number'?\n"),
        (["second"], "convoy group: no\n"),
    ],
)
def test_what_a_command_below_a_command_refuses_is_one_line(capsys, arguments, said):
    assert cli.run(["group", *arguments]) == 2
    assert one_line(capsys).endswith(said)


def test_exit_code_and_arguments_reach_and_leave_the_command(command):
    def leaving(code: Annotated[int, typer.Option("--code")] = 0) -> None:
        raise typer.Exit(code)

    command(leaving)
    assert (cli.run(["leaving"]), cli.run(["leaving", "--code", "7"])) == (0, 7)


def test_interrupted_command_is_silent_and_exits_130(capsys, command):
    def waiting() -> None:
        raise KeyboardInterrupt

    command(waiting)
    assert cli.run(["waiting"]) == 130
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("missing", ["torch", "convoy.models", "lightning.pytorch"])
def test_training_command_without_its_packages_says_what_to_install(capsys, monkeypatch, missing):
    monkeypatch.setattr(cli.importlib, "import_module", _not_found(missing))
    assert cli.run(["train"]) == 2
    assert one_line(capsys) == "convoy train: needs the training packages: install convoy[train]\n"


def test_package_that_is_missing_once_the_options_are_checked_is_told_likewise():
    start = "import sys\nsys.modules['torch'] = None\nfrom convoy.service import cli\n"
    code = start + "sys.exit(cli.run(['inspect', 'lenet5']))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT)
    said = "convoy inspect: needs the training packages: install convoy[train]\n"
    assert (done.returncode, done.stdout, done.stderr) == (2, "", said)


def test_load_generator_without_its_packages_says_what_to_install():
    start = "import sys\nsys.modules['hdrh'] = None\nfrom convoy.service import cli\n"
    code = start + "sys.exit(cli.run(['bench', '--model', 'x', '--rate', '1']))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT)
    said = "convoy bench: needs the packages of the load generator: install convoy[bench]\n"
    assert (done.returncode, done.stdout, done.stderr) == (2, "", said)


@pytest.mark.parametrize(("name", "missing"), [("train", "convoy.models.trian"), ("classify", "grpc")])
def test_other_missing_modules_are_not_taken_for_training_packages(monkeypatch, name, missing):
    monkeypatch.setattr(cli.importlib, "import_module", _not_found(missing))
    assert cli.run([name]) == 70


def _not_found(name):
    def import_module(path):
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    return import_module


@pytest.mark.parametrize(
    "error", [KeyError("x"), RecursionError("too deep"), UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad")]
)
def test_what_nobody_has_thought_of_is_one_line(command, capsys, error):
    def surprising() -> None:
        raise error

    command(surprising)
    assert cli.run(["surprising"]) == 70
    line = one_line(capsys)
    assert line.startswith(f"convoy surprising: unexpected {type(error).__name__}")
    assert "CONVOY_TRACEBACK=1" in line


def test_traceback_is_there_for_who_asks_for_it(command, monkeypatch):
    def surprising() -> None:
        raise KeyError("x")

    command(surprising)
    monkeypatch.setenv("CONVOY_TRACEBACK", "1")
    with pytest.raises(KeyError):
        cli.run(["surprising"])


def test_error_of_the_system_without_a_file_is_one_line(command, capsys):
    def starving() -> None:
        raise OSError(24, "Too many open files")

    command(starving)
    assert cli.run(["starving"]) == 2
    assert one_line(capsys) == "convoy starving: Too many open files\n"


def test_counts_are_kept_in_memory_unless_told_otherwise(monkeypatch, tmp_path):
    def none() -> str:
        raise FileNotFoundError("No usable temporary directory found")

    memory = tmp_path / "memory"
    memory.mkdir()
    monkeypatch.delenv("TMPDIR", raising=False)
    assert processes._writable(memory) == str(memory)
    assert processes._writable(tmp_path / "none") == tempfile.gettempdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "gettempdir", lambda: str(tmp_path))
    assert processes._writable(memory) == str(tmp_path)
    monkeypatch.setattr(tempfile, "gettempdir", none)
    assert processes._writable(memory) == str(memory)
    with pytest.raises(BadConfig, match="set TMPDIR to one, or mount one"):
        processes._writable(tmp_path / "none")


def test_drawing_says_nothing_of_a_home_that_cannot_be_written():
    environment = {"PATH": os.environ["PATH"], "HOME": "/proc", "PYTHONPATH": str(ROOT)}
    code = "import sys; sys.argv = ['convoy', '--version']\nfrom convoy.service import cli\n"
    code += "try: cli.main()\nexcept SystemExit: pass\nimport matplotlib.pyplot"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert done.stderr == ""
