"""tritonclient in an environment of its own: it needs protobuf < 7, and its messages have the names of ours."""

import subprocess
import sys
import venv
from pathlib import Path

import pytest

REQUIREMENT = "tritonclient[grpc]==2.73.0"
ENVIRONMENT = Path(__file__).parents[2] / ".cache" / "tritonclient-venv"


@pytest.fixture(scope="session")
def tritonclient_python() -> Path:
    """The Python that can import tritonclient; installed by the first run, found by the next ones."""
    python = ENVIRONMENT / "bin" / "python"
    # Written when all is installed, so that what was interrupted is made anew.
    stamp = ENVIRONMENT / ".installed"
    wanted = f"{REQUIREMENT} for Python {sys.version}"
    if not stamp.is_file() or stamp.read_text() != wanted:
        venv.create(ENVIRONMENT, clear=True, with_pip=True)
        install = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", REQUIREMENT]
        subprocess.run(install, check=True, timeout=240)
        stamp.write_text(wanted)
    return python
