"""Makes counting and timing do nothing in the process that finds this on its path, to measure what they take."""

import sys
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any


def _nothing(*arguments: Any, **more: Any) -> None:
    """Instead of what counts."""


def _silence_metrics(module: Any) -> None:
    for kind, names in (
        (module.Counter, ("inc",)),
        (module.Gauge, ("inc", "dec", "set")),
        (module.Histogram, ("observe",)),
    ):
        for name in names:
            setattr(kind, name, _nothing)


def _silence_timings(module: Any) -> None:
    nothing = [0.0] * (len(module.metrics.STAGES) + 1)
    module.observe = lambda *arguments, **more: nothing


def _silence_requests(module: Any) -> None:
    module.count_request = _nothing


_SILENCED = {
    "convoy.service.metrics": _silence_requests,
    "prometheus_client.metrics": _silence_metrics,
    "convoy.service.frontend.call": _silence_timings,
}


class _Silencer(MetaPathFinder, Loader):
    """Loads a module as it is, and then changes it."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        spec = PathFinder.find_spec(name, path) if name in _SILENCED else None
        if spec is None or spec.loader is None:
            return None
        self._loader, spec.loader = spec.loader, self
        return spec

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self._loader.exec_module(module)
        _SILENCED[module.__name__](module)


sys.meta_path.insert(0, _Silencer())
