"""Convoy serves convolutional networks over gRPC. This is its client:

    import convoy

    with convoy.Client("127.0.0.1:8001") as client:
        print(client.classify("four.png").labels[0].name)
        mask = client.segment("street.jpg").mask  # (H, W) uint8, class indices

`convoy.AsyncClient` is the same for asyncio. The folders `service` and `models` of the repository are installed as
`convoy.service` and `convoy.models`, so that nobody's own modules are hidden by them.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from convoy.service.client.aio import AsyncClient
    from convoy.service.client.client import Client
    from convoy.service.client.credentials import Credentials
    from convoy.service.client.large import LargeSegmentation, Progress
    from convoy.service.client.requests import ImageSource, MaskFormat, Priority, read_image
    from convoy.service.client.results import (
        Axis,
        Classification,
        ClassPixels,
        Context,
        Input,
        Label,
        Model,
        ReceptiveField,
        Segmentation,
        ServerError,
        Tensor,
        Timings,
    )
    from convoy.service.errors import BadImage, BadRequest, ConvoyError

__all__ = [
    "AsyncClient",
    "Axis",
    "BadImage",
    "BadRequest",
    "ClassPixels",
    "Classification",
    "Client",
    "Context",
    "ConvoyError",
    "Credentials",
    "ImageSource",
    "Input",
    "Label",
    "LargeSegmentation",
    "MaskFormat",
    "Model",
    "Priority",
    "Progress",
    "ReceptiveField",
    "Segmentation",
    "ServerError",
    "Tensor",
    "Timings",
    "read_image",
]

# Loaded when they are first used: the server's processes start without the client.
_HOME = {
    "AsyncClient": "aio",
    "Client": "client",
    "Credentials": "credentials",
    **dict.fromkeys(["LargeSegmentation", "Progress"], "large"),
    **dict.fromkeys(["ImageSource", "MaskFormat", "Priority", "read_image"], "requests"),
}
_ERRORS = ["BadImage", "BadRequest", "ConvoyError"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'convoy' has no attribute {name!r}")
    module = "errors" if name in _ERRORS else f"client.{_HOME.get(name, 'results')}"
    return getattr(import_module(f"convoy.service.{module}"), name)


def __dir__() -> list[str]:
    return __all__
