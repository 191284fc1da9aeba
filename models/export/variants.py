"""Variants of a network in lower precision: made from its fp32 graph, compared with it in a table, refused if too
inaccurate."""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np
import onnx
from rich.table import Table

from convoy.models.checkpoint import Description
from convoy.models.data.batches import loader
from convoy.models.data.builtin.generated import generated
from convoy.models.data.dataset import Split, Subset
from convoy.models.errors import VariantRefused
from convoy.models.evaluation.metrics import LEADING
from convoy.models.export import comparison
from convoy.models.export.comparison import Quality
from convoy.models.export.precision import Inputs, half_precision, quantised
from convoy.models.runtime import CUDA
from convoy.models.settings import Plan
from convoy.service.metadata import Precision, Task, Variant

HALF_IMAGES = 32  # images that determine which values are too large for half precision


class Outcome(NamedTuple):
    """A graph and its measurements; `variant` is None for fp32 itself, `complaint` is empty if the graph may be served.

    image_ms  milliseconds per image, by batch size
    """

    graph: onnx.ModelProto
    quality: Quality
    image_ms: dict[int, float]
    variant: Variant | None
    complaint: str

    @property
    def best_batch(self) -> int:
        """The batch size with the least time per image."""
        return min(self.image_ms, key=self.image_ms.__getitem__)


def make(precision: Precision, graph: onnx.ModelProto, description: Description, plan: Plan) -> onnx.ModelProto:
    """Returns the graph in that precision, unmeasured. Raises VariantRefused, BadTraining, BadData."""
    match precision:
        case "fp32":
            return graph
        case "fp16":
            return half_precision(graph, _inputs(description, _split(description), HALF_IMAGES))
        case "int8":
            return quantised(graph, calibration_batches(description, plan), plan.calibration)


def calibration_batches(description: Description, plan: Plan) -> Iterator[Inputs]:
    """Returns the calibration set: training images, evenly spread over their split and preprocessed as in serving.
    Raises VariantRefused if the weights have no data."""
    if not description.data:
        raise VariantRefused("int8 is calibrated on training images, but there are none: want --data DATA")
    return _inputs(description, description.split("train"), plan.calibration_images)


def measure(graphs: dict[Precision, onnx.ModelProto], description: Description, plan: Plan) -> dict[Precision, Outcome]:
    """Measures all graphs together; fp32, which comes first, is the reference."""
    running = comparison.sessions(graphs)
    qualities = comparison.qualities(running, description)
    times = comparison.image_times(running, description)
    outcomes = {}
    for precision, graph in graphs.items():
        variant = None
        if precision != "fp32":
            where = comparison.provider(running), comparison.processor(running)
            variant = _variant(precision, description, plan, qualities, times, where)
        complaint = "" if variant is None else refusal(variant, plan.max_drop)
        outcomes[precision] = Outcome(graph, qualities[precision], times[precision], variant, complaint)
    return outcomes


def refusal(variant: Variant, max_drop: float) -> str:
    """Returns why a variant may not be served; empty if it may. Without a score, each prediction that differs from
    fp32's counts as lost."""
    if not np.isfinite(variant.max_abs_difference):
        return f"{variant.precision} outputs values that are not finite: some exceed its range"
    if variant.drop is None:
        lost, what = round(1 - variant.agreement, 6), f"changes {1 - variant.agreement:.4f} of the predictions"
    else:
        lost, what = variant.drop, f"loses {variant.drop:.4f} of {variant.score}"
    if lost <= max_drop:
        return ""
    return f"{variant.precision} {what} on {variant.images} images, want at most {max_drop:g}: see --max-drop"


def table(outcomes: Mapping[Precision, Outcome], task: Task) -> Table:
    """Returns a row per variant. The second speed-up compares with fp32 at the best batch size of each."""
    score = LEADING[task]
    rows = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    columns = (
        "variant",
        "file KiB",
        "ms alone",
        "speed-up",
        "best batch",
        "ms an image",
        "speed-up",
        score,
        "drop",
        "same predictions",
        "",
    )
    for name in columns:
        rows.add_column(name, justify="left" if name in ("variant", "") else "right", no_wrap=True)
    for precision, outcome in outcomes.items():
        rows.add_row(*_cells(precision, outcome, score))
    return rows


def notes(outcomes: Mapping[Precision, Outcome]) -> list[str]:
    """Returns where it was measured, and why variants are refused."""
    measured = next((outcome.variant for outcome in outcomes.values() if outcome.variant is not None), None)
    lines = [outcome.complaint for outcome in outcomes.values() if outcome.complaint]
    if measured is not None:
        lines.insert(0, f"measured with {', '.join(filter(None, (measured.provider, measured.processor)))}")
        if "fp16" in outcomes and measured.provider != CUDA:
            lines.insert(1, "fp16 is for CUDA: a CPU has no fp16 arithmetic and computes in fp32 between two casts")
    return lines


def _split(description: Description) -> Split:
    return description.split("train") if description.data else generated(description.spec)


def _inputs(description: Description, split: Split, most: int) -> Iterator[Inputs]:
    # One by one: calibration keeps every activation of a batch in memory, and they may be large.
    spread = np.unique(np.linspace(0, len(split) - 1, most).round().astype(int)).tolist()
    batches = loader(Subset(split, spread), description.spec, batch_size=1)
    return ({description.as_tensor.name: images.numpy()} for images, _ in batches)


def _variant(
    precision: Precision,
    description: Description,
    plan: Plan,
    qualities: dict[Precision, Quality],
    times: dict[Precision, dict[int, float]],
    where: tuple[str, str],
) -> Variant:
    assert precision != "fp32"
    quality, reference = qualities[precision], qualities["fp32"]
    score = LEADING[description.task] if quality.scores else ""
    return Variant(
        precision=precision,
        images=quality.images,
        score=score,
        drop=round(reference.scores[score] - quality.scores[score], 6) if score else None,
        agreement=quality.agreement,
        max_abs_difference=quality.difference,
        speed_up=round(times["fp32"][1] / times[precision][1], 3),
        batched_speed_up=round(min(times["fp32"].values()) / min(times[precision].values()), 3),
        provider=where[0],
        processor=where[1],
        calibration=plan.calibration if precision == "int8" else None,
        calibration_images=_calibrated(description, plan) if precision == "int8" else None,
    )


def _calibrated(description: Description, plan: Plan) -> int:
    return min(plan.calibration_images, len(description.split("train")))


def _cells(precision: Precision, outcome: Outcome, score: str) -> list[str]:
    variant, quality, best = outcome.variant, outcome.quality, outcome.best_batch
    return [
        precision,
        f"{outcome.graph.ByteSize() / 1024:,.0f}",
        f"{outcome.image_ms[1]:.2f}",
        "" if variant is None else f"{variant.speed_up:.2f}",
        str(best),
        f"{outcome.image_ms[best]:.2f}",
        "" if variant is None else f"{variant.batched_speed_up:.2f}",
        f"{quality.scores[score]:.4f}" if quality.scores else "no data",
        "" if variant is None or variant.drop is None else f"{variant.drop:z.4f}",
        "" if variant is None else f"{quality.agreement:.3%}",
        "refused" if outcome.complaint else "",
    ]
