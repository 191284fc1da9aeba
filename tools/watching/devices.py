"""The dashboard of devices and processes: what is busy, full, or starts again."""

from convoy.service import metrics
from tools.watching.panels import BATCHES_A_SECOND, VERSION, Dashboard, Panel, Query, Row
from tools.watching.queries import grown, level, rate

_DEVICE = ("instance", "device")
_PROCESS = ("instance", "process", "device", "pid")
_ON = "device {{device}} of {{instance}}"
_NAME = "{{process}} {{device}} ({{pid}}) of {{instance}}"

_DEVICES = (
    Panel(
        "Batches",
        "Batches a second that each device ran.",
        BATCHES_A_SECOND,
        [Query(rate(metrics.BATCHES, _DEVICE), _ON)],
    ),
    Panel(
        "Busy",
        "Seconds of gather, run and scatter in each second of a server, by model. With one session, 1 is full.",
        "percentunit",
        [Query(rate(metrics.BATCH_STAGE, ("instance", "model")), "{{model}} on {{instance}}")],
        stacked=True,
    ),
    Panel(
        "Time that waits",
        "How long each device will need for the images in its queues, as predicted.",
        "s",
        [Query(level(metrics.QUEUE_SECONDS, _DEVICE), _ON)],
    ),
    Panel("Images that wait", "Images in the queues.", "short", [Query(level(metrics.QUEUE_DEPTH, _DEVICE), _ON)]),
    Panel(
        "Versions by provider",
        "How many versions serve on each onnxruntime provider.",
        "short",
        [
            Query(
                level(metrics.MODEL_READY, (*_DEVICE, "provider"), matchers={"provider": "!="}),
                f"{{{{provider}}}}, {_ON}",
            )
        ],
    ),
    Panel(
        "On the CPU though a GPU was offered",
        "1 where a version runs on the CPU though this onnxruntime offers CUDA and the settings allow it.",
        "short",
        [Query(level(metrics.MODEL_FALLBACK, (*_DEVICE, *VERSION), "max"), f"{{{{model}}}} on {_ON}")],
    ),
    Panel(
        "Nodes by provider",
        "On a GPU: how many nodes of a version's network each provider runs. Those on the CPU cost copies.",
        "short",
        [
            Query(
                level(metrics.MODEL_NODES, (*VERSION, "provider"), "max"), "{{provider}}, {{model}} version {{version}}"
            )
        ],
    ),
)

_PROCESSES = (
    Panel(
        "CPU",
        "Cores that each process uses.",
        "suffix: cores",
        [Query(rate(metrics.PROCESS_CPU, _PROCESS), _NAME)],
        stacked=True,
    ),
    Panel(
        "Memory",
        "Resident memory of each process, with the slot memory that it shares with others.",
        "bytes",
        [Query(level(metrics.PROCESS_RESIDENT, _PROCESS), _NAME)],
    ),
    Panel(
        "Engines restarted",
        "Engines that were started again in the chosen time because they had died or hung.",
        "short",
        [Query(grown(metrics.ENGINE_RESTARTS, _DEVICE), _ON)],
    ),
    Panel(
        "Front ends restarted",
        "Front ends that were started again in the chosen time because they had died or hung.",
        "short",
        [Query(grown(metrics.FRONTEND_RESTARTS, ("instance",)), "{{instance}}")],
    ),
    Panel(
        "Replaced because of their memory",
        "Processes that were replaced by fresh ones in the chosen time because they had too much memory.",
        "short",
        [Query(grown(metrics.RECYCLED, ("instance", "process")), "{{process}} of {{instance}}")],
    ),
)

_SLOTS = (
    Panel(
        "Slots",
        "Slots claimed and not yet freed.",
        "short",
        [Query(level(metrics.SLOTS, ("instance",)), "{{instance}}")],
    ),
    Panel(
        "Slot memory", "Slot memory in use.", "bytes", [Query(level(metrics.SLOT_BYTES, ("instance",)), "{{instance}}")]
    ),
)

DEVICES = Dashboard(
    "convoy-devices",
    "Convoy: devices",
    "Devices and processes: what is busy, full, or starts again.",
    (Row("Devices", _DEVICES), Row("Processes", _PROCESSES), Row("Memory between processes", _SLOTS)),
)
