"""Recording rules and alerts: the budgets of faults and of late answers, and what nobody should have to look for."""

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

from convoy.service import metrics
from tools.watching.queries import FAULTY, INFERENCE, Matchers, rate, series

JOB = "convoy"  # as in deploy/prometheus/prometheus.yml
_PAGE = "docs/watching.md"
_GPU = "=~(CUDA|Tensorrt).*"
_NAMED: Matchers = {"model": "!="}
_CERTIFICATE_DAYS = 7

Severity = Literal["page", "ticket"]  # somebody gets up at once; somebody looks on the next working day


class Objective(NamedTuple):
    """A promise over 30 days. `budget` is the share of requests that may break it."""

    name: str
    budget: float
    heading: str  # of _PAGE

    def recorded(self, window: str) -> str:
        """The share of requests that broke it in a time, as a recording rule names it."""
        return f"convoy:{self.name}_errors:ratio_rate{window}"


# 99.9 %: 43 minutes of nothing but faults in 30 days.
AVAILABILITY = Objective("availability", 0.001, "the-budget-of-faults")
# 99 %: the objective is a bound for each request, and a scheduler that fills a device up to it misses it now and then.
LATENCY = Objective("latency", 0.01, "the-budget-of-late-answers")


class Burn(NamedTuple):
    """A budget that is used `rate` times as fast as allowed: in a long time, and still in a short one.

    The table is that of the Site Reliability Workbook (chapter 5): 2 % of the budget of 30 days in an hour, 5 % in six
    hours, 10 % in one day and in three.
    """

    rate: float
    long: str
    short: str
    severity: Severity


BURNS = (
    Burn(14.4, "1h", "5m", "page"),
    Burn(6, "6h", "30m", "page"),
    Burn(3, "1d", "2h", "ticket"),
    Burn(1, "3d", "6h", "ticket"),
)
_SHORT = ("5m", "30m", "1h")
_LONG = ("2h", "6h", "1d", "3d")


class Alert(NamedTuple):
    """An alert. `lasting` is how long its expression must hold, `heading` the section of the page about it."""

    name: str
    expression: str
    lasting: str
    severity: Severity
    summary: str
    action: str
    heading: str
    labels: Mapping[str, str] = MappingProxyType({})  # further ones

    def rule(self) -> dict[str, Any]:
        return {
            "alert": self.name,
            "expr": self.expression,
            "for": self.lasting,
            "labels": {"severity": self.severity, **self.labels},
            "annotations": {
                "summary": self.summary,
                "action": self.action,
                "runbook": f"{_PAGE}#{self.heading}",
            },
        }


def _faults(window: str, by: tuple[str, ...], named: Matchers) -> str:
    """The share of requests that failed through a fault of the server; 0 if none has failed yet."""
    whole = rate(metrics.REQUEST_DURATION, by, window, "count", {**INFERENCE, **named})
    part = rate(metrics.REQUEST_DURATION, by, window, "count", {**INFERENCE, **FAULTY, **named})
    return f"(\n  {part}\n  or\n  0 * {whole}\n)\n/ {whole}"


def _late(window: str) -> str:
    by = ("job", "model")
    part = rate(metrics.ANSWERS, by, window, matchers={"objective": "=missed"})
    return f"{part}\n/ {rate(metrics.ANSWERS, by, window)}"


def _recorded(windows: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    for window in windows:
        # By model, and of the whole job, which also counts requests that failed before their model was known.
        both = f"{_faults(window, ('job', 'model'), _NAMED)}\nor\n{_faults(window, ('job',), {})}"
        yield {"record": AVAILABILITY.recorded(window), "expr": both}
        yield {"record": LATENCY.recorded(window), "expr": _late(window)}


REFUSED = "convoy:refused:ratio_rate5m"
_OVERLOAD: Matchers = {"reason": "=~QUEUE_FULL|PREDICTED_LATE"}


def _refused() -> str:
    by = ("job", "model")
    refused = rate(metrics.REFUSALS, by, "5m", matchers={**_OVERLOAD, **_NAMED})
    return f"{refused}\n/ {rate(metrics.REQUEST_DURATION, by, '5m', 'count', {**INFERENCE, **_NAMED})}"


def _burning() -> Iterator[Alert]:
    what = {
        AVAILABILITY: ("of faults", "fails through faults of the server", "ConvoyFaults"),
        LATENCY: ("of late answers", "is answered after the latency objective", "ConvoyLate"),
    }
    for objective, (budget, happens, name) in what.items():
        for burn in BURNS:
            bound = f"{burn.rate:g} * {objective.budget:g}"
            yield Alert(
                name,
                f"{objective.recorded(burn.long)} > {bound}\nand\n{objective.recorded(burn.short)} > {bound}",
                "0s",
                burn.severity,
                f"{{{{ if $labels.model }}}}Model {{{{ $labels.model }}}}{{{{ else }}}}All of {{{{ $labels.job }}}}"
                f"{{{{ end }}}}: {{{{ $value | humanizePercentage }}}} of the requests of {burn.long} {happens}. "
                f"The budget {budget} lasts 30 days at {100 * objective.budget:g} %.",
                "Look at `Requests by status` and at the log."
                if objective is AVAILABILITY
                else "Look at `Where the time goes` of the model.",
                objective.heading,
                {"burn": f"{burn.rate:g}", "window": burn.long},
            )


_VERSION = "Model {{ $labels.model }} version {{ $labels.version }} on {{ $labels.instance }}"
_UNREADY = series(metrics.MODEL_READY, matchers={"provider": "="})
_OF_MODEL = "job, instance, model"


def _restarted(metric: metrics.Supplied, window: str) -> str:
    return f"increase({series(metric)}[{window}])"


ALERTS = (
    *_burning(),
    Alert(
        "ConvoyDown",
        f'up{{job="{JOB}"}} == 0',
        "2m",
        "page",
        "{{ $labels.instance }} does not answer Prometheus.",
        "Is the process there? Its last lines of log say why it ended.",
        "convoydown",
    ),
    Alert(
        "ConvoyModelNotServing",
        f"max by ({_OF_MODEL}) ({series(metrics.MODEL_READY)}) == 0\nand on ({_OF_MODEL})\n{_UNREADY} == 0",
        "5m",
        "page",
        "No version of model {{ $labels.model }} serves on {{ $labels.instance }}.",
        "`convoy models` has the reason.",
        "convoymodelnotserving",
    ),
    Alert(
        "ConvoyVersionNotServing",
        f"{_UNREADY} == 0",
        "15m",
        "ticket",
        f"{_VERSION} should serve and cannot.",
        "`convoy models` has the reason. Correct the file or remove it.",
        "convoyversionnotserving",
    ),
    Alert(
        "ConvoyVersionQuarantined",
        f"{series(metrics.MODEL_QUARANTINED)} == 1",
        "0s",
        "ticket",
        f"{_VERSION}: its files killed the process that tried them, or did not come to an end.",
        "Do not serve the file elsewhere. Find out where it is from.",
        "convoyversionquarantined",
    ),
    Alert(
        "ConvoyExampleFailed",
        # A series that begins with a failure has no increase.
        f"increase({series(metrics.EXAMPLE_FAILURES)}[1h]) > 0\nor\n"
        f"({series(metrics.EXAMPLE_FAILURES)} > 0 unless {series(metrics.EXAMPLE_FAILURES)} offset 1h)",
        "0s",
        "page",
        f"{_VERSION} answers its own example otherwise than at its export: its answers, or the device, are wrong.",
        "If several models say so, take the server out of service and test its device. If one does, export it again.",
        "convoyexamplefailed",
    ),
    Alert(
        "ConvoyProviderLost",
        f"{series(metrics.MODEL_FALLBACK)} == 1\nor\n(\n  {_UNREADY} == 0\n  and on ({_OF_MODEL}, version)\n  "
        f"max by ({_OF_MODEL}, version) (max_over_time({series(metrics.MODEL_READY, matchers={'provider': _GPU})}[1h]))"
        " == 1\n)",
        "1m",
        "page",
        f"{_VERSION} runs on the CPU though a GPU was offered, or has lost its GPU and does not serve.",
        "Run `nvidia-smi` there; the log names the library or the fault.",
        "convoyproviderlost",
    ),
    Alert(
        "ConvoyEngineRestarted",
        f"{_restarted(metrics.ENGINE_RESTARTS, '15m')} > 0",
        "0s",
        "ticket",
        "The engine of device {{ $labels.device }} of {{ $labels.instance }} has died or hung, and was started again.",
        "The log says of what it died. Requests that waited were sent again.",
        "convoyenginerestarted",
    ),
    Alert(
        "ConvoyEngineRestartsRepeatedly",
        f"{_restarted(metrics.ENGINE_RESTARTS, '15m')} > 3",
        "0s",
        "page",
        "The engine of device {{ $labels.device }} of {{ $labels.instance }} dies or hangs again and again.",
        "Take the server out of service; the log says of what its engine dies.",
        "convoyenginerestarted",
    ),
    Alert(
        "ConvoyFrontEndRestarted",
        f"{_restarted(metrics.FRONTEND_RESTARTS, '15m')} > 0",
        "0s",
        "ticket",
        "A front end of {{ $labels.instance }} has died or hung, and was started again. Its calls have failed.",
        "The log says of what it died.",
        "convoyfrontendrestarted",
    ),
    Alert(
        "ConvoyQueueSaturated",
        f"max by ({_OF_MODEL}) (avg_over_time({series(metrics.QUEUE_SECONDS)}[5m]))\n> on ({_OF_MODEL})\n"
        f"0.5 * max by ({_OF_MODEL}) ({series(metrics.MODEL_OBJECTIVE)})",
        "5m",
        "ticket",
        "Model {{ $labels.model }} on {{ $labels.instance }}: {{ $value | humanizeDuration }} of work wait for its "
        "device, more than half of the latency objective.",
        "Add a replica, or send less. What else runs on the device?",
        "convoyqueuesaturated",
    ),
    Alert(
        "ConvoyRefusing",
        f"{REFUSED} > 0.05",
        "5m",
        "page",
        "Model {{ $labels.model }}: {{ $value | humanizePercentage }} of what is asked is refused because the servers "
        "are full.",
        "Add a replica. Callers get `QUEUE_FULL` or `PREDICTED_LATE` and try again.",
        "convoyrefusing",
    ),
    Alert(
        "ConvoyCertificateExpires",
        f"{series(metrics.CERTIFICATE_EXPIRY)} - time() < {_CERTIFICATE_DAYS} * 86400",
        "0s",
        "ticket",
        "The certificate of port {{ $labels.port }} of {{ $labels.instance }} expires in "
        "{{ $value | humanizeDuration }}.",
        "Write a new pair into the same files: the server reads it by itself.",
        "convoycertificateexpires",
    ),
    Alert(
        "ConvoyReloadFailed",
        f"{series(metrics.RELOAD_FAILED)} == 1",
        "5m",
        "ticket",
        "{{ $labels.instance }} cannot use the changed files of `{{ $labels.files }}`, and goes on with those before.",
        "The log says what is wrong with them.",
        "convoyreloadfailed",
    ),
)


def recording_rules() -> dict[str, Any]:
    """The file of recording rules. Long times change slowly and are computed less often."""
    groups = [
        {"name": "convoy-shares", "rules": [*_recorded(_SHORT), {"record": REFUSED, "expr": _refused()}]},
        {"name": "convoy-long-shares", "interval": "2m", "rules": list(_recorded(_LONG))},
    ]
    return {"groups": groups}


def alerting_rules() -> dict[str, Any]:
    """The file of alerts."""
    return {"groups": [{"name": "convoy-alerts", "rules": [alert.rule() for alert in ALERTS]}]}
