"""Clients in environments of their own: they need protobuf < 7, and the messages of one have the names of ours."""

import subprocess
import sys
import venv
from pathlib import Path

import pytest

from tests.turns import locked

_CACHE = Path(__file__).parents[2] / ".cache"


@pytest.fixture(scope="session")
def tritonclient_python() -> Path:
    """The Python that can import tritonclient."""
    return _installed("tritonclient[grpc]==2.73.0")


@pytest.fixture(scope="session")
def kserve_python() -> Path:
    """The Python that can import KServe's SDK."""
    return _installed("kserve==0.21.0")


def _installed(requirement: str) -> Path:
    """Returns the Python of an environment; installed by the first run, found by the next ones."""
    environment = _CACHE / f"{requirement.partition('[')[0].partition('=')[0]}-venv"
    python = environment / "bin" / "python"
    # Written when all is installed, so that what was interrupted is made anew.
    stamp = environment / ".installed"
    wanted = f"{requirement} for Python {sys.version}"
    with locked(environment.with_suffix(".lock")):
        if not stamp.is_file() or stamp.read_text() != wanted:
            venv.create(environment, clear=True, with_pip=True)
            install = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", requirement]
            subprocess.run(install, check=True, timeout=240)
            stamp.write_text(wanted)
    return python
