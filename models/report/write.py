"""The report of a finished run: curves, confusion matrix, class table, worst examples, and an HTML page.

Everything is measured on the validation split. Changing a network after looking at its errors is model selection, which
must not use the test split: `convoy evaluate` measures that one, after all choices.
"""

import shlex
import sys
from collections.abc import Callable
from pathlib import Path

from convoy.models.data.registry import display_name
from convoy.models.evaluation.evaluate import Evaluation, Example, measure
from convoy.models.evaluation.metrics import LEADING
from convoy.models.evaluation.predictor import of_checkpoint
from convoy.models.report import classes, curves, page, worst
from convoy.models.report.runs import Run, read

CURVES, CONFUSION, CLASSES, WORST, PAGE = "curves.png", "confusion.png", "classes.csv", "worst.png", "report.html"


def write(root: Path, data: str | None = None) -> bool:
    """Writes the report into a run's folder. Returns whether all parts succeeded. `data` is the data's folder, if it
    has moved. Each failed part is reported on one line of stderr; the others are still written. Raises BadRun,
    BadTraining, BadData."""
    run = read(root)
    evaluation = measure(of_checkpoint(run.checkpoint, data), "validation")
    network = evaluation.network
    title = f"{network.name} on {display_name(network.data)}, validation"
    parts: list[tuple[str, Callable[[Path], None]]] = [
        (CONFUSION, lambda path: classes.save_confusion(evaluation.confusion, network.labels, title, path)),
        (CLASSES, lambda path: classes.save_classes(evaluation, path)),
    ]
    if run.rows:
        parts.append((CURVES, lambda path: curves.save_run(run.rows, path)))
    if not evaluation.of_tensors:
        parts.append((WORST, lambda path: worst.save(evaluation, path)))
    parts.append((PAGE, lambda path: _page(run, evaluation, path)))  # last, because it shows the others
    written = [_written(part, root / name) for name, part in parts]  # a failure does not stop the later parts
    return all(written)


def write_at_end(root: Path) -> None:
    """Writes the report after a training run. A failure is reported on stderr, since it must not fail the run."""
    (root / PAGE).unlink(missing_ok=True)  # an earlier run's report would pass for this one's
    try:
        write(root)
    except Exception as error:  # a report must not fail a run
        again = f"convoy report {shlex.quote(str(root))}"
        print(f"no report: {type(error).__name__}: {error}; try again with: {again}", file=sys.stderr, flush=True)


def _written(part: Callable[[Path], None], path: Path) -> bool:
    path.unlink(missing_ok=True)  # an earlier run's file would pass for this one's
    try:
        part(path)
    except Exception as error:  # a picture must not fail a run
        print(f"{path.name} could not be written: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
        return False
    return True


def _page(run: Run, evaluation: Evaluation, path: Path) -> None:
    network, note = evaluation.network, run.note
    ended = "" if note.complete else ", not yet at its end"
    lead = f"{note.epochs} epochs in {note.seconds:,.0f} s{ended}; {evaluation.images} validation images measured below"
    leading = LEADING[network.task]
    scores = {leading: evaluation.scores[leading], **evaluation.scores}
    sections = [page.cards({name: f"{score:.4f}" for name, score in scores.items()})]
    if run.rows:
        sections.append(
            page.section("Curves", page.picture(run.root / CURVES, "losses, scores, learning rate by epoch", wide=True))
        )
        sections.append(page.section("Epochs", _epochs(run)))
    sections += [
        page.section("Classes", _classes(evaluation)),
        page.section("Confusion", *_confusion(run, evaluation)),
        page.section("Worst examples", *_worst(run, evaluation)),
        page.section("Settings", page.pairs(run.settings_by_name())),
    ]
    if evaluation.slices:
        sections.insert(-1, page.section("By size of the image", _slices(evaluation)))
    path.write_text(page.page(f"{network.name} on {display_name(network.data)}", lead, sections), encoding="utf-8")


def _epochs(run: Run) -> str:
    names = list(dict.fromkeys(name for row in run.rows for name in row))
    rows = [[f"{row[name]:.6g}" if name in row else "–" for name in names] for row in run.rows]
    return page.folded(f"{len(rows)} rows", page.table(names, rows))


def _classes(evaluation: Evaluation) -> str:
    names, shown = classes.class_columns(evaluation), classes.worst_classes(evaluation)
    parts = [shown] if len(shown) == len(evaluation.classes) else [shown, evaluation.classes]
    tables = [
        page.table(["class", *names], [[row.label, *classes.class_cells(row, names)] for row in part]) for part in parts
    ]
    if len(tables) == 1:
        return tables[0]
    lead = page.text(f"The {len(shown)} worst of {len(evaluation.classes):,}:")
    return lead + tables[0] + page.folded(f"all {len(evaluation.classes):,}", tables[1])


def _confusion(run: Run, evaluation: Evaluation) -> list[str]:
    picture = page.picture(run.root / CONFUSION, "true classes against predicted ones")
    labels = evaluation.network.labels
    if len(labels) <= classes.MAX_NAMES:
        return [picture]
    # With so many classes, the picture shows patterns but no names.
    rows = classes.frequent_errors(evaluation.confusion, labels)
    return [page.text("The most frequent errors:"), page.table(classes.ERROR_COLUMNS, rows), picture]


def _slices(evaluation: Evaluation) -> str:
    names = list(evaluation.scores)
    rows = [
        [each.name, str(each.images), *(f"{each.scores[name]:.4f}" for name in names)] for each in evaluation.slices
    ]
    return page.table(["size", "images", *names], rows)


def _worst(run: Run, evaluation: Evaluation) -> list[str]:
    classification = evaluation.network.task == "classification"
    header = ["example", "prediction", "probability of the true class"] if classification else ["example", "mean IoU"]
    rows = [_example(evaluation, each) for each in worst.worst(evaluation)]
    listed = page.folded("as a list", page.table(header, rows))
    return [listed] if evaluation.of_tensors else [page.picture(run.root / WORST, "worst examples", wide=True), listed]


def _example(evaluation: Evaluation, example: Example) -> list[str]:
    name, score = worst.name(evaluation.samples, example.index), f"{example.score:.4f}"
    labels = evaluation.network.labels
    return [name, score] if example.true is None else [name, worst.caption(example, labels), score]
