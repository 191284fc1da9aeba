"""The report of a finished run: curves, confusion matrix, class table, worst examples, and an HTML page.

Everything is measured on the validation split. Changing a network after looking at its errors is model selection, which
must not use the test split: `convoy evaluate` measures that one, after all choices.
"""

import math
import shlex
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

from convoy.models import checkpoint
from convoy.models.data.batches import indexed
from convoy.models.data.dataset import Subset
from convoy.models.data.formats.coding import of_source
from convoy.models.data.registry import display_name
from convoy.models.evaluation.evaluate import Evaluation, Example, measure
from convoy.models.evaluation.metrics import LEADING
from convoy.models.evaluation.predictor import of_checkpoint
from convoy.models.report import classes, curves, page, words, worst
from convoy.models.report.runs import Run, read
from convoy.models.training.resuming import PICTURES
from convoy.models.training.run import IMAGES_PER_SECOND, Note

TIMED = 5  # predictions
FEW_IMAGES = 200  # of the validation split
FEW_FILES = 20  # shown without a click
TOP5_CLASSES = 10  # with fewer, five of them are half

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
    kind = "tensors" if evaluation.of_tensors else "images"
    lead = f"{note.epochs} epochs in {note.seconds:,.0f} s{ended}; {evaluation.images} validation {kind} measured below"
    leading = LEADING[network.task]
    scores = {leading: evaluation.scores[leading], **evaluation.scores}
    if len(network.labels) < TOP5_CLASSES:
        scores.pop("top5", None)
    counted = "pixels" if network.task == "segmentation" else kind
    sections = [
        page.cards({name: f"{score:.4f}" for name, score in scores.items()}),
        page.meanings({name: words.SCORES[name].format(kind=kind, counted=counted) for name in scores}),
        *_certainty(evaluation, kind),
        page.section("Network", page.pairs({name: [value] for name, value in _facts(run, evaluation).items()})),
    ]
    if run.rows:
        sections.append(
            page.section("Curves", page.picture(run.root / CURVES, "losses, scores, learning rate by epoch", wide=True))
        )
        sections.append(page.section("Epochs", _epochs(run)))
    sections += [
        page.section("Classes", _classes(evaluation), page.meanings(_columns(evaluation))),
        page.section("Confusion", *_confusion(run, evaluation)),
        page.section("Worst examples", page.text(worst.heading(evaluation)), *_worst(run, evaluation)),
        page.section(
            "Settings",
            page.pairs({name: [value, words.setting(name)] for name, value in run.settings_by_name().items()}),
        ),
    ]
    if evaluation.slices:
        sections.insert(-1, page.section("By size of the image", _slices(evaluation)))
    if note.left_out:
        sections.insert(-1, page.section("Left out of the data", *_left_out(note)))
    path.write_text(page.page(f"{network.name} on {display_name(network.data)}", lead, sections), encoding="utf-8")


def _left_out(note: Note) -> list[str]:
    """Returns which files the run did not use, without the folders above the data, and why."""
    above = f"{of_source(note.settings.data)[0]}/"
    rows = [[reason.replace(above, "")] for reason in note.left_out]
    if (more := note.left_out_total - len(rows)) > 0:
        rows.append([f"and {more:,} more, which convoy data check names"])
    lead = f"{note.left_out_total:,} of the files could not be used for training:"
    listed = page.table(["file and problem"], rows)
    return [page.note(lead), listed if len(rows) <= FEW_FILES else page.folded("all of them", listed)]


def interval(right: int, images: int) -> tuple[float, float]:
    """Returns the 95 % confidence interval of a share (Wilson 1927)."""
    share, z = right / images, 1.96
    middle = (share + z**2 / (2 * images)) / (1 + z**2 / images)
    half = z / (1 + z**2 / images) * math.sqrt(share * (1 - share) / images + z**2 / (4 * images**2))
    return max(0.0, middle - half), min(1.0, middle + half)


def _certainty(evaluation: Evaluation, kind: str) -> list[str]:
    """Returns a sentence on how reliable scores from this number of images are."""
    count = evaluation.images
    few = f"{count} {kind} prove little" if count < FEW_IMAGES else ""
    if evaluation.network.task == "segmentation":
        return [page.note(f"{few}: another choice of images may give quite another score.")] if few else []
    low, high = interval(round(evaluation.scores["top1"] * count), count)
    range_ = f"of {kind} like these, {100 * low:.1f} % to {100 * high:.1f} % would be right (95 % confidence interval)."
    return [page.note(f"{few}: {range_}") if few else page.text(range_[0].upper() + range_[1:])]


def _facts(run: Run, evaluation: Evaluation) -> dict[str, str]:
    content = checkpoint.content(run.checkpoint)
    _, network = checkpoint.load(run.checkpoint)
    parameters = sum(parameter.numel() for parameter in network.parameters())
    facts = {
        "parameters": f"{parameters:,}",
        "size": f"{4 * parameters / 2**20:,.1f} MiB of weights; {run.checkpoint.name} has "
        f"{run.checkpoint.stat().st_size / 2**20:,.1f} MiB with the optimizer's state",
        "time": f"{1000 * _seconds(evaluation):,.1f} ms for one, in PyTorch on this machine",
    }
    speeds = [row[IMAGES_PER_SECOND] for row in run.rows if IMAGES_PER_SECOND in row]
    if speeds:
        facts["training speed"] = f"{statistics.median(speeds):,.0f} per second"
    counts = content.get(PICTURES)
    if counts is not None:
        facts["splits"] = f"{counts['train']:,} for training, {counts['validation']:,} for validation"
    return facts


def _seconds(evaluation: Evaluation) -> float:
    """Returns the median time of a prediction for the first sample alone."""
    network, times = evaluation.network, []
    (_, batch), *_ = indexed(Subset(evaluation.samples, [0]), network.spec, batch_size=1)
    for _ in range(TIMED):
        start = time.perf_counter()
        network.predict(batch.images)
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def _columns(evaluation: Evaluation) -> dict[str, str]:
    return {name: words.COLUMNS[name] for name in classes.class_columns(evaluation)}


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
