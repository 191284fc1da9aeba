"""What the page asks the server for: its models, their samples, and the figures of all processes."""

import hashlib
import time
from collections.abc import Mapping
from importlib.metadata import version as package_version
from pathlib import Path
from typing import Any

import msgspec
from starlette.responses import Response

from convoy.service import metadata, metric_files, samples
from convoy.service.dtypes import DATATYPES
from convoy.service.errors import UnknownModel, named
from convoy.service.frontend.catalogue import Catalogue
from convoy.service.frontend.rest import figures
from convoy.service.frontend.rest.asked import Asked
from convoy.service.frontend.rest.page import HEADERS, known
from convoy.service.frontend.rest.refusals import JSON, UnknownPath
from convoy.service.frontend.rest.routes import Route, Schema
from convoy.service.frontend.shared import Shared
from convoy.service.frontend.tensors import metadata_shape
from convoy.service.metadata import Document, InputSpec
from convoy.service.repository import Version
from convoy.service.sources import Source

_NO_STORE = {"cache-control": "no-store", "x-content-type-options": "nosniff"}
_MOST_DIGITS = 18  # of a version
_OBJECT: Schema = {"type": "object"}


class Described:
    """The handlers of `/api/`. `grpc_address` is where this server speaks gRPC, for the examples on the page."""

    def __init__(self, catalogue: Catalogue, source: Source, metrics_directory: Path, grpc_address: str) -> None:
        self._catalogue = catalogue
        self._source = source
        self._server = {"version": package_version("convoy"), "grpc": grpc_address}
        self._figures = Shared(lambda: _figures(metrics_directory))
        self._samples = Shared(self._count_samples)

    def routes(self) -> list[Route]:
        """Returns all paths, for callers who are known where any must be."""
        sample = "/api/models/{model}/versions/{version}/samples/{number}"
        pictures: dict[str, Schema] = {"image/png": {}, "image/jpeg": {}}
        return [
            Route("GET", "/api/models", self._models, "Every version, as the page shows it", {JSON: _OBJECT}),
            Route("GET", sample, self._sample, "A picture to try a model on", pictures, statuses=(404,)),
            Route("GET", "/api/live", self._live, "Counts of all processes since the start", {JSON: _OBJECT}),
        ]

    async def _models(self, asked: Asked) -> Response:
        """Answers every version in the repository, of the models that the caller may call."""
        rows = [row for row in self._catalogue.table.versions if _sees(asked, row.model)]
        counts = await self._samples.get()
        described = [describe(row, counts.get((row.model, row.version), 0)) for row in rows]
        return _json({"models": described, "server": self._server})

    async def _sample(self, asked: Asked) -> Response:
        """Answers a picture beside a model. Raises NotPermitted, UnknownModel, UnknownPath."""
        model, number = asked.model, asked.path_parameters.get("number", "")
        if asked.caller is not None:
            asked.caller.check()
            asked.caller.permit(model)
        version = int(asked.version) if _is_number(asked.version) else 0
        rows = self._catalogue.table.versions
        if not any((row.model, row.version, row.state) == (model, version, "READY") for row in rows):
            raise UnknownModel(f"model {named(model)} has no version {named(asked.version)} that serves")
        found = None
        if _is_number(number) and 1 <= int(number) <= samples.MOST:
            place = self._source.place(model, version)
            found = await asked.aside(lambda: samples.read(place.root, place.file.parent, int(number)))
        if found is None:
            raise UnknownPath(f"/api/models/{model}/versions/{version}/samples/{number}")
        media_type, data = found
        tag = f'"{hashlib.sha256(data).hexdigest()[:16]}"'
        headers = {**HEADERS, "content-security-policy": "default-src 'none'", "etag": tag}
        if known(asked, tag):
            return Response(status_code=304, headers=headers)
        return Response(data, 200, headers, media_type)

    async def _live(self, asked: Asked) -> Response:
        """Answers the figures of all processes."""
        if asked.caller is not None:
            asked.caller.check()
        found = await self._figures.get()
        return _json(found.visible(lambda model: _sees(asked, model)))

    def _count_samples(self) -> Mapping[tuple[str, int], int]:
        return {
            (row.model, row.version): samples.count(self._source.place(row.model, row.version).file.parent)
            for row in self._catalogue.table.versions
            if row.state == "READY"
        }


def describe(row: Version, with_samples: int) -> dict[str, Any]:
    """Returns a version as the page reads it: as ListModels describes it, and what only the page shows."""
    described: dict[str, Any] = {
        "model": row.model,
        "version": row.version,
        "state": row.state,
        "reason": row.reason,
        "provider": row.provider,
        "max_batch_size": row.max_batch_size,
        "task": "",
        "labels": [],
        "palette": [],
        "input": None,
        "tensor": None,
        "architecture": "",
        "data": "",
        "metrics": {},
        "parity": None,
        "precision": "",
        "variant": None,
        "confidence": any(spec.name == metadata.CONFIDENCE for spec in row.outputs),
        "inputs": [
            {"name": spec.name, "datatype": DATATYPES.get(spec.dtype, ""), "shape": metadata_shape(spec)}
            for spec in row.inputs
        ],
        "samples": with_samples,
    }
    if row.state != "READY":
        return described
    described["task"] = row.document.task if row.document else "tensors"
    return described if row.document is None else described | _of_document(row.document)


def _of_document(document: Document) -> dict[str, Any]:
    origin = document.provenance
    colours = document.palette
    if colours is None and document.task == "segmentation":
        colours = metadata.default_palette(len(document.labels))
    return {
        "labels": document.labels,
        "palette": colours or [],
        "input": None if document.input is None else _of_input(document.input),
        "tensor": document.tensor,
        "architecture": origin.architecture if origin else "",
        "data": origin.data if origin else "",
        "metrics": origin.metrics if origin else {},
        "parity": document.parity,
        "precision": document.variant.precision if document.variant else "",
        "variant": document.variant,
        "receptive_field": document.receptive_field,
    }


def _of_input(spec: InputSpec) -> dict[str, Any]:
    return {
        "height_px": spec.height or 0,
        "width_px": spec.width or 0,
        "min_height_px": spec.min_height,
        "min_width_px": spec.min_width,
        "multiple": spec.multiple,
        "colour": spec.colour,
        "fit": spec.fit,
    }


def _figures(directory: Path) -> figures.Figures:
    return figures.read(metric_files.collect(directory), metric_files.restarts(directory), time.monotonic())


def _sees(asked: Asked, model: str) -> bool:
    return asked.caller is None or asked.caller.sees(model)


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= _MOST_DIGITS


def _json(content: object) -> Response:
    return Response(msgspec.json.encode(content), 200, _NO_STORE, JSON)
