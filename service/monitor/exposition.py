"""Reads the text format of Prometheus. prometheus-client, which has a reader, comes with the server only."""

import re
from collections.abc import Iterator
from typing import NamedTuple

from convoy.service.errors import ConvoyError

_LABEL = re.compile(r'\s*([A-Za-z_]\w*)\s*=\s*"((?:[^"\\]|\\.)*)"\s*(?:,|$)')
_SAMPLE = re.compile(r'([A-Za-z_:][\w:]*)\s*(?:\{((?:[^"}]|"(?:[^"\\]|\\.)*")*)\})?\s*(\S+)(?:\s+-?\d+)?\s*')
_ESCAPED = {"\\n": "\n", '\\"': '"', "\\\\": "\\"}


class BadExposition(ConvoyError):
    """A text is not in the format."""

    reason = "BAD_EXPOSITION"


class Sample(NamedTuple):
    """One value of a metric. Values of a histogram have its name with `_bucket` (label `le`), `_sum` or `_count`."""

    name: str
    labels: dict[str, str]
    value: float


def parse(text: str) -> Iterator[Sample]:
    """The samples of a text, in its order; comments and time stamps are skipped. Raises BadExposition."""
    for line in text.split("\n"):  # not splitlines: a label may contain other separators
        if line.strip() and not line.startswith("#"):
            yield _sample(line)


def _sample(line: str) -> Sample:
    match = _SAMPLE.fullmatch(line)
    try:
        if match is not None:
            return Sample(match[1], _labels(match[2] or ""), float(match[3]))
    except ValueError:
        pass
    raise BadExposition(f"line {line[:60]!r} of the answer, want a metric's name, labels and value")


def _labels(text: str) -> dict[str, str]:
    labels, place = {}, 0
    while place < len(text.rstrip()):
        match = _LABEL.match(text, place)
        if match is None:
            raise ValueError
        labels[match[1]] = re.sub(r'\\[n"\\]', lambda escape: _ESCAPED[escape[0]], match[2])
        place = match.end()
    return labels
