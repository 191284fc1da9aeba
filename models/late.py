"""What a table names and its first user imports: names and options are read without the seconds that torch takes."""

import importlib
from typing import Any


def named(path: str) -> Any:
    """What "classification.resnet:ResNet" names, below `convoy.models`; it is imported now."""
    module, _, name = path.partition(":")
    return getattr(importlib.import_module(f"convoy.models.{module}"), name)
