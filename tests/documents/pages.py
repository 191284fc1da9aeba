"""What the pages contain besides text: blocks of commands and of code, with the place of each."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
FILES = [ROOT / "README.md", ROOT / "SECURITY.md", *sorted(ROOT.glob("docs/*.md"))]
PAGES = {path.relative_to(ROOT).as_posix(): path.read_text() for path in FILES}

# The first words of lines that a shell executes.
PROGRAMS = {
    "apt-get",
    "convoy",
    "curl",
    "docker",
    "grpcurl",
    "kubectl",
    "make",
    "pip",
    "protoc",
    "python",
    "python3",
    "source",
    "torchrun",
}
# The first words of paragraphs that stand in a block and are none: what a command prints, a diagram, a line of a file.
OTHERS = {"check", "clients", "convoy.v1.Vision/Classify", "epoch", "input", "sha256", "task", "unet", "variant"}
OTHERS |= {"├──", "└──"}


class Block(NamedTuple):
    """A fenced or indented block. `language` is the word after the fence."""

    page: str
    line: int
    language: str
    text: str


class Command(NamedTuple):
    """One command of a shell, with the lines that continue it and those of its here-document."""

    page: str
    line: int
    text: str

    @property
    def words(self) -> list[str]:
        """Its words without comment, prompt and the folder of the program; of a pipeline, all of them."""
        text = self.text.partition("<<EOF")[0].replace("\\\n", " ")
        lexer = shlex.shlex(text, posix=True, punctuation_chars="|;&<>")
        lexer.whitespace_split = True
        words = list(lexer)
        return [words[0].removeprefix(".venv/bin/"), *words[1:]]

    @property
    def program(self) -> str:
        return self.words[0]

    @property
    def needs_shell(self) -> bool:
        """Whether more than the program's words decide on what happens."""
        return "$(" in self.text or any(re.fullmatch(r"[|;&<>]+", word) for word in self.words)


def blocks(page: str, text: str) -> Iterator[Block]:
    """All blocks of a page. Indented lines that continue an item of a list are text."""
    lines = text.splitlines()
    number = 0
    item = False  # whether the last line that is not indented began or continued an item of a list
    while number < len(lines):
        line = lines[number]
        start = number
        if found := re.match(r"```(\w*)", line):
            number = next(n for n in range(start + 1, len(lines)) if lines[n].startswith("```")) + 1
            yield Block(page, start + 2, found[1], "\n".join(lines[start + 1 : number - 1]))
        elif line.startswith("    ") and not item:
            while number < len(lines) and (lines[number].startswith("    ") or not lines[number].strip()):
                number += 1
            yield Block(page, start + 1, "", "\n".join(each[4:] for each in lines[start:number]).rstrip())
        else:
            if line.strip():
                item = bool(re.match(r"\s*([-*]|\d+\.) ", line)) or (item and line.startswith(" "))
            number += 1


def paragraphs(block: Block) -> Iterator[Block]:
    """The parts of a block between its empty lines."""
    line = block.line
    for part in re.split(r"\n[ \t]*\n", block.text):
        yield block._replace(line=line, text=part)
        line += part.count("\n") + 2


def commands(block: Block) -> tuple[list[Command], list[str]]:
    """The commands of a paragraph, and what in it is neither a command nor known as something else."""
    lines = block.text.splitlines()
    session = any(line.startswith("$ ") for line in lines)
    if not session and _first_word(lines[0]) in OTHERS:
        return [], []
    found: list[Command] = []
    unknown: list[str] = []
    number = 0
    while number < len(lines):
        start, line = number, lines[number]
        number += 1
        if session and not line.startswith("$ "):
            continue  # what the command above prints
        while lines[number - 1].endswith("\\"):
            number += 1
        if "<<EOF" in line:
            number = lines.index("EOF", number) + 1
        text = "\n".join(lines[start:number]).removeprefix("$ ")
        if _first_word(text) in PROGRAMS:
            found.append(Command(block.page, block.line + start, text))
        else:
            unknown.append(f"{block.page}:{block.line + start}: {line}")
    return found, unknown


def _first_word(line: str) -> str:
    words = line.removeprefix("$ ").split()
    return words[0].removeprefix(".venv/bin/") if words else ""


BLOCKS = [block for page, text in PAGES.items() for block in blocks(page, text)]
SHELL = [part for block in BLOCKS if block.language in ("", "sh", "bash", "console") for part in paragraphs(block)]
COMMANDS = [command for part in SHELL for command in commands(part)[0]]
UNKNOWN = [line for part in SHELL for line in commands(part)[1]]
