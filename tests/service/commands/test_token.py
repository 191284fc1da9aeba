"""`convoy token`: the line that it prints is one for the file, and the token that it makes is the one that is known."""

import stat
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from convoy.service import access
from convoy.service.access import Callers
from convoy.service.config import AccessConfig

Convoy = Callable[..., subprocess.CompletedProcess[str]]


def read(folder: Path, line: str) -> Callers:
    file = folder / "callers.toml"
    file.write_text(line)
    followed = access.follow(AccessConfig(callers=str(file)))
    assert followed is not None
    return followed.value


def test_token_and_line_belong_together(convoy: Convoy, tmp_path: Path) -> None:
    done = convoy("token", "ci", "--model", "lenet5", "--model", "unet", "--metrics", "--days", 30)
    assert done.returncode == 0
    (token,) = done.stderr.splitlines()
    (line,) = done.stdout.splitlines()
    assert token not in line
    caller = read(tmp_path, line).identify(f"Bearer {token}".encode(), ())
    assert (caller.name, caller.entry.models, caller.entry.scopes) == ("ci", ("lenet5", "unet"), ("metrics",))
    assert caller.entry.expires is not None


def test_tokens_differ_and_are_long(convoy: Convoy) -> None:
    made = {convoy("token", "ci").stderr for _ in range(20)}
    assert len(made) == 20
    assert all(len(token.strip()) >= 43 + len("convoy_") for token in made)


def test_caller_without_options_may_call_every_model_and_nothing_else(convoy: Convoy, tmp_path: Path) -> None:
    (caller,) = read(tmp_path, convoy("token", "ci").stdout).by_name.values()
    assert (caller.entry.models, caller.entry.scopes, caller.entry.expires) == (("*",), (), None)


@pytest.mark.parametrize("name", ["a.example.org", "spiffe://example.org/a", 'say "hi"', "back\\slash", "Jürgen"])
def test_any_printable_name_comes_back(convoy: Convoy, tmp_path: Path, name: str) -> None:
    done = convoy("token", name, "--by-certificate")
    assert done.stderr == ""
    assert read(tmp_path, done.stdout).identify(None, [name]).name == name


def test_token_may_go_into_a_file_that_nobody_else_can_read(convoy: Convoy, tmp_path: Path) -> None:
    file = tmp_path / "token"
    done = convoy("token", "ci", "--output", file)
    assert done.stderr == ""
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert read(tmp_path, done.stdout).identify(b"Bearer " + file.read_bytes().strip(), ())
    again = convoy("token", "ci", "--output", file)
    assert (again.returncode, again.stderr) == (2, f"convoy token: '{file}': File exists\n")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["ci", "--model", "A b"], "--model 'A b', want * or a model's name"),
        (["", "--model", "a"], "NAME is '', want printable characters"),
        (["a\nb"], "NAME is 'a\\nb', want printable characters"),
        (["ci", "--by-certificate", "--output", "token"], "--by-certificate makes no token: omit --output"),
        (["ci", "--days", "0"], "--days"),
    ],
)
def test_what_cannot_be_made_is_one_line(convoy: Convoy, options: list[str], words: str) -> None:
    done = convoy("token", *options)
    assert (done.returncode, done.stdout) == (2, "")
    assert words in done.stderr
