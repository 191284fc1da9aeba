"""YAML of what a rules file consists of: mappings, lists, texts and numbers. Long texts stand in blocks."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any


def text(value: Mapping[str, Any], comment: str) -> str:
    """A document that begins with a comment."""
    return "\n".join([f"# {comment}", *_mapping(value), ""])


def _mapping(value: Mapping[str, Any]) -> Iterator[str]:
    for key, inside in value.items():
        if isinstance(inside, Mapping):
            yield f"{key}:"
            yield from _indented(_mapping(inside))
        elif isinstance(inside, str) and "\n" in inside:
            yield f"{key}: |-"
            yield from _indented(inside.splitlines())
        elif isinstance(inside, Sequence) and not isinstance(inside, str):
            yield f"{key}:"
            for each in inside:
                first, *rest = _mapping(each)
                yield f"  - {first}"
                yield from _indented(_indented(rest))
        else:
            yield f"{key}: {json.dumps(inside, ensure_ascii=False)}"


def _indented(lines: Iterator[str] | Sequence[str]) -> Iterator[str]:
    for line in lines:
        yield f"  {line}" if line else line
