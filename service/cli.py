"""The `convoy` command: imports the chosen command's module, and turns errors into one line and an exit code."""

import codecs
import difflib
import errno
import importlib
import importlib.util
import io
import logging
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from convoy.service import descriptors
from convoy.service.errors import ConvoyError
from convoy.service.supervisor import processes

if TYPE_CHECKING:
    from typer import Typer
    from typer.exceptions import TyperException


class Command(NamedTuple):
    """The module of a command, and its summary.

    The function in the module has the command's name with _ for -. A Typer app of that name has subcommands.
    """

    module: str
    summary: str


COMMANDS = {
    "serve": Command("convoy.service.commands.server", "Serve an ONNX file or a model repository"),
    "check": Command("convoy.service.commands.check", "Try the models of a repository without serving them"),
    "config": Command("convoy.service.commands.configuration", "Print the configuration in force, and its origin"),
    "classify": Command("convoy.service.commands.classify", "Classify images: ranked labels from a server"),
    "segment": Command("convoy.service.commands.segment", "Segment an image: a class for every pixel, from a server"),
    "score": Command(
        "convoy.service.commands.score", "Score any number of images with a file or a server, into Parquet"
    ),
    "locate": Command("convoy.service.commands.locate", "Locate a template in pictures"),
    "models": Command("convoy.service.commands.server", "List what a server serves"),
    "health": Command("convoy.service.commands.server", "Check whether a server is healthy, by exit code"),
    "top": Command("convoy.service.commands.top", "Watch a running server: rates, latency, queues, refusals"),
    "token": Command("convoy.service.commands.token", "Create a token for a caller of a server"),
    "profile": Command("convoy.service.commands.profile_model", "Measure batch times of a model on this machine"),
    "simulate": Command("convoy.service.commands.simulate", "Simulate the scheduler under a load, on a virtual clock"),
    "bench": Command("convoy.service.commands.bench", "Load a server and measure its answers"),
    "data": Command("convoy.models.commands.data", "Check a data set, or cut one from a large raster"),
    "train": Command("convoy.models.commands.train", "Train a network"),
    "evaluate": Command("convoy.models.commands.evaluate", "Measure a trained network on its held-out images"),
    "report": Command("convoy.models.commands.reports", "Rewrite the pictures, tables and page of a run"),
    "compare": Command("convoy.models.commands.reports", "Show runs side by side: costs, scores, curves"),
    "export": Command("convoy.models.commands.export", "Export a trained network into a model repository"),
    "template": Command("convoy.models.commands.template", "Create a model that locates a picture inside others"),
    "inspect": Command(
        "convoy.models.commands.inspect_file", "Show the layers of a network: shapes, costs, receptive fields"
    ),
    "visualize": Command("convoy.models.commands.visualize", "Draw what a trained network has learned and looks at"),
    "adopt": Command("convoy.models.commands.adopt", "Make an ONNX file accept images and describe itself"),
    "adopt-weights": Command("convoy.models.commands.adopt_weights", "Import weights that Keras or torchvision saved"),
    "completion": Command("convoy.service.commands.completion", "Print a script by which a shell completes commands"),
}
# The overview's headings; a command that is under none of them comes last.
GROUPS = {
    "Serve": ("serve", "check", "config", "models", "health", "top", "token"),
    "Ask a server": ("classify", "segment", "locate"),
    "Score in bulk": ("score",),
    "Train and export": ("data", "train", "evaluate", "export", "template", "adopt", "adopt-weights"),
    "Look inside": ("inspect", "visualize", "report", "compare"),
    "Measure": ("bench", "profile", "simulate"),
}


# What stands for characters of the tables and bars where they cannot be encoded; each as wide.
_SIMILAR = {**dict.fromkeys("█▉▊▋▌▀", "#"), **dict.fromkeys("▍▎▏", " "), "·": "-", "×": "x", "…": "~", "−": "-"}
_TRACEBACK = "CONVOY_TRACEBACK"  # environment variable: unexpected errors are shown with Python's traceback
_MOST = 1500  # characters of an error message
_SERVER = (
    "uvloop",
    "prometheus_client",
    "simplejpeg",
    "watchfiles",
    "grpc_reflection",
    "uvicorn",
    "httptools",
    "python_multipart",
    "onnxruntime",
)
_NO_SERVER = "needs the packages of the server: install convoy[cpu] or convoy[cuda]"


def main() -> None:
    _fill_standard_streams()
    _accept_every_character()
    # onnxruntime on Linux sends usage data unless this is set before its import, here or in a child process.
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    # A folder that belongs to another program: prometheus_client would write our metrics there.
    for name in ("PROMETHEUS_MULTIPROC_DIR", "prometheus_multiproc_dir"):
        os.environ.pop(name, None)
    # Without a writable home, matplotlib warns twice in every command that draws; it then works without its cache.
    logging.getLogger("matplotlib").setLevel(logging.ERROR)
    if sys.argv[1:2] == ["serve"] and "--help" not in sys.argv:
        processes.hold_back()
        # First of all: importing the command-line parser takes a tenth of a second.
        try:
            _check_server()
            descriptors.raise_limit()
            descriptors.check()
            processes.current().start_ahead()
        except ConvoyError as error:
            sys.exit(_refuse("convoy serve", error.message))
    try:
        code = run(sys.argv[1:])
        print(end="", flush=True)  # here, where a failure can be reported, not when Python ends
        sys.exit(code)
    except BrokenPipeError:
        code = 1  # the reader has closed the pipe, as `head` does
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        code = _refuse("convoy", f"standard output cannot be written: {error.strerror}")
    # Python would try again to write what is left.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(code)


def _fill_standard_streams() -> None:
    """Opens /dev/null in place of standard streams that are closed.

    Otherwise sockets would get their numbers, and child processes would write messages to them.
    """
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest free number
    # Python has none where the descriptor was closed.
    if sys.stdout is None:
        sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
    if sys.stderr is None:
        sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115


def _accept_every_character() -> None:
    """Lets standard output replace what its encoding lacks: an old locale is no reason to fail."""
    codecs.register_error("convoy", _replaced)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="convoy")


def _replaced(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end]
    return "".join(_SIMILAR.get(character, "?") for character in text), error.end


def run(arguments: Sequence[str]) -> int:
    """Run `convoy` with these arguments and return its exit code.

    0: done. 1: the command reports a partial failure. 2: it cannot be done; one line on stderr states the reason. 70:
    an internal error, also in one line. 130: interrupted.
    """
    name = arguments[0] if arguments else None
    if name in ("--help", "-h"):
        print(_overview())
        return 0
    if name == "--version":
        from importlib.metadata import version  # noqa: PLC0415  no other command waits for it

        print(f"convoy {version('convoy')}")
        return 0
    if name not in COMMANDS:
        return _refuse("convoy", _unknown(name))
    from typer.exceptions import TyperException  # noqa: PLC0415  see `main`

    try:
        return _call(name, arguments[1:])
    except KeyboardInterrupt:
        return 130
    except ConvoyError as error:
        return _refuse(f"convoy {name}", error.message)
    except OSError as error:
        if error.filename is None:
            if error.errno in (errno.EPIPE, errno.ENOSPC):  # of standard output: see `main`
                raise
            return _refuse(f"convoy {name}", error.strerror or str(error))
        # A file that cannot be read or written: the system's message says what to do about it.
        return _refuse(f"convoy {name}", f"{str(error.filename)!r}: {error.strerror}")
    except TyperException as error:
        return _refuse(f"convoy {name}", _describe(error, name))
    except Exception as error:  # the end of a command: even an unexpected error is reported in one line
        if os.environ.get(_TRACEBACK):
            raise
        where = traceback.extract_tb(error.__traceback__)[-1]
        what = f"{type(error).__name__}: {error} ({Path(where.filename).name}, line {where.lineno})"
        _refuse(f"convoy {name}", f"unexpected {what[:500]}; {_TRACEBACK}=1 shows all of it")
        return 70


def _call(name: str, arguments: Sequence[str]) -> int:
    try:
        result = load(name).main(list(arguments), prog_name=f"convoy {name}", standalone_mode=False)
    except ModuleNotFoundError as error:  # from the command's module, or from an import after its options are checked
        raise _missing(COMMANDS[name].module, error) from None
    return result if isinstance(result, int) else 0


def load(name: str) -> Any:
    """The command of a name, as Typer runs it. Raises ModuleNotFoundError where its packages are not installed."""
    import typer  # noqa: PLC0415  see `main`

    from convoy.service.commands.options import Sections  # noqa: PLC0415

    target: Callable[..., None] | Typer = getattr(
        importlib.import_module(COMMANDS[name].module), name.replace("-", "_")
    )
    # Plain help: with markup, a word in brackets such as convoy[train] would vanish.
    app = target if isinstance(target, typer.Typer) else typer.Typer(add_completion=False, rich_markup_mode=None)
    if app is not target:
        app.command(name, cls=Sections)(target)
    return typer.main.get_command(app)


def _check_server() -> None:
    """Raises ConvoyError if only the client is installed."""
    if any(importlib.util.find_spec(name) is None for name in _SERVER):
        raise ConvoyError(_NO_SERVER)


def _missing(module: str, error: ModuleNotFoundError) -> Exception:
    """The error to report for a missing package; the error itself if it is a bug."""
    package = error.name or ""
    if package.partition(".")[0] in _SERVER:
        return ConvoyError(_NO_SERVER)
    # The load generator's histogram package, which the serving image does not contain.
    if package.partition(".")[0] == "hdrh":
        return ConvoyError("needs the packages of the load generator: install convoy[bench]")
    # With the serving packages alone, `convoy.models` or its dependencies are missing. A missing module of Convoy is
    # a bug.
    if not module.startswith("convoy.models.") or package.startswith(("convoy.models.", "convoy.service")):
        return error
    return ConvoyError("needs the training packages: install convoy[train]")


def _overview() -> str:
    grouped = {name for names in GROUPS.values() for name in names}
    groups = {**GROUPS, "Other": tuple(name for name in COMMANDS if name not in grouped)}
    width = max(map(len, COMMANDS))
    lines = [
        "Usage: convoy COMMAND [OPTIONS]",
        "",
        "Serves convolutional networks over gRPC and HTTP: image classification and segmentation, in batches.",
    ]
    for group, names in groups.items():
        rows = [f"  {name:<{width}}  {COMMANDS[name].summary}" for name in names if name in COMMANDS]
        if rows:
            lines += ["", f"{group}:", *rows]
    lines += ["", "'convoy COMMAND --help' lists a command's options, 'convoy --version' prints the version."]
    return "\n".join(lines)


def _unknown(name: str | None) -> str:
    if name is None:
        return f"no command, want one of {', '.join(COMMANDS)}; see 'convoy --help'"
    kind = "option" if name.startswith("-") else "command"
    close = difflib.get_close_matches(name, [*COMMANDS, "--help", "--version"], n=1)
    return f"no {kind} {name!r}; " + (f"did you mean {close[0]!r}?" if close else "see 'convoy --help'")


def _describe(error: "TyperException", name: str) -> str:
    close = getattr(error, "possibilities", None)  # only for an unknown option
    if close:
        return f"{error.message}; did you mean {close[0]!r}?"
    # Typer passes on its validator's message, which names the Python exception.
    message = error.format_message().replace("Value error, ", "").rstrip(".")
    message = message.replace("Input should be", f"{_rejected_value(error)!r}, want", 1)
    # For a subcommand, the help that lists the option.
    path = getattr(getattr(error, "ctx", None), "command_path", f"convoy {name}")
    return message if message.endswith("?") else f"{message}; see '{path} --help'"


def _rejected_value(error: "TyperException") -> object:
    errors = getattr(error.__cause__, "errors", None)
    return errors()[0]["input"] if errors is not None else "the value"


def _refuse(who: str, message: str) -> int:
    words = " ".join(message.split())
    if len(words) > _MOST:  # may contain text from a file: its beginning and end are enough
        words = f"{words[: _MOST - 300]} ... {words[-290:]}"
    print(f"{who}: {words}", file=sys.stderr)
    return 2
