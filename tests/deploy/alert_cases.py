"""For each alert, series on which it fires and some on which it does not, in the notation of `promtool test rules`."""

from collections.abc import Mapping
from typing import NamedTuple

Series = Mapping[str, str]  # selector -> values, one a minute
Labels = Mapping[str, str]

AT = 'job="convoy", instance="a:8002"'
TARGET = {"job": "convoy", "instance": "a:8002"}
MODEL = 'model="letters", version="1", device="0"'
_CPU, _CUDA = 'provider="CPUExecutionProvider"', 'provider="CUDAExecutionProvider"'


class Case(NamedTuple):
    """`fires` are the labels of the alerts after `minutes`, without `alertname`."""

    alert: str
    series: Series
    minutes: int
    fires: tuple[Labels, ...] = ()


def _requests(code: str, values: str, model: str = "letters") -> Series:
    version = "1" if model else ""
    labels = f'{AT}, model="{model}", version="{version}", method="Classify", code="{code}"'
    return {f"convoy_request_duration_seconds_count{{{labels}}}": values}


def _answers(objective: str, values: str) -> Series:
    return {f'convoy_answers_total{{{AT}, model="letters", version="1", objective="{objective}"}}': values}


BURNS = {
    "14.4": {"severity": "page", "burn": "14.4", "window": "1h"},
    "6": {"severity": "page", "burn": "6", "window": "6h"},
    "3": {"severity": "ticket", "burn": "3", "window": "1d"},
    "1": {"severity": "ticket", "burn": "1", "window": "3d"},
}


def _burns(*rates: str, model: str = "letters") -> list[Labels]:
    named = {"model": model} if model else {}
    return [{"job": "convoy", **named, **BURNS[rate]} for rate in rates]


def _faults(share: float, minutes: int, *rates: str) -> Case:
    """Of 1000 requests a minute, a share fails through a fault of the server."""
    failed = round(1000 * share, 3)
    series = {
        **_requests("OK", f"0+{1000 - failed:g}x{minutes}"),
        **_requests("INTERNAL", f"0+{failed / 2:g}x{minutes}"),
        **_requests("UNAVAILABLE", f"0+{failed / 2:g}x{minutes}"),
    }
    return Case("ConvoyFaults", series, minutes, (*_burns(*rates), *_burns(*rates, model="")))


def _late(share: float, minutes: int, *rates: str) -> Case:
    late = round(1000 * share, 3)
    series = {**_answers("met", f"0+{1000 - late:g}x{minutes}"), **_answers("missed", f"0+{late:g}x{minutes}")}
    return Case("ConvoyLate", series, minutes, tuple(_burns(*rates)))


_READY = f"convoy_model_ready{{{AT}, {MODEL}"
_SECOND = 'convoy_model_ready{%s, model="letters", version="2", device="0"' % AT  # noqa: UP031  braces
_OF_MODEL = {**TARGET, "model": "letters"}
_OF_VERSION = {**_OF_MODEL, "version": "1"}
_ON_DEVICE = {**_OF_VERSION, "device": "0"}
_QUARANTINED = f"convoy_model_quarantined{{{AT}, {MODEL}}}"
_FALLBACK = f"convoy_model_fallback{{{AT}, {MODEL}}}"
_FRONT_ENDS = f"convoy_frontend_restarts_total{{{AT}}}"
_RELOAD = f'convoy_reload_failed{{{AT}, files="tls"}}'
_EXPIRY = f'convoy_tls_certificate_expiry_timestamp_seconds{{{AT}, port="grpc"}}'
PAGE, TICKET = {"severity": "page"}, {"severity": "ticket"}
_RESTARTS = f'convoy_engine_restarts_total{{{AT}, device="0"}}'
_EXAMPLES = f'convoy_example_failures_total{{{AT}, model="letters", version="1"}}'
_QUEUE = f'convoy_queue_seconds{{{AT}, model="letters", device="0"}}'
_OBJECTIVE = {f'convoy_model_latency_objective_seconds{{{AT}, model="letters", version="1"}}': "0.1x30"}


def _refused(reason: str, share: float, *fires: Labels) -> Case:
    """Of 1000 requests a minute, a share is refused for this reason."""
    refused = 1000 * share
    series = {
        **_requests("OK", f"0+{1000 - refused:g}x20"),
        **_requests("RESOURCE_EXHAUSTED", f"0+{refused:g}x20"),
        f'convoy_refusals_total{{{AT}, model="letters", reason="{reason}"}}': f"0+{refused:g}x20",
    }
    return Case("ConvoyRefusing", series, 15, fires)


CASES = (
    # Budgets of 0.1 % and 1 %, steadily used 20, 10, 4, 2 and 0.5 times as fast as allowed.
    _faults(0.02, 12, "14.4", "6", "3", "1"),
    _faults(0.01, 12, "6", "3", "1"),
    _faults(0.004, 12, "3", "1"),
    _faults(0.002, 12, "1"),
    _faults(0.0005, 12),
    _late(0.2, 12, "14.4", "6", "3", "1"),
    _late(0.1, 12, "6", "3", "1"),
    _late(0.04, 12, "3", "1"),
    _late(0.02, 12, "1"),
    _late(0.005, 12),
    # An hour of faults that has ended: the short time of the fastest burn no longer has any.
    Case(
        "ConvoyFaults",
        {**_requests("OK", "0+900x80"), **_requests("INTERNAL", "0+100x60 6000x20")},
        75,
        (*_burns("6", "3", "1"), *_burns("6", "3", "1", model="")),
    ),
    # Errors of callers are no faults of the server; neither are refusals.
    Case(
        "ConvoyFaults",
        {
            **_requests("OK", "0+100x70"),
            **_requests("INVALID_ARGUMENT", "0+100x70"),
            **_requests("RESOURCE_EXHAUSTED", "0+100x70"),
        },
        70,
    ),
    # Requests that fail before their model is known count against the job alone.
    Case(
        "ConvoyFaults",
        {**_requests("OK", "0+900x70"), **_requests("UNAVAILABLE", "0+100x70", model="")},
        70,
        tuple(_burns("14.4", "6", "3", "1", model="")),
    ),
    Case("ConvoyDown", {f"up{{{AT}}}": "1x5 0x10"}, 10, ({**TARGET, **PAGE},)),
    Case("ConvoyDown", {f"up{{{AT}}}": "1x15"}, 10),
    Case(
        "ConvoyModelNotServing",
        {f'{_READY}, provider=""}}': "0x20", f"{_SECOND}, {_CPU}}}": "0x20"},
        10,
        ({**_OF_MODEL, **PAGE},),
    ),
    Case("ConvoyModelNotServing", {f'{_READY}, provider=""}}': "0x20", f"{_SECOND}, {_CPU}}}": "1x20"}, 10),
    Case("ConvoyModelNotServing", {f"{_READY}, {_CPU}}}": "0x20"}, 10),  # unloaded on request
    Case("ConvoyVersionNotServing", {f'{_READY}, provider=""}}': "0x20"}, 16, ({**_ON_DEVICE, **TICKET},)),
    Case("ConvoyVersionNotServing", {f"{_READY}, {_CPU}}}": "0x20"}, 16),
    Case("ConvoyVersionNotServing", {f'{_READY}, provider=""}}': "0x10 stale"}, 16),  # it has loaded since
    Case(
        "ConvoyVersionQuarantined",
        {_QUARANTINED: "1x5"},
        2,
        ({**_ON_DEVICE, **TICKET},),
    ),
    Case("ConvoyVersionQuarantined", {_QUARANTINED: "0x5"}, 2),
    Case("ConvoyExampleFailed", {_EXAMPLES: "0x10 1x10"}, 12, ({**_OF_VERSION, **PAGE},)),
    Case("ConvoyExampleFailed", {_EXAMPLES: "_x10 1x10"}, 12, ({**_OF_VERSION, **PAGE},)),  # its first sample is 1
    Case("ConvoyExampleFailed", {_EXAMPLES: "1x120"}, 110),
    Case("ConvoyExampleFailed", {_EXAMPLES: "0x20"}, 12),
    Case("ConvoyProviderLost", {_FALLBACK: "0x5 1x10"}, 10, ({**_ON_DEVICE, **PAGE},)),
    Case("ConvoyProviderLost", {_FALLBACK: "0x20"}, 10),
    Case(
        "ConvoyProviderLost",
        {f"{_READY}, {_CUDA}}}": "1x10 stale", f'{_READY}, provider=""}}': "_x11 0x20"},
        20,
        ({**_ON_DEVICE, **PAGE},),
    ),
    Case("ConvoyProviderLost", {f'{_READY}, provider=""}}': "_x11 0x20"}, 20),  # it never had one
    Case("ConvoyEngineRestarted", {_RESTARTS: "0x5 1x20"}, 10, ({**TARGET, "device": "0", **TICKET},)),
    Case("ConvoyEngineRestarted", {_RESTARTS: "1x30"}, 20),
    Case("ConvoyEngineRestartsRepeatedly", {_RESTARTS: "0 0 1 2 3 4 5 6x10"}, 10, ({**TARGET, "device": "0", **PAGE},)),
    Case("ConvoyEngineRestartsRepeatedly", {_RESTARTS: "0x5 1x20"}, 10),
    Case("ConvoyFrontEndRestarted", {_FRONT_ENDS: "0x5 1x20"}, 10, ({**TARGET, **TICKET},)),
    Case("ConvoyFrontEndRestarted", {_FRONT_ENDS: "1x30"}, 20),
    Case("ConvoyQueueSaturated", {_QUEUE: "0.08x30", **_OBJECTIVE}, 20, ({**_OF_MODEL, **TICKET},)),
    Case("ConvoyQueueSaturated", {_QUEUE: "0.02x30", **_OBJECTIVE}, 20),
    Case("ConvoyQueueSaturated", {_QUEUE: "0x10 0.2x2 0x18", **_OBJECTIVE}, 14),  # a burst
    _refused("QUEUE_FULL", 0.1, {"job": "convoy", "model": "letters", **PAGE}),
    _refused("PREDICTED_LATE", 0.1, {"job": "convoy", "model": "letters", **PAGE}),
    _refused("QUEUE_FULL", 0.01),
    _refused("QUOTA_EXCEEDED", 0.1),  # the caller's own
    Case(
        "ConvoyCertificateExpires",
        {_EXPIRY: "259200x10"},  # three days from 0
        5,
        ({**TARGET, "port": "grpc", **TICKET},),
    ),
    Case(
        "ConvoyCertificateExpires",
        {_EXPIRY: "2592000x10"},  # thirty
        5,
    ),
    Case(
        "ConvoyReloadFailed",
        {_RELOAD: "1x10"},
        8,
        ({**TARGET, "files": "tls", **TICKET},),
    ),
    Case("ConvoyReloadFailed", {_RELOAD: "1x2 0x10"}, 8),
)
