"""Which branches of the scheduler, the slots and the admission their own tests leave out. Exits with 1 if there is any.

    python -m tests.coverage

Simulations are left out: they say how good decisions are, and take ten times as long when every line is traced.
"""

import sys
from pathlib import Path

import coverage
import pytest

_ROOT = Path(__file__).parents[1]
_MODULES = (
    "engine/scheduler/*", "engine/dispatcher", "ipc/slots", "ipc/channel",
    "frontend/admission", "frontend/routing", "frontend/suspects", "frontend/engine_client",
)  # fmt: skip
_TESTS = (
    "service/engine/scheduler", "service/engine/test_dispatcher.py", "service/ipc",
    "service/frontend/test_admission.py", "service/frontend/test_engine_client.py", "service/frontend/test_landing.py",
    "service/frontend/test_routing.py", "service/frontend/test_suspects.py", "service/frontend/test_versions.py",
)  # fmt: skip


def main() -> int:
    measured = coverage.Coverage(
        data_file=None,
        config_file=False,
        branch=True,
        include=[str(_ROOT / "service" / f"{each}.py") for each in _MODULES],
    )
    with measured.collect():
        failed = pytest.main([
            "-q", "-p", "no:cacheprovider", "-m", "not soak and not simulation",
            *[str(_ROOT / "tests" / each) for each in _TESTS],
        ])  # fmt: skip
    covered = measured.report(show_missing=True, skip_covered=True)
    return int(failed or covered < 100)


if __name__ == "__main__":
    sys.exit(main())
