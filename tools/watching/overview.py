"""The dashboard of all servers and models: is all well, and if not, where?"""

from convoy.service import metrics
from tools.watching.panels import (
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
    stat,
)
from tools.watching.queries import FAULTY, INFERENCE, grown, level, quantile, rate, series
from tools.watching.rules import AVAILABILITY, LATENCY, Objective


def _burn(objective: Objective) -> Query:
    recorded = f'{objective.recorded("1h")}{{job=~"$job", model=~"$model"}}'
    return Query(f"{recorded} / {objective.budget:g}", f"{objective.name}, {{{{model}}}}")


def _requests_with(codes: dict[str, str]) -> str:
    return grown(metrics.REQUEST_DURATION, part="count", matchers={**INFERENCE, **codes})


_NOW = (
    stat(
        "Requests",
        "Requests for a model a second, answered or not.",
        "reqps",
        rate(metrics.REQUEST_DURATION, part="count", matchers=INFERENCE),
    ),
    stat(
        "Without a fault of the server",
        "Share of the requests in the chosen time that did not fail through a fault of the server. The budget allows "
        f"{100 * AVAILABILITY.budget:g} % of faults.",
        "percentunit",
        f"1 - {or_zero(_requests_with(FAULTY))} / {_requests_with({})}",
        good=1 - AVAILABILITY.budget,
    ),
    stat(
        "Within the objective",
        "Share of the answers in the chosen time that came within the latency objective of their version. The budget "
        f"allows {100 * LATENCY.budget:g} % of later ones.",
        "percentunit",
        f"1 - {or_zero(grown(metrics.ANSWERS, matchers=MISSED))} / {grown(metrics.ANSWERS)}",
        good=1 - LATENCY.budget,
    ),
    stat(
        "99 % answered within",
        "The time from arrival to reply that 99 % of the answered requests did not exceed.",
        "s",
        quantile(0.99, metrics.REQUEST_DURATION, matchers={**INFERENCE, **OK}),
    ),
    stat(
        "Versions that cannot serve",
        "Versions that should serve and cannot. `convoy models` and the log have the reason.",
        "short",
        or_zero(f"count({series(metrics.MODEL_READY, matchers={'provider': '='}, chosen=True)} == 0)"),
        bad=1,
    ),
    stat(
        "Processes restarted",
        "Engines and front ends that were started again in the chosen time because they had died or hung.",
        "short",
        f"{grown(metrics.ENGINE_RESTARTS)} + {grown(metrics.FRONTEND_RESTARTS)}",
        bad=1,
    ),
)

_PROMISES = (
    Panel(
        "Burn rate of the budgets",
        "How many times as fast as allowed the budgets of faults and of late answers were used in the last hour: 1 "
        "uses them up in exactly 30 days, 14.4 uses 2 % of them in an hour. A series without a model is the whole job.",
        "short",
        [_burn(AVAILABILITY), _burn(LATENCY)],
    ),
    Panel(
        "Requests by status",
        "Requests for a model a second, by gRPC status; over HTTP, by the status that gRPC would have.",
        "reqps",
        [Query(rate(metrics.REQUEST_DURATION, ("code",), part="count", matchers=INFERENCE), "{{code}}")],
        stacked=True,
    ),
    Panel(
        "Refused, by reason",
        "Images and requests that were not served, a second. docs/errors.md explains the reasons.",
        "reqps",
        [Query(rate(metrics.REFUSALS, ("reason",)), "{{reason}}")],
        stacked=True,
    ),
)

_TRAFFIC = (
    Panel(
        "Requests by model",
        "Requests a second that reached a model.",
        "reqps",
        [
            Query(
                rate(metrics.REQUEST_DURATION, MODEL, part="count", matchers={**INFERENCE, "model": "!="}), "{{model}}"
            )
        ],
        stacked=True,
    ),
    Panel("Latency", "From the arrival of a request to its reply, of answered requests.", "s", latency((), "")),
    Panel(
        "Latency by model",
        "The time that 99 % of the answered requests of a model did not exceed.",
        "s",
        [Query(quantile(0.99, metrics.REQUEST_DURATION, MODEL, {**INFERENCE, **OK}), "{{model}}")],
    ),
    Panel(
        "Where the time goes",
        "The mean time of an image in each stage, one on top of the other: they follow each other without a gap.",
        "s",
        stages(),
        stacked=True,
    ),
    Panel(
        "Time that waits for a device",
        "How long the device will need for the images in the queues, as predicted.",
        "s",
        [Query(level(metrics.QUEUE_SECONDS, MODEL), "{{model}}")],
        stacked=True,
    ),
    Panel(
        "Too late, or cancelled",
        "Requests a second whose deadline passed before their answer, or whose callers left before that.",
        "reqps",
        [
            Query(or_zero(rate(metrics.DEADLINE_MISSES)), "deadline passed"),
            Query(or_zero(rate(metrics.CANCELLED)), "cancelled"),
        ],
    ),
)

_SERVERS = (
    Panel(
        "Versions",
        "Each version: 1 where it serves, and on which provider. Without a provider, one that should serve and cannot.",
        "short",
        [Query(level(metrics.MODEL_READY, ("instance", *VERSION, "provider", "device"), "max"))],
        kind="table",
        width=12,
    ),
    Panel(
        "Software",
        "The versions of Convoy, Python and onnxruntime of each server.",
        "short",
        [Query(level(metrics.BUILD, ("instance", "version", "python", "onnxruntime"), "max"))],
        kind="table",
        width=12,
    ),
    Panel(
        "Requests in flight",
        "Requests accepted and not yet answered.",
        "short",
        [Query(level(metrics.IN_FLIGHT, ("instance",)), "{{instance}}")],
        stacked=True,
    ),
    Panel(
        "Bytes in flight",
        "Bytes of the requests accepted and not yet answered. `limits.max_in_flight_mib` bounds them.",
        "bytes",
        [Query(level(metrics.IN_FLIGHT_BYTES, ("instance",)), "{{instance}}")],
        stacked=True,
    ),
    Panel(
        "Changed files that cannot be used",
        "1 where changed files of `tls` or `callers` cannot be used, so that what was read before stays in use.",
        "short",
        [Query(level(metrics.RELOAD_FAILED, ("instance", "files"), "max"), "{{files}}, {{instance}}")],
    ),
    Panel(
        "Certificates expire in",
        "The time that is left to the certificate in use.",
        "s",
        [Query(f"{level(metrics.CERTIFICATE_EXPIRY, ('instance', 'port'), 'min')} - time()", "{{port}}, {{instance}}")],
    ),
    Panel(
        "What speaks gRPC",
        "The library of each server's front ends: `nghttp2` costs less than `grpcio`.",
        "short",
        [Query(level(metrics.TRANSPORT, ("instance", "transport", "version"), "max"))],
        kind="table",
    ),
    Panel(
        "Quarantined versions",
        "1 where the files of a version killed the process that tried them, or did not come to an end.",
        "short",
        [Query(or_zero(level(metrics.MODEL_QUARANTINED, VERSION, "max")), NAMED)],
    ),
)

OVERVIEW = Dashboard(
    "convoy-overview",
    "Convoy: overview",
    "All servers and models: is all well, and if not, where?",
    (
        Row("Now", _NOW),
        Row("What is promised", _PROMISES),
        Row("Traffic", _TRAFFIC),
        Row("Servers and versions", _SERVERS),
    ),
)
