"""Clients in environments of their own: they need protobuf < 7, and the messages of one have the names of ours."""

import subprocess
import sys
import sysconfig
import venv
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.turns import locked

_CACHE = Path(__file__).parents[2] / ".cache"


@pytest.fixture(scope="session")
def tritonclient_python() -> Path:
    """The Python that can import tritonclient, which shares with ours what both can use."""
    return _installed("tritonclient==2.73.0", beside=("protobuf>=6.31,<7", "python-rapidjson"))


@pytest.fixture(scope="session")
def kserve_python() -> Path:
    """The Python that can import KServe's SDK."""
    return _installed("kserve==0.21.0")


def _installed(requirement: str, beside: Sequence[str] = ()) -> Path:
    """Returns the Python of an environment; installed by the first run, found by the next ones.

    With `beside`, nothing else is installed, and the environment falls back on the packages of this one: most of them
    are the same, and large.
    """
    environment = _CACHE / f"{requirement.partition('=')[0]}-venv"
    python = environment / "bin" / "python"
    # Written when all is installed, so that what was interrupted is made anew.
    stamp = environment / ".installed"
    wanted = f"{' '.join([requirement, *beside])} for Python {sys.version}"
    with locked(environment.with_suffix(".lock")):
        if not stamp.is_file() or stamp.read_text() != wanted:
            venv.create(environment, clear=True)
            pip = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--disable-pip-version-check"]
            alone = ["--no-deps"] if beside else []
            subprocess.run([*pip, "--no-compile", *alone, requirement, *beside], check=True, timeout=240)
            if beside:
                (packages,) = environment.glob("lib/python*/site-packages")
                (packages / "beside.pth").write_text(sysconfig.get_path("purelib") + "\n")
            stamp.write_text(wanted)
    return python
