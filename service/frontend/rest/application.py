"""Puts the HTTP API together: every route, what they share, and who may come in."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from starlette.responses import Response

from convoy.service.config import LimitsConfig
from convoy.service.frontend.catalogue import Catalogue
from convoy.service.frontend.decoder import Decoder
from convoy.service.frontend.doors import Doors
from convoy.service.frontend.rest import inference
from convoy.service.frontend.rest.asked import Arriving, Asked, Means
from convoy.service.frontend.rest.described import Described
from convoy.service.frontend.rest.openapi import document
from convoy.service.frontend.rest.page import Page
from convoy.service.frontend.rest.pictures import Pictures
from convoy.service.frontend.rest.predict import Predictions
from convoy.service.frontend.rest.probes import Probes
from convoy.service.frontend.rest.refusals import JSON
from convoy.service.frontend.rest.routes import Route
from convoy.service.frontend.rest.site import PAGE, Entrance, Site
from convoy.service.frontend.threads import Threads
from convoy.service.frontend.transport.interface import Limits, Unary
from convoy.service.ipc.messages import Start
from convoy.service.sources import Source


def site(
    *,
    start: Start,
    methods: Mapping[str, Unary],
    catalogue: Catalogue,
    threads: Threads,
    doors: Doors | None,
    probes: Probes,
    decoder: Decoder,
    limits: Limits,
    metrics_directory: Path,
) -> Site:
    """Returns the application of the HTTP port, on what a front end has."""
    config = start.config
    means = Means(methods, threads, Arriving(limits.receiving_bytes), limits.message_bytes)
    source = Source.named(start.repository, start.single)
    described = Described(catalogue, source, metrics_directory, start.grpc_address)
    routes = all_routes(config.limits, threads, decoder, probes, described)
    entrance = Entrance(
        doors=doors,
        public=config.access.public,
        certificate=bool(config.tls.client_ca) and bool(config.access.public),
        origins=config.server.cors_origins,
        requests=limits.calls,
    )
    return Site(routes, means, entrance)


def all_routes(
    limits: LimitsConfig, threads: Threads, decoder: Decoder, probes: Probes, described: Described
) -> list[Route]:
    """Returns every route."""
    pictures = Pictures(limits, threads, decoder)
    routes = [*inference.ROUTES, *pictures.routes(), *Predictions(limits).routes(), *probes.routes()]
    routes += [*described.routes(), *Page().routes()]
    return [*routes, *openapi_routes(routes)]


def described() -> bytes:
    """Returns the OpenAPI document without a server."""
    nothing: Any = None  # handlers are named in it, none is called
    probes = Probes(lambda: False, 0)
    routes = all_routes(LimitsConfig(), nothing, nothing, probes, Described(nothing, Source(), Path(), ""))
    return document(routes)


def openapi_routes(routes: list[Route]) -> list[Route]:
    """Returns the routes of the OpenAPI document, which describes itself, too."""

    async def answer(asked: Asked) -> Response:
        return Response(text, media_type=JSON)

    added = [
        Route("GET", path, answer, "This document", {JSON: {"type": "object"}}, public=PAGE)
        for path in ("/openapi.json", "/v2/openapi.json")
    ]
    text = document([*routes, *added])
    return added
