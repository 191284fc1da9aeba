"""Gives a process plain implementations. Python imports this module at its start, where the folder is on the path."""

import os
import sys
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

from tests.performance.plain.swaps import VARIABLE, swap, swapped


class _Swapping(MetaPathFinder):
    """Finds the modules of which something is replaced."""

    def __init__(self, variant: str) -> None:
        self._variant = variant
        self._modules = swapped(variant)

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        spec = PathFinder.find_spec(name, path) if name in self._modules else None
        if spec is not None and spec.loader is not None:
            spec.loader = _Swapped(spec.loader, self._variant)
        return spec


class _Swapped(Loader):
    """Loads a module as it is, and then replaces what the variant replaces, before anyone else sees it."""

    def __init__(self, loader: Loader, variant: str) -> None:
        self._loader = loader
        self._variant = variant

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self._loader.exec_module(module)
        swap(self._variant, module)


if variant := os.environ.get(VARIABLE):
    sys.meta_path.insert(0, _Swapping(variant))
