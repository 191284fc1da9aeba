"""Each kind of change is made once where it can be, and nothing else changes."""

import ast

import pytest

from tests.mutation.mutants import mutants


def changed(body: str) -> set[str]:
    """What the mutants of a function make of its body, in one line each."""
    source = f"def f(a, b):\n    {body}\n"
    return {"; ".join(map(ast.unparse, each.code.body[0].body)) for each in mutants(source)}  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("return a < b", {"return a <= b"}),
        ("return a is not b", {"return a is b"}),
        ("return a <= b < 3", {"return a < b < 3", "return a <= b <= 3", "return a <= b < 4"}),
        ("return a + b", {"return a - b"}),
        ("a *= b", {"a /= b", "pass"}),
        ("return a and b", {"return a or b"}),
        ("return not a", {"return a"}),
        ("return a if b else True", {"return a if not b else True", "return a if b else False"}),
        ("return min(a, 1.5)", {"return max(a, 1.5)", "return min(a, 2.5)"}),
        ("a.b = b", {"pass"}),
        ("del a[b]", {"pass"}),
        ("raise a", {"pass"}),
        ("a(b)", {"pass"}),
    ],
)
def test_one_place_changes_at_a_time(body: str, expected: set[str]) -> None:
    assert changed(body) == expected


@pytest.mark.parametrize(
    "body", ['"""What it does, 1 of 2."""', "log.error(a + b)", "return f'{a + 1}'", "assert a < b"]
)
def test_what_no_behaviour_depends_on_stays(body: str) -> None:
    assert changed(body) == set()


def test_constants_and_defaults_stay_and_methods_change() -> None:
    source = "LIMIT = 3\nclass C:\n    x: int = 1\n    def f(self, a=2):\n        return a + 1\n"
    assert {(each.line, each.name) for each in mutants(source)} == {
        (5, "C.f: a + 1 -> a - 1"), (5, "C.f: 1 -> 2"),
    }  # fmt: skip
