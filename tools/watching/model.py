"""The dashboard of a model: what its requests wait for, and how its batches run."""

from convoy.service import metrics
from tools.watching.panels import (
    BATCHES_A_SECOND,
    IMAGES_A_SECOND,
    MISSED,
    MODEL,
    NAMED,
    OK,
    VERSION,
    Dashboard,
    Panel,
    Query,
    Row,
    latency,
    or_zero,
    stages,
)
from tools.watching.queries import INFERENCE, grown, level, mean, quantile, rate

_PREDICTED, _MEASURED = {"time": "=predicted"}, {"time": "=measured"}
_BY_SIZE = (*VERSION, "batch_size")

_REQUESTS = (
    Panel(
        "How long requests take",
        "Answered requests by the time from arrival to reply. The darker a cell, the more requests.",
        "s",
        [
            Query(
                grown(
                    metrics.REQUEST_DURATION,
                    ("le",),
                    "$__rate_interval",
                    part="bucket",
                    matchers={**INFERENCE, **OK},
                ),
                "{{le}}",
            )
        ],
        kind="heatmap",
    ),
    Panel("Latency", "From arrival to reply, of answered requests.", "s", latency(VERSION, f", {NAMED}")),
    Panel(
        "Within the objective",
        "Share of the answers that came within the latency objective of their version. Requests of low priority are "
        "not counted.",
        "percentunit",
        [Query(f"1 - {rate(metrics.ANSWERS, VERSION, matchers=MISSED)} / {rate(metrics.ANSWERS, VERSION)}", NAMED)],
    ),
    Panel(
        "Requests by status",
        "Requests a second by method and gRPC status.",
        "reqps",
        [
            Query(
                rate(metrics.REQUEST_DURATION, ("method", "code"), part="count", matchers=INFERENCE),
                "{{method}} {{code}}",
            )
        ],
        stacked=True,
    ),
    Panel(
        "Refused, by reason",
        "Images and requests that were not served, a second. docs/errors.md explains the reasons.",
        "reqps",
        [Query(rate(metrics.REFUSALS, ("reason",)), "{{reason}}")],
        stacked=True,
    ),
    Panel(
        "Too late, cancelled, sent again",
        "Requests a second whose deadline passed or whose callers left, and images sent to a restarted engine.",
        "reqps",
        [
            Query(or_zero(rate(metrics.DEADLINE_MISSES)), "deadline passed"),
            Query(or_zero(rate(metrics.CANCELLED)), "cancelled"),
            Query(or_zero(rate(metrics.RETRIES)), "sent again"),
        ],
    ),
)

_TIME = (
    Panel(
        "Where the time goes",
        "The mean time of an image in each stage, one on top of the other: they follow each other without a gap.",
        "s",
        stages(),
        stacked=True,
    ),
    Panel(
        "Slow stages",
        "The time that 99 % of the images did not exceed in each stage.",
        "s",
        [Query(quantile(0.99, metrics.STAGE_DURATION, ("stage",)), "{{stage}}")],
    ),
    Panel(
        "How long images wait",
        "Images by their time in the queue. The darker a cell, the more images.",
        "s",
        [
            Query(
                grown(metrics.STAGE_DURATION, ("le",), "$__rate_interval", part="bucket", matchers={"stage": "=queue"}),
                "{{le}}",
            )
        ],
        kind="heatmap",
    ),
    Panel(
        "Time that waits, and the objective",
        "How long the device will need for the images in the queue, as predicted, and the latency objectives. Near its "
        "objective a model is full.",
        "s",
        [
            Query(level(metrics.QUEUE_SECONDS, MODEL, "max"), "waits for {{model}}"),
            Query(level(metrics.MODEL_OBJECTIVE, VERSION, "max"), f"objective of {NAMED}"),
        ],
    ),
    Panel(
        "Images that wait",
        "Images in the queue.",
        "short",
        [Query(level(metrics.QUEUE_DEPTH, MODEL), "{{model}}")],
    ),
    Panel(
        "Images",
        "Images answered a second.",
        IMAGES_A_SECOND,
        [Query(rate(metrics.IMAGES, VERSION), NAMED)],
        stacked=True,
    ),
)

_BATCHES = (
    Panel(
        "Sizes of batches",
        "Batches by their number of images. The darker a cell, the more batches.",
        "short",
        [Query(grown(metrics.BATCH_SIZE, ("le",), "$__rate_interval", part="bucket"), "{{le}}")],
        kind="heatmap",
    ),
    Panel(
        "Images in a batch",
        "The mean size of the batches that ran.",
        "short",
        [Query(mean(metrics.BATCH_SIZE, VERSION), NAMED)],
    ),
    Panel(
        "Batches by size",
        "Batches a second, by their exact size.",
        BATCHES_A_SECOND,
        [Query(rate(metrics.BATCHES, ("batch_size",)), "{{batch_size}} images")],
        stacked=True,
    ),
    Panel(
        "Time of a batch by size",
        "The mean time of gather, run and scatter together, by the exact size of a batch. Where it does not grow with "
        "the size, batching is free.",
        "s",
        [
            Query(
                f"{rate(metrics.BATCH_STAGE, _BY_SIZE)} / {rate(metrics.BATCHES, _BY_SIZE)}",
                f"{{{{batch_size}}}} images, {NAMED}",
            )
        ],
    ),
    Panel(
        "Predicted and measured",
        "Seconds of batches in each second, as the scheduler predicted them and as they were. Deadlines are kept by "
        "the prediction.",
        "s",
        [
            Query(rate(metrics.BATCH_PREDICTION, matchers=_PREDICTED), "predicted"),
            Query(rate(metrics.BATCH_PREDICTION, matchers=_MEASURED), "measured"),
        ],
    ),
    Panel(
        "Measured by predicted",
        "1: batches take what was predicted. Above 1 something slows the device down that the scheduler does not know.",
        "short",
        [
            Query(
                f"{rate(metrics.BATCH_PREDICTION, VERSION, matchers=_MEASURED)}"
                f" / {rate(metrics.BATCH_PREDICTION, VERSION, matchers=_PREDICTED)}",
                NAMED,
            )
        ],
    ),
    Panel(
        "Padding",
        "Share of the pixels that ran and were padding. Buckets make it smaller: docs/scheduling.md.",
        "percentunit",
        [Query(f"{rate(metrics.PADDING, VERSION)} / {rate(metrics.INPUT_PIXELS, VERSION)}", NAMED)],
    ),
    Panel(
        "Pixels",
        "Pixels a second that ran, with their padding.",
        "suffix: pixels/s",
        [Query(rate(metrics.INPUT_PIXELS, VERSION), NAMED)],
    ),
    Panel(
        "Requests share runs",
        "1 where requests for a version share runs, 0 where each runs alone.",
        "short",
        [Query(level(metrics.MODEL_BATCHED, VERSION, "min"), NAMED)],
    ),
)

_HEALTH = (
    Panel(
        "Ready",
        "1 where a version serves, by provider. Without a provider, one that should serve and cannot.",
        "short",
        [Query(level(metrics.MODEL_READY, (*VERSION, "provider"), "min"), f"{NAMED} {{{{provider}}}}")],
    ),
    Panel(
        "Examples that failed",
        "How often the answer to a file's own example was not that of its export, in the chosen time.",
        "short",
        [Query(grown(metrics.EXAMPLE_FAILURES, VERSION), NAMED)],
    ),
    Panel(
        "Time since the last batch",
        "How long ago a batch of a version ended.",
        "s",
        [Query(f"time() - {level(metrics.LAST_INFERENCE, VERSION, 'max')}", NAMED)],
    ),
)

ONE_MODEL = Dashboard(
    "convoy-model",
    "Convoy: one model",
    "What the requests of a model wait for, and how its batches run.",
    (
        Row("Requests", _REQUESTS),
        Row("Time", _TIME),
        Row("Batches", _BATCHES),
        Row("Versions", _HEALTH),
    ),
)
