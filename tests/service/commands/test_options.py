"""A command with many options lists them under headings."""

from typing import Annotated

import pytest
import typer

from convoy.service.commands.options import Sections, duration, shown


def _blocks(text: str) -> dict[str, str]:
    """What stands under each heading."""
    blocks = [block.partition(":\n") for block in text.split("\n\n")]
    return {heading.strip(): rows for heading, colon, rows in blocks if colon}


def test_options_stand_under_their_heading_and_the_others_under_options() -> None:
    def command(
        name: Annotated[str, typer.Argument(help="Of what.")],
        seed: Annotated[int, typer.Option(help="Of all.")] = 0,
        epochs: Annotated[int, typer.Option(help="How often.", rich_help_panel="Steps")] = 1,
    ) -> None: ...

    app = typer.Typer(add_completion=False, rich_markup_mode=None)
    app.command(cls=Sections)(command)
    formatted = typer.main.get_command(app)
    context = formatted.make_context("command", ["x"])
    shown = _blocks(formatted.get_help(context))
    assert "NAME" in shown["Arguments"].upper()
    assert "--seed" in shown["Options"]
    assert "--help" in shown["Options"]
    assert "--epochs" in shown["Steps"]
    assert "--epochs" not in shown["Options"]


def test_command_without_arguments_has_no_empty_heading() -> None:
    def command(seed: Annotated[int, typer.Option(help="Of all.")] = 0) -> None: ...

    app = typer.Typer(add_completion=False, rich_markup_mode=None)
    app.command(cls=Sections)(command)
    formatted = typer.main.get_command(app)
    assert "Arguments" not in formatted.get_help(formatted.make_context("command", []))


@pytest.mark.parametrize(
    ("given", "seconds"),
    [("500ms", 0.5), ("2s", 2), ("2", 2), (".5", 0.5), ("1.5min", 90), ("1h", 3600), ("250us", 0.00025), (30.0, 30)],
)
def test_time_is_a_number_with_a_unit(given: str | float, seconds: float) -> None:
    assert duration(0)(given) == pytest.approx(seconds)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("", "want a time such as 500ms or 2s"),
        ("fast", "want a time such as"),
        ("-1", "want a time such as"),
        ("1e3", "want a time such as"),
        ("1 day", "want a time such as"),
        ("nan", "want a time such as"),
        ("99us", "want at least 100ms"),
        ("2h", "want at most 3600s"),
    ],
)
def test_other_times_are_refused(given: str, said: str) -> None:
    with pytest.raises(typer.BadParameter, match=said):
        duration(0.1, 3600)(given)


def test_time_is_shown_as_it_is_given() -> None:
    for seconds in (0, 0.0001, 0.05, 1, 90, 2.5):
        assert duration(0)(shown(seconds)) == pytest.approx(seconds)
