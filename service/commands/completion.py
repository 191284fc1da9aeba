"""`convoy completion`: scripts by which bash, zsh and fish complete commands, options and their choices.

A script contains all it needs: completing starts no Python. It is that of the packages installed now.
"""

import shlex
from collections.abc import Callable, Iterator
from typing import Annotated, Any, Literal, NamedTuple

import typer

Shell = Literal["bash", "zsh", "fish"]


class Option(NamedTuple):
    """An option with its names, such as -o and --output. Without `takes_value` it is a switch."""

    names: tuple[str, ...]
    text: str
    takes_value: bool
    choices: tuple[str, ...]


class Word(NamedTuple):
    """A command or a subcommand, `path` its words after `convoy`."""

    path: tuple[str, ...]
    text: str
    options: tuple[Option, ...]
    below: tuple[str, ...] = ()  # its subcommands
    values: tuple[str, ...] = ()  # of its argument, if it is one of a few


def completion(
    shell: Annotated[Shell, typer.Argument(metavar="bash|zsh|fish", help="Which shell.")],
) -> None:
    """Print a script that makes a shell complete Convoy's commands, options and choices.

    \b
    Where to save it:
      bash  ~/.local/share/bash-completion/completions/convoy
      zsh   _convoy, in a folder of $fpath
      fish  ~/.config/fish/completions/convoy.fish
    For the current shell only:  source <(convoy completion bash)
    """
    typer.echo(SCRIPTS[shell](list(words())), nl=False)


def words() -> Iterator[Word]:
    """Every command whose packages are installed, and its subcommands."""
    from convoy.service import cli

    for name, command in cli.COMMANDS.items():
        try:
            loaded = cli.load(name)
        except ModuleNotFoundError:
            yield Word((name,), command.summary, ())
            continue
        below = getattr(loaded, "commands", {})
        yield Word((name,), command.summary, _options(loaded), tuple(below), _values(loaded))
        for other, each in below.items():
            yield Word((name, other), each.get_short_help_str(60), _options(each), (), _values(each))


def bash(words: list[Word]) -> str:
    cases, choices = [], []
    for word in words:
        names = [*word.below, *word.values, *_names(word)]
        cases.append(f"    '{' '.join(word.path)}') words='{' '.join(names)}' ;;")
        choices += [
            f"    '{' '.join((*word.path, name))}') words='{' '.join(option.choices)}' ;;"
            for option in word.options
            for name in option.names
            if option.choices
        ]
    groups = "|".join(word.path[0] for word in words if word.below)
    # An empty answer leaves the word to bash, which completes file names.
    return f"""\
# bash completion for convoy
_convoy() {{
  local current="${{COMP_WORDS[COMP_CWORD]}}" previous="${{COMP_WORDS[COMP_CWORD-1]}}"
  local command="${{COMP_WORDS[1]}}" words=''
  COMPREPLY=()
  if (( COMP_CWORD == 1 )); then
    COMPREPLY=($(compgen -W '{" ".join([*_top(words), "--help", "--version"])}' -- "$current"))
    return
  fi
  case "$command" in
    {groups}) (( COMP_CWORD > 2 )) && command="$command ${{COMP_WORDS[2]}}" ;;
  esac
  case "$command $previous" in
{chr(10).join(choices)}
  esac
  if [[ -z $words ]]; then
    case "$command" in
{chr(10).join(cases)}
    esac
    # Options only where one is begun: elsewhere a file's name may be wanted.
    [[ $current == -* || $words != -* ]] || return
  fi
  COMPREPLY=($(compgen -W "$words" -- "$current"))
}}
complete -o default -F _convoy convoy
"""


def zsh(words: list[Word]) -> str:
    def described(name: str, text: str) -> str:
        return shlex.quote(f"{name}:{text}".replace("\n", " "))

    cases = []
    for word in words:
        lines = [f"    {shlex.quote(' '.join(word.path))})"]
        lines += [
            f"      case $previous in {'|'.join(option.names)}) compadd -- {' '.join(option.choices)}; return ;; esac"
            for option in word.options
            if option.choices
        ]
        options = " ".join(described(name, option.text) for option in word.options for name in option.names)
        lines.append(f"      options=({options})")
        if word.values:
            lines.append(f"      compadd -- {' '.join(word.values)}")
        cases.append("\n".join([*lines, "      ;;"]))
    top = " ".join(described(word.path[0], word.text) for word in words if len(word.path) == 1)
    groups = [word for word in words if word.below]
    below = "\n".join(
        f"    {group.path[0]}) found=("
        + " ".join(described(word.path[1], word.text) for word in words if word.path[:-1] == group.path)
        + ") ;;"
        for group in groups
    )
    return f"""\
#compdef convoy
_convoy() {{
  local -a found options
  local command=$words[2] previous=$words[CURRENT-1]
  if (( CURRENT == 2 )); then
    found=({top})
    _describe command found
    return
  fi
  case $command in
{below}
  esac
  if (( CURRENT == 3 && $#found )); then
    _describe command found
    return
  fi
  (( $#found )) && command="$command $words[3]"
  case $command in
{chr(10).join(cases)}
  esac
  if [[ $PREFIX == -* ]]; then
    _describe -o option options
  else
    _files
  fi
}}
if [[ $funcstack[1] == _convoy ]]; then _convoy "$@"; else compdef _convoy convoy; fi
"""


def fish(words: list[Word]) -> str:
    lines = ["# fish completion for convoy"]
    top = " ".join(_top(words))
    lines += [
        f"complete -c convoy -n 'not __fish_seen_subcommand_from {top}' -f -a {word.path[0]} -d {_fish(word.text)}"
        for word in words
        if len(word.path) == 1
    ]
    for word in words:
        condition = " ; and ".join(f"__fish_seen_subcommand_from {part}" for part in word.path)
        if word.below:
            condition += f" ; and not __fish_seen_subcommand_from {' '.join(word.below)}"
        lines += [
            f"complete -c convoy -n '{condition}' -f -a {other.path[1]} -d {_fish(other.text)}"
            for other in words
            if word.below and other.path[:-1] == word.path
        ]
        if word.values:
            lines.append(f"complete -c convoy -n '{condition}' -f -a '{' '.join(word.values)}'")
        for option in word.options:
            parts = [f"complete -c convoy -n '{condition}'"]
            parts += [f"-l {name[2:]}" if name.startswith("--") else f"-s {name[1:]}" for name in option.names]
            if option.choices:
                parts.append(f"-x -a '{' '.join(option.choices)}'")
            elif option.takes_value:
                parts.append("-r")
            lines.append(" ".join([*parts, f"-d {_fish(option.text)}"]))
    return "\n".join(lines) + "\n"


SCRIPTS: dict[str, Callable[[list[Word]], str]] = {"bash": bash, "zsh": zsh, "fish": fish}


def _top(words: list[Word]) -> list[str]:
    return [word.path[0] for word in words if len(word.path) == 1]


def _names(word: Word) -> list[str]:
    return [name for option in word.options for name in option.names]


def _options(command: Any) -> tuple[Option, ...]:
    found = [
        Option(
            (*parameter.opts, *parameter.secondary_opts),
            _sentence(parameter.help or ""),
            not parameter.is_flag,
            tuple(map(str, parameter.type_descriptor.choices or ())),
        )
        for parameter in command.params
        if parameter.param_type_name == "option" and not parameter.hidden
    ]
    return (*found, Option(("--help",), "Show the help.", False, ()))


def _values(command: Any) -> tuple[str, ...]:
    arguments = [each for each in command.params if each.param_type_name == "argument"]
    return tuple(str(choice) for each in arguments for choice in each.type_descriptor.choices or ())


def _sentence(text: str) -> str:
    return " ".join(text.partition("  [")[0].split())


def _fish(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"
