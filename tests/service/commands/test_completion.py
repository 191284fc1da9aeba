"""`convoy completion`: its scripts in real shells."""

import shutil
import subprocess
from pathlib import Path

import pytest

from convoy.service import cli
from convoy.service.commands.completion import SCRIPTS, Option, Word, words


@pytest.fixture(scope="module")
def known() -> list[Word]:
    return list(words())


@pytest.fixture(scope="module")
def script(known: list[Word], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("completion") / "convoy"
    path.write_text(SCRIPTS["bash"](known))
    return path


def completed(script: Path, *typed: str) -> list[str]:
    """What bash offers for the last of the words."""
    code = 'source "$1"; shift; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _convoy; printf "%s\\n" "${COMPREPLY[@]}"'
    command = ["bash", "--norc", "-uc", code, "bash", str(script), "convoy", *typed]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    return done.stdout.split()


def test_commands_are_completed(script: Path) -> None:
    assert completed(script, "cl") == ["classify"]
    assert set(completed(script, "")) == {*cli.COMMANDS, "--help", "--version"}


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("classify --to", ["--top-k", "--token-file"]),
        ("classify photo.jpg --js", ["--json"]),
        ("classify --no-", ["--no-picture"]),
        ("serve --log-format ", ["auto", "json", "text"]),
        ("train lenet5 --optimizer s", ["sgd"]),
        ("data ", ["check", "tile", "--help"]),
        ("data check --sh", ["--sheet"]),
        ("visualize cl", ["class"]),
        ("visualize dream --space p", ["pixels"]),
        ("completion ", ["bash", "zsh", "fish", "--help"]),
        ("segment x.png -", ["-o", "--output"]),
        ("nothing --x", []),
    ],
)
def test_options_choices_and_subcommands_are_completed(script: Path, typed: str, offered: list[str]) -> None:
    found = completed(script, *typed.split(" "))
    assert found[: len(offered)] == offered if typed.endswith(" -") else found == offered


@pytest.mark.parametrize("typed", ["classify ", "classify pho", "classify --ca ", "inspect model"])
def test_files_are_left_to_the_shell(script: Path, typed: str) -> None:
    assert completed(script, *typed.split(" ")) == []
    done = subprocess.run(
        ["bash", "--norc", "-c", 'source "$1"; complete -p convoy', "bash", str(script)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "complete -o default -F _convoy convoy\n"


@pytest.mark.parametrize("shell", SCRIPTS)
def test_script_names_every_option_of_every_command(known: list[Word], shell: str) -> None:
    text = SCRIPTS[shell](known)
    assert len(known) > len(cli.COMMANDS)
    for word in known:
        assert word.path[-1] in text
        for option in word.options:
            for name in option.names:
                assert (name if shell != "fish" else name.lstrip("-")) in text
            assert " ".join(option.choices) in text


@pytest.mark.parametrize("shell", SCRIPTS)
def test_script_is_valid(known: list[Word], shell: str, tmp_path: Path) -> None:
    """In the shells that are installed here."""
    if shutil.which(shell) is None:
        pytest.skip(f"no {shell}")
    (tmp_path / "script").write_text(SCRIPTS[shell](known))
    subprocess.run([shell, "-n", tmp_path / "script"], check=True)


OFFERED = [
    ("cl", ["classify"]),
    ("classify --to", ["--token-file", "--top-k"]),
    ("serve --log-format ", ["auto", "json", "text"]),
    ("data ", ["check", "tile"]),
    ("visualize cl", ["class"]),
    ("completion ", ["bash", "fish", "zsh"]),
]


@pytest.mark.parametrize(("typed", "offered"), OFFERED)
def test_fish_completes(known: list[Word], tmp_path: Path, typed: str, offered: list[str]) -> None:
    if shutil.which("fish") is None:
        pytest.skip("no fish")
    script = tmp_path / "convoy.fish"
    script.write_text(SCRIPTS["fish"](known))
    command = ["fish", "--no-config", "-c", f"cd {tmp_path}; source {script}; complete -C 'convoy {typed}'"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
    found = [line.partition("\t")[0] for line in done.stdout.splitlines()]
    assert sorted(word for word in found if word != script.name) == offered


# What zsh's own functions would be given, by functions of the same names.
_ZSH = """
_describe() { [[ $1 == -o ]] && shift; print -l -- ${(P)2%%:*}; }
compadd() { shift; print -l -- "$@"; }
_files() { :; }
compdef() { :; }
script=$1; shift
words=("$@"); CURRENT=$#; PREFIX=$words[CURRENT]
source $script
_convoy
"""


@pytest.mark.parametrize(("typed", "offered"), OFFERED)
def test_zsh_completes(known: list[Word], tmp_path: Path, typed: str, offered: list[str]) -> None:
    if shutil.which("zsh") is None:
        pytest.skip("no zsh")
    script = tmp_path / "_convoy"
    script.write_text(SCRIPTS["zsh"](known))
    command = ["zsh", "-fc", _ZSH, "zsh", str(script), "convoy", *typed.split(" ")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    prefix = typed.rsplit(" ", maxsplit=1)[-1]  # by which zsh itself selects
    assert sorted(word for word in done.stdout.split() if word.startswith(prefix)) == offered


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_quotes_in_a_text_stay_within_it(shell: str) -> None:
    option = Option(("--size",), "The network's `own` $size", True, ())
    text = SCRIPTS[shell]([Word(("x",), "It's \\ new", (option,))])
    assert ("'--size:The network'\"'\"'s `own` $size'" if shell == "zsh" else "'The network\\'s `own` $size'") in text


def test_commands_whose_packages_are_missing_are_completed_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(name: str) -> object:
        if name == "train":
            raise ModuleNotFoundError("No module named 'torch'", name="torch")
        return loaded(name)

    loaded = cli.load
    monkeypatch.setattr(cli, "load", load)
    assert Word(("train",), "Train a network", ()) in list(words())


def test_script_is_printed(convoy) -> None:
    done = convoy("completion", "bash")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("# bash completion for convoy\n")
    assert convoy("completion", "tcsh").returncode == 2
