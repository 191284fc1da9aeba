"""docs/field-cases.md names tests that are there."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "field-cases.md"


def named(text: str) -> Iterator[tuple[str, str]]:
    """The (file, test) that a page names; a test alone is of the file named before it, a file alone is all of it."""
    file = ""
    for own, test in re.findall(r"`(tests/[\w/]+\.py)?(?:::(\w+)(?:\[[^`\]]*\])?)?`", text):
        file = own or file
        if own or test:
            yield file, test


def missing(text: str) -> list[str]:
    """Those that are not there."""
    return [
        f"{file}::{test}"
        for file, test in named(text)
        if not (ROOT / file).is_file() or (test and f"def {test}(" not in (ROOT / file).read_text())
    ]


def test_every_test_that_the_page_names_is_there() -> None:
    text = PAGE.read_text()
    assert len(set(named(text))) > 60
    assert missing(text) == []


@pytest.mark.parametrize("text", ["`tests/nowhere.py::test_a`", "`tests/test_field_cases.py::test_nothing_like_it`"])
def test_a_test_that_is_not_there_would_be_seen(text: str) -> None:
    assert missing(text)
