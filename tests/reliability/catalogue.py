"""All probes, in the order of the page: those of every module here whose name begins with the number of its promise."""

import importlib
from pathlib import Path

from tests.reliability.probe import Probe

MODULES = [
    importlib.import_module(f"tests.reliability.{file.stem}")
    for file in sorted(Path(__file__).parent.glob("[rs][0-9][0-9]_*.py"))
]
PROBES: tuple[Probe, ...] = tuple(
    probe for module in MODULES for probe in (getattr(module, "PROBES", None) or [module.PROBE])
)
