"""What docs/inside.md tells a user to type can be typed, and its pictures are there."""

import re
import shlex
from pathlib import Path

import pytest
import typer

from convoy.models.commands.visualize import visualize

PAGE = Path(__file__).parents[3] / "docs" / "inside.md"
COMMANDS = re.findall(r"^    convoy visualize (.*)$", PAGE.read_text(), re.MULTILINE)


def test_page_shows_every_kind_of_picture() -> None:
    assert {line.split()[0] for line in COMMANDS} == {"filters", "features", "neurons", "class", "dream", "evidence"}


@pytest.mark.parametrize("line", COMMANDS)
def test_command_of_the_page_is_taken(line: str) -> None:
    name, *words = shlex.split(line)
    command = typer.main.get_command(visualize).commands[name]  # type: ignore[attr-defined]
    given = command.make_context(name, [*words]).params
    assert given["checkpoint"].is_relative_to(words[0])


def test_pictures_of_the_page_are_there_and_small() -> None:
    shown = {PAGE.parent / path for path in re.findall(r"\]\((inside/[^)]+)\)", PAGE.read_text())}
    assert shown == set((PAGE.parent / "inside").iterdir())
    assert sum(path.stat().st_size for path in shown) < 600_000
