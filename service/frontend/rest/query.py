"""The parameters in an address: each known one at most once, and its value checked."""

from collections.abc import Mapping
from typing import TypeVar

from convoy.service.errors import BadRequest, listed, named
from convoy.service.frontend.rest.asked import Asked

T = TypeVar("T")

_MOST_DIGITS = 18
_FLAGS = {"0": False, "1": True, "false": False, "true": True}


def check(asked: Asked, *known: str) -> None:
    """Raises BadRequest for a parameter that is not known: a slip of the keyboard must not pass for the default."""
    seen = set()
    for name, _ in asked.query.multi_items():
        if name not in known:
            wanted = f"want one of {', '.join(known)}" if known else "want none"
            raise BadRequest(f"query parameter {named(name)} is unknown, {wanted}")
        if name in seen:
            raise BadRequest(f"query parameter {named(name)} occurs twice")
        seen.add(name)


def whole(asked: Asked, name: str, most: int) -> int:
    """Returns a whole number from 0 to `most`; 0 if it is not given. Raises BadRequest."""
    text = asked.query.get(name, "0")
    if not (_is_whole(text) and int(text) <= most):
        raise BadRequest(f"query parameter {name!r} is {named(text)}, want a whole number from 0 to {most}")
    return int(text)


def flag(asked: Asked, name: str) -> bool:
    """Returns whether a parameter is 1; False if it is not given. Raises BadRequest."""
    return choice(asked, name, _FLAGS, "0")


def choice(asked: Asked, name: str, choices: Mapping[str, T], default: str) -> T:
    """Returns the choice that a parameter names. Raises BadRequest."""
    text = asked.query.get(name, default)
    if text not in choices:
        raise BadRequest(f"query parameter {name!r} is {named(text)}, want one of {listed(choices)}")
    return choices[text]


def version(asked: Asked) -> int:
    """Returns the version in the path; 0 if there is none. Raises BadRequest."""
    text = asked.version
    if text and not (_is_whole(text) and int(text) > 0):
        raise BadRequest(f"version is {named(text)}, want a whole number from 1")
    return int(text or 0)


def _is_whole(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= _MOST_DIGITS
