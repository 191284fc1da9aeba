"""Images over HTTP: to ranked labels, and to class maps as JSON or as pictures.

check -> read the body -> call gRPC's method -> write the answer
"""

import io
from functools import partial
from typing import Literal

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngImageFile
from starlette.responses import Response

from convoy.service.config import LimitsConfig
from convoy.service.errors import BadRequest
from convoy.service.frontend.decoder import Decoder
from convoy.service.frontend.rest import answers, bodies, query, schemas
from convoy.service.frontend.rest.asked import Asked
from convoy.service.frontend.rest.refusals import JSON
from convoy.service.frontend.rest.routes import Route, versioned
from convoy.service.frontend.threads import Threads, awaited
from convoy.service.images.decode import estimate
from convoy.service.images.overlay import overlay
from convoy.service.metadata import InputSpec
from convoy.service.pb.convoy.v1 import vision_pb2 as pb

As = Literal["json", "png", "overlay"]

_AS: dict[str, As] = {"json": "json", "png": "png", "overlay": "overlay"}
_PRIORITIES = {"normal": pb.PRIORITY_NORMAL, "low": pb.PRIORITY_LOW}
_WHOLE = InputSpec(colour="RGB", fit="pad", interpolation="nearest")  # never reduced as it is decoded
_OVERLAY_SECONDS = 8e-8  # that a pixel takes to be blended and written


class Pictures:
    """The handlers. They decode and draw in `threads`, with the limits and the decoder of gRPC's methods."""

    def __init__(self, limits: LimitsConfig, threads: Threads, decoder: Decoder) -> None:
        self._limits = limits
        self._threads = threads
        self._decoder = decoder

    def routes(self) -> list[Route]:
        """Returns the routes of the handlers."""
        asks = {JSON: schemas.IMAGES, bodies.FORM: schemas.FORM, "image/*": schemas.FILE, "*/*": schemas.FILE}
        return [
            *versioned(
                Route(
                    "POST",
                    "/v1/models/{model}:classify",
                    self.classify,
                    "Ranked labels for one or many images",
                    {JSON: schemas.CLASSIFIED},
                    asks,
                    {"top_k": schemas.TOP_K, "priority": schemas.PRIORITY},
                    statuses=(404,),
                )
            ),
            *versioned(
                Route(
                    "POST",
                    "/v1/models/{model}:segment",
                    self.segment,
                    "A class for every pixel of one or many images",
                    {JSON: schemas.SEGMENTED, answers.PNG: schemas.PNG},
                    asks,
                    {"confidence": schemas.CONFIDENCE, "priority": schemas.PRIORITY, "as": schemas.AS},
                    statuses=(404,),
                )
            ),
        ]

    async def classify(self, asked: Asked) -> Response:
        """Answers with ranked labels for each image."""
        query.check(asked, "top_k", "priority")
        request = pb.ClassifyRequest(
            model=asked.model,
            version=query.version(asked),
            top_k=query.whole(asked, "top_k", schemas.MOST_LABELS),
            priority=query.choice(asked, "priority", _PRIORITIES, "normal"),
        )
        await self._read_images(asked, request)
        answer = await asked.call("Classify", request)
        return await _json(asked, answer, answers.classified)

    async def segment(self, asked: Asked) -> Response:
        """Answers with a class map for each image: as JSON, or that of a single image as a picture."""
        query.check(asked, "confidence", "priority", "as")
        wanted = _wanted(asked)
        request = pb.SegmentRequest(
            model=asked.model,
            version=query.version(asked),
            format=pb.MASK_FORMAT_RLE if wanted == "json" else pb.MASK_FORMAT_PNG,
            with_confidence=query.flag(asked, "confidence"),
            priority=query.choice(asked, "priority", _PRIORITIES, "normal"),
        )
        if request.with_confidence and wanted != "json":
            raise BadRequest(f"query parameter 'confidence' is 1, but as={wanted} is the mask alone: want as=json")
        await self._read_images(asked, request)
        if wanted != "json" and len(request.images) != 1:
            raise BadRequest(f"request has {len(request.images)} images, want 1 for as={wanted}")
        answer = await asked.call("Segment", request)
        if wanted == "json":
            return await _json(asked, answer, answers.segmented)
        response = pb.SegmentResponse.FromString(answer)
        picture = response.results[0].segmentation
        mask = picture.mask
        if wanted == "overlay":
            mask = await self._overlay(asked, request.images[0].encoded, picture)
        headers = {"convoy-model": response.model, "convoy-version": str(response.version)}
        return Response(mask, headers=headers, media_type=answers.PNG)

    async def _read_images(self, asked: Asked, request: pb.ClassifyRequest | pb.SegmentRequest) -> None:
        found = await bodies.images(asked, self._limits.max_images)
        request.images.extend([pb.Image(encoded=image) for image in found])

    async def _overlay(self, asked: Asked, data: bytes, picture: pb.Segmentation) -> bytes:
        seconds = estimate(data) + _OVERLAY_SECONDS * picture.height_px * picture.width_px
        draw = partial(self._draw, data, picture.mask)
        return await awaited(self._threads.submit(asked.who, draw, seconds))

    def _draw(self, data: bytes, mask: bytes, thread: int) -> bytes:
        """Returns a PNG file of an image under the class map of a palette PNG file."""
        pixels = self._decoder.decode(data, _WHOLE, self._limits.max_pixels, thread).pixels
        # Constructed directly, because Image.open has its own pixel limit.
        map_ = PngImageFile(io.BytesIO(mask))
        palette = np.array(map_.getpalette("RGB"), np.uint8).reshape(-1, 3)
        file = io.BytesIO()
        Image.fromarray(overlay(pixels, np.asarray(map_), palette)).save(file, "PNG", compress_level=answers.FAST)
        return file.getvalue()


def _wanted(asked: Asked) -> As:
    """Returns the form of the answer: what the address says, or else what the caller accepts by name."""
    accepted = asked.accepts(answers.PNG) and not asked.accepts(JSON)
    return query.choice(asked, "as", _AS, "png" if accepted else "json")


async def _json(asked: Asked, answer: bytes, write: answers.Write) -> Response:
    body = await bodies.sized(asked, len(answer), lambda: write(answer), answers.SECONDS)
    return Response(body, media_type=JSON)
