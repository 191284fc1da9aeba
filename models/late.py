"""Late import of classes and functions named in tables: reading names and options does not wait seconds for torch."""

import importlib
from typing import Any


def named(path: str) -> Any:
    """Imports and returns the object that "classification.resnet:ResNet" names, below `convoy.models`."""
    module, _, name = path.partition(":")
    return getattr(importlib.import_module(f"convoy.models.{module}"), name)
