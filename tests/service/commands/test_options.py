"""A command with many options lists them under headings."""

from typing import Annotated

import typer

from convoy.service.commands.options import Sections


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
