"""The table that compares the variants of a network."""

from collections.abc import Mapping

from rich.table import Table

from convoy.models.evaluation.metrics import LEADING
from convoy.models.export.variants import Outcome
from convoy.models.runtime import CUDA
from convoy.service.metadata import Precision, Task


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
        "same answers",
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
            lines.insert(1, "fp16 is for CUDA: a CPU has no arithmetic for it and computes in fp32 between two casts")
    return lines


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
