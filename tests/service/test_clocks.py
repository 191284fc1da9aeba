"""Setting the clock, by an operator or by NTP, changes no decision: waits and deadlines use the monotonic clock."""

import ast
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2] / "service"
# Where the time of day is what is meant.
MEANT = {
    "access.py": 1,  # a token expires at a time of day
    "tls.py": 1,  # so does a certificate
    "commands/token.py": 1,  # the same, as it is made
    "frontend/exporting.py": 1,  # a span begins and ends at a time of day
    "rasters/vectors.py": 1,  # a GeoPackage says when it was changed last
    "engine/terms.py": 1,  # convoy_last_inference_timestamp_seconds
}
TIME_OF_DAY = {
    *("time.time", "time.time_ns", "time.localtime", "time.clock_gettime"),
    *("datetime.now", "datetime.utcnow", "datetime.today", "date.today"),
}


def uses(source: str) -> Iterator[str]:
    """The functions of the time of day that a file mentions, by any name it gives their modules."""
    tree = ast.parse(source)
    names: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.asname or alias.name: alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute | ast.Name):
            first, dot, rest = ast.unparse(node).partition(".")
            # The class in the module of the same name, or that alone.
            found = f"{names.get(first, first)}{dot}{rest}".replace("datetime.date", "date")
            if found in TIME_OF_DAY:
                yield found


def test_time_of_day_is_used_only_where_it_is_meant() -> None:
    found = Counter(
        {
            str(file.relative_to(ROOT)): len(list(uses(file.read_text(encoding="utf-8"))))
            for file in ROOT.rglob("*.py")
            if "bench" not in file.parts and "pb" not in file.parts
        }
    )
    assert +found == MEANT


def test_time_of_day_is_found_under_any_name() -> None:
    assert list(uses("import time\nnow = time.time()")) == ["time.time"]
    assert list(uses("from time import time as clock\nlater = clock() + 1")) == ["time.time"]
    assert list(uses("import time as t\nfield(default_factory=t.time)")) == ["time.time"]
    assert list(uses("from datetime import datetime, UTC\ndatetime.now(UTC)")) == ["datetime.now"]
    assert list(uses("import datetime\ndatetime.datetime.now()")) == ["datetime.now"]
    assert list(uses("import time\ntime.monotonic()\nloop.time()")) == []
