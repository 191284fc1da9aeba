"""How requests of one key are batched and counted."""

import math
import time
from collections.abc import Hashable, Mapping
from dataclasses import replace
from typing import NamedTuple

from convoy.service import metrics
from convoy.service.config import Config
from convoy.service.dtypes import DTYPES
from convoy.service.engine.profiling import largest_batch
from convoy.service.engine.runner import Run
from convoy.service.engine.scheduler.batcher import Batch
from convoy.service.engine.scheduler.request_queue import Key, Limits
from convoy.service.engine.session_builder import Loaded


class Terms(NamedTuple):
    """How requests of one key are batched and counted, computed once."""

    basis: Limits  # of the version; the terms are outdated once it has others
    limits: Limits  # of batches of this shape
    places: int  # pixels or other places of a row; 0 if the version accepts no images
    padded: bool  # whether some of them are padding


def volume(shape: Hashable) -> float:
    """Returns the bytes of one row, from which the run time of an unmeasured shape is estimated."""
    assert isinstance(shape, tuple)
    return float(max(1, sum(math.prod(sides) * DTYPES[dtype].itemsize for sides, dtype in shape)))


def first_of(key: Key) -> tuple[int, ...]:
    """Returns the shape of the first input."""
    assert isinstance(key.shape, tuple)
    first: tuple[int, ...] = key.shape[0][0] if key.shape else ()
    return first


def terms_of(loaded: Loaded, shape: tuple[int, ...], config: Config, alone: bool) -> Terms:
    """Returns the terms for inputs of `shape`, without the batch dimension; `alone`: see Key."""
    document, basis = loaded.session.document, loaded.limits
    most = largest_batch(document, shape, basis.max_batch_size, config.batching.max_batch_pixels)
    limits = basis if most == basis.max_batch_size else replace(basis, max_batch_size=most)
    if alone:
        limits = replace(limits, max_batch_size=1, instances=1)
    if document is None or document.input is None:
        return Terms(basis, limits, 0, False)
    return Terms(basis, limits, document.takes.places(shape), document.image.fit in ("pad", "letterbox"))


def count(batch: Batch, run: Run, terms: Terms | None, device: int) -> None:
    """Counts a batch that has run on a device."""
    key, version = batch.key, str(batch.key.version)
    if terms is not None and terms.places:
        metrics.INPUT_PIXELS.labels(key.model, version).inc(batch.rows * terms.places)
        if terms.padded:
            images = [request for request in batch.requests if request.image[0]]
            used = sum([request.rows * request.image[0] * request.image[1] for request in images])
            rows = sum([request.rows for request in images])
            metrics.PADDING.labels(key.model, version).inc(rows * terms.places - used)
    if batch.predicted and batch.took:
        predicted, measured = metrics.prediction_counters(key.model, version)
        predicted.inc(batch.predicted)
        measured.inc(batch.took)
    for size, times in run.batches:
        sizes, batches, gather, inside, scatter, last = metrics.batch_counters(key.model, version, size, device)
        sizes.observe(size)
        batches.inc()
        gather.inc(times.run - times.gather)
        inside.inc(times.scatter - times.run)
        scatter.inc(times.done - times.scatter)
        last.set(time.time())


def count_backlog(waiting: Mapping[str, tuple[int, float]], device: int) -> None:
    """Shows the waiting rows of each model, and the seconds that a device needs for them."""
    for model, (rows, seconds) in waiting.items():
        metrics.QUEUE_DEPTH.labels(model, device).set(rows)
        metrics.QUEUE_SECONDS.labels(model, device).set(seconds)
