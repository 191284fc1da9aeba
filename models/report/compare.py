"""Comparison of runs: architecture, cost, scores and curves."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from convoy.models import checkpoint
from convoy.models.analysis.summary import inspect_file
from convoy.models.data.registry import display_name
from convoy.models.errors import BadRun
from convoy.models.evaluation.evaluate import evaluate_file
from convoy.models.evaluation.metrics import LEADING
from convoy.models.report import curves, page
from convoy.models.report.runs import Run, read_all
from convoy.service.metadata import Task


@dataclass(frozen=True)
class Compared:
    """One run. `multiply_adds` is per image; `validation` contains the scores of the chosen checkpoint, by name;
    `held_out` those on the test split, empty unless requested."""

    name: str
    architecture: str
    data: str
    task: Task
    parameters: int
    multiply_adds: int
    seed: int
    epochs: int
    seconds: float
    complete: bool
    validation: dict[str, float]
    held_out: dict[str, float]


@dataclass(frozen=True)
class Comparison:
    """`runs` are in the given order; `notes` warn about obstacles to a comparison."""

    runs: list[Compared]
    read: list[Run]
    notes: list[str]


def compare(roots: Sequence[Path], held_out: bool = False, data: str | None = None) -> Comparison:
    """Reads runs. With `held_out`, also measures each on the test split of its data, which is at `data` if it has
    moved. Raises BadRun if there are fewer than two runs or if their tasks differ; BadCheckpoint, BadTraining,
    BadData."""
    runs = read_all(roots)
    rows = [_compared(run, name, held_out, data) for run, name in zip(runs, names(roots), strict=True)]
    tasks = sorted({row.task for row in rows})
    if len(tasks) > 1:
        raise BadRun(f"the runs are for {' and for '.join(tasks)}, want all for the same: they share no score")
    return Comparison(rows, runs, _notes(rows, runs))


def names(roots: Sequence[Path]) -> list[str]:
    """Returns the folders' names, or the given paths if the names are not unique."""
    short = [root.resolve().name for root in roots]
    return short if len(set(short)) == len(short) else [str(root) for root in roots]


def header(comparison: Comparison) -> list[str]:
    """Returns the columns of the table."""
    validation, held_out = _scores(comparison)
    return [
        "run",
        *("architecture", "data", "parameters", "multiply-adds", "epochs", "seconds"),
        *(f"validation {name.replace('_', ' ')}" for name in validation),
        *(f"held-out {name.replace('_', ' ')}" for name in held_out),
    ]


def cells(comparison: Comparison, row: Compared) -> list[str]:
    """Returns one run as text, in the order of the header; – for a missing score."""
    validation, held_out = _scores(comparison)
    scores = [*map(row.validation.get, validation), *map(row.held_out.get, held_out)]
    return [
        row.name,
        *(row.architecture, row.data, f"{row.parameters:,}", f"{row.multiply_adds:,}"),
        *(str(row.epochs), f"{row.seconds:.0f}"),
        *("–" if score is None else f"{score:.4f}" for score in scores),
    ]


def save(comparison: Comparison, path: Path) -> Path | None:
    """Writes the page, and the curves as a PNG file beside it. Returns the PNG's path, or None if no run has curves."""
    picture = path.with_suffix(".png") if any(run.rows for run in comparison.read) else None
    sections = [page.note(text) for text in comparison.notes]
    rows = [cells(comparison, row) for row in comparison.runs]
    sections.append(page.section("Runs", page.table(header(comparison), rows)))
    if picture is not None:
        leading = f"validation_{LEADING[comparison.runs[0].task]}"
        by_name = {row.name: run.rows for row, run in zip(comparison.runs, comparison.read, strict=True)}
        curves.save_runs(by_name, leading, picture)
        sections.append(page.section("Curves", page.picture(picture, "scores and losses by epoch", wide=True)))
    sections.append(page.section("Different settings", page.table(*_differences(comparison))))
    lead = ", ".join(row.name for row in comparison.runs)
    path.write_text(page.page(f"{len(comparison.runs)} runs side by side", lead, sections), encoding="utf-8")
    return picture


def _scores(comparison: Comparison) -> tuple[list[str], list[str]]:
    """Returns the names of all scores that any run has, on each split."""
    return (
        list(dict.fromkeys(name for row in comparison.runs for name in row.validation)),
        list(dict.fromkeys(name for row in comparison.runs for name in row.held_out)),
    )


def _compared(run: Run, name: str, held_out: bool, data: str | None) -> Compared:
    note = run.note
    description, _ = checkpoint.load(run.checkpoint)
    whole = inspect_file(run.checkpoint)
    return Compared(
        name=name,
        architecture=note.settings.architecture,
        data=display_name(note.settings.data),
        task=description.task,
        parameters=whole.parameters,
        multiply_adds=whole.multiply_adds,
        seed=note.settings.seed,
        epochs=note.epochs,
        seconds=note.seconds,
        complete=note.complete,
        validation={name.removeprefix("validation_"): score for name, score in note.validation.items()},
        held_out=evaluate_file(run.checkpoint, data).scores if held_out else {},
    )


def _notes(rows: Sequence[Compared], runs: Sequence[Run]) -> list[str]:
    notes = []
    if len({run.note.settings.data for run in runs}) > 1:
        data = ", ".join(dict.fromkeys(row.data for row in rows))
        notes.append(f"these runs have different data ({data}): their scores do not show which network is better")
    unfinished = [row.name for row in rows if not row.complete]
    if unfinished:
        notes.append(f"not complete: {', '.join(unfinished)}")
    return notes


def _differences(comparison: Comparison) -> tuple[list[str], list[list[str]]]:
    settings_of_runs = [run.settings_by_name() for run in comparison.read]
    settings = dict.fromkeys(name for each in settings_of_runs for name in each)
    differing = [name for name in settings if len({each.get(name) for each in settings_of_runs}) > 1]
    rows = [
        [row.name, *(each.get(name, "–") for name in differing)]
        for row, each in zip(comparison.runs, settings_of_runs, strict=True)
    ]
    return ["run", *differing], rows
