"""The help of every command: its example, and words instead of types and inequalities."""

import re
import shlex
from collections.abc import Iterator

import pytest

from convoy.service import cli
from convoy.service.commands.examples import EXAMPLES


def paths() -> Iterator[tuple[str, ...]]:
    """Every command and subcommand."""
    for name in cli.COMMANDS:
        yield (name,)
        yield from ((name, below) for below in getattr(cli.load(name), "commands", {}))


PATHS = [*paths()]
NAMES = [" ".join(path) for path in PATHS]


def test_examples_are_of_the_commands_that_are_there() -> None:
    assert set(EXAMPLES) == set(NAMES)


@pytest.mark.parametrize("path", PATHS, ids=NAMES)
def test_help_ends_with_an_example(capsys: pytest.CaptureFixture[str], path: tuple[str, ...]) -> None:
    assert cli.run([*path, "--help"]) == 0
    *_, heading, example = capsys.readouterr().out.rstrip("\n").split("\n")
    assert (heading, example) == ("Example:", f"  {EXAMPLES[' '.join(path)]}")
    assert len(example) <= 80


@pytest.mark.parametrize("name", NAMES)
def test_example_is_accepted(name: str) -> None:
    """All of its words are: commands, options, and values of the right kinds."""
    convoy, command, *rest = shlex.split(re.sub(r"\s>>?\s.*", "", EXAMPLES[name]))
    assert (convoy, command) == ("convoy", name.split(maxsplit=1)[0])
    loaded = cli.load(command)
    if hasattr(loaded, "commands"):
        loaded, *rest = loaded.commands[rest[0]], *rest[1:]
    with loaded.make_context(command, rest) as context:
        assert set(context.params) == {parameter.name for parameter in loaded.params if parameter.expose_value}


def test_example_with_an_option_that_is_not_there_would_be_found() -> None:
    with pytest.raises(Exception, match="No such option: --tops"):
        cli.load("classify").make_context("classify", ["photos", "--tops", "1"])


@pytest.mark.parametrize("path", PATHS, ids=NAMES)
def test_help_is_in_words_and_fits(capsys: pytest.CaptureFixture[str], path: tuple[str, ...]) -> None:
    cli.run([*path, "--help"])
    text = capsys.readouterr().out
    assert not re.findall(r"<=|>=|\w<|<\w+\[|<path>|<str>|\[\[|\.\.\.\.|\{\w", text)
    assert not re.findall(r"\w\.\.\.$", text.split("Options:")[-1], re.MULTILINE)  # a summary that was cut
    assert max(map(len, text.splitlines())) <= 80


def test_overview_has_every_command_once(capsys: pytest.CaptureFixture[str]) -> None:
    cli.run(["--help"])
    text = capsys.readouterr().out
    listed = re.findall(r"^  ([a-z-]+) ", text, re.MULTILINE)
    assert sorted(listed) == sorted(cli.COMMANDS)
    assert [line.rstrip(":") for line in text.splitlines() if line.endswith(":")] == [*cli.GROUPS, "Other"]


def test_times_are_given_and_shown_with_their_unit(capsys: pytest.CaptureFixture[str]) -> None:
    cli.run(["bench", "--help"])
    assert capsys.readouterr().out.count("[default: 10s]") == 2
    cli.run(["simulate", "--help"])
    text = capsys.readouterr().out
    assert "--max-queue-delay TIME" in text
    assert "[default: 5ms]" in text
    assert "[default: 100ms]" in text


def test_ranges_are_in_words(capsys: pytest.CaptureFixture[str]) -> None:
    cli.run(["bench", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert "[default: 1; 1 to 64]" in text
    assert "[default: 0; 0 or more]" in text
