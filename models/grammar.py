"""A grammar for classic networks: parses `INPUT -> [[CONV -> RELU]*2 -> POOL]*3 -> [FC -> RELU]*2 -> FC` to layers.

A pattern consists of items separated by arrows. An item is a layer, or a bracketed sequence of items with an optional
repeat count (0 omits it). With repetitions expanded, the layers must match

    INPUT -> [[CONV -> RELU]*N -> POOL?]*M -> [FC -> RELU]*K -> FC
"""

import re
from typing import Literal, NamedTuple, NoReturn, cast, get_args

from convoy.models.errors import BadTraining

Kind = Literal["INPUT", "CONV", "RELU", "POOL", "FC"]
DEFAULT = "INPUT -> [[CONV -> RELU]*2 -> POOL]*3 -> [FC -> RELU]*2 -> FC"
MAX_LAYERS = 256  # with repetitions expanded; more is a typing error
MAX_DEPTH = 16  # of nested brackets


class Layer(NamedTuple):
    """One layer and its column in the pattern, from 1. `optional` is the question mark of `POOL?`."""

    kind: Kind
    column: int
    optional: bool = False


def parse(pattern: str) -> list[Layer]:
    """Returns the layers after INPUT, repetitions expanded. Raises BadTraining, naming the column of the error."""
    layers = _Parser(pattern).pattern()
    _check_order(layers, end=len(pattern.rstrip()) + 1)
    return layers[1:]


def refuse(column: int, complaint: str) -> NoReturn:
    """Raises BadTraining for an error in that column of the pattern."""
    raise BadTraining(f"pattern, column {column}: {complaint}")


class _Token(NamedTuple):
    text: str  # empty after the last token
    column: int


class _Parser:
    """A recursive-descent parser, one method per rule."""

    def __init__(self, pattern: str) -> None:
        self.tokens = _tokens(pattern)
        self.next = 0
        self.depth = 0

    def pattern(self) -> list[Layer]:
        layers = self.row()
        if self.here.text:
            refuse(self.here.column, f"{self.here.text!r}, want -> or the end")
        return layers

    def row(self) -> list[Layer]:
        layers = self.item()
        while self.accept("->"):
            column = self.here.column
            layers += self.item()
            if len(layers) > MAX_LAYERS:
                refuse(column, f"more than {MAX_LAYERS} layers so far")
        return layers

    def item(self) -> list[Layer]:
        token = self.advance()
        if token.text == "[":
            return self.group(token)
        if token.text not in get_args(Kind):
            refuse(token.column, f"{_shown(token)}, want [, {', '.join(get_args(Kind))}")
        mark = self.here
        optional = self.accept("?")
        if optional and token.text != "POOL":
            refuse(mark.column, f"? after {token.text}, only POOL can be optional")
        return [Layer(cast(Kind, token.text), token.column, optional)]

    def group(self, bracket: _Token) -> list[Layer]:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            refuse(bracket.column, f"brackets {self.depth} deep, want at most {MAX_DEPTH}")
        layers = self.row()
        closing = self.advance()
        if closing.text != "]":
            refuse(closing.column, f"{_shown(closing)}, want -> or the ] of the [ in column {bracket.column}")
        self.depth -= 1
        if not self.accept("*"):
            return layers
        count = self.advance()
        if not count.text.isdigit():
            refuse(count.column, f"{_shown(count)}, want how often to repeat, 0 or more")
        # The length is checked first, so that a number with a thousand digits is never parsed.
        if len(count.text) > 4 or len(layers) * int(count.text) > MAX_LAYERS:
            refuse(count.column, f"{len(layers)} layers {count.text[:20]} times, want at most {MAX_LAYERS} layers")
        return layers * int(count.text)

    @property
    def here(self) -> _Token:
        return self.tokens[self.next]

    def advance(self) -> _Token:
        token = self.here
        self.next = min(self.next + 1, len(self.tokens) - 1)
        return token

    def accept(self, text: str) -> bool:
        accepted = self.here.text == text
        self.next += accepted
        return accepted


def _tokens(pattern: str) -> list[_Token]:
    tokens = []
    for match in _TOKEN.finditer(pattern):
        if match.lastgroup == "other":
            refuse(match.start() + 1, f"{match[0]!r}, want a layer, ->, [, ], * or ?")
        if match.lastgroup == "token":
            tokens.append(_Token(match[0], match.start() + 1))
    return [*tokens, _Token("", len(pattern.rstrip()) + 1)]


_TOKEN = re.compile(r"(?P<token>->|[][*?]|[A-Za-z]+|[0-9]+)|(?P<space>\s+)|(?P<other>.)", re.DOTALL)


def _check_order(layers: list[Layer], end: int) -> None:
    state = ""
    for kind, column, _ in layers:
        if kind not in _FOLLOWERS[state]:
            previous = f"after {state.rsplit(maxsplit=1)[-1]}" if state else "at the beginning"
            refuse(column, f"{kind} {previous}, want {' or '.join(_FOLLOWERS[state]) or 'the end'}")
        # What may follow a ReLU depends on the layer before it.
        state = f"{state} RELU" if kind == "RELU" else kind
    if state != "FC":
        refuse(end, f"ends with {layers[-1].kind if layers else 'nothing'}, want FC, which outputs the logits")


_FOLLOWERS: dict[str, tuple[Kind, ...]] = {
    "": ("INPUT",),
    "INPUT": ("CONV", "POOL", "FC"),
    "CONV": ("RELU",),
    "CONV RELU": ("CONV", "POOL", "FC"),
    "POOL": ("CONV", "POOL", "FC"),
    "FC": ("RELU",),
    "FC RELU": ("FC",),
}


def _shown(token: _Token) -> str:
    return repr(token.text) if token.text else "the end"
