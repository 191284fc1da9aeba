"""`python -m tests.performance FILE`: measures and writes the report, and what each optimisation brings beside it."""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from tests.performance import (
    ablations,
    attacks,
    connections,
    costs,
    floor,
    http_api,
    loads,
    models,
    pictures,
    precision,
    report,
    scheduling,
    scoring,
    starts,
    training,
)
from tests.performance.figure import Figure

ABLATIONS, TRAINING = "ablations", "training"  # parts of docs/performance.md


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("--pairs", type=int, default=7, help="trials of each in turns")
    parser.add_argument(
        "--only",
        action="append",
        default=[],
        metavar="P",
        help=f"only these, such as P3, {ABLATIONS} or {TRAINING}",
    )
    parser.add_argument("--again", action="store_true", help="write the page again from its own lines, measure nothing")
    arguments = parser.parse_args()
    pairs: int = arguments.pairs
    with tempfile.TemporaryDirectory() as folder:
        small, large, real = (Path(folder) / name for name in ("small", "large", "real"))
        models.nothing(small, "nothing", 32, "L")
        models.nothing(large, "nothing", 184, "RGB")
        measurements: dict[str, Callable[[], Sequence[Figure]]] = {
            "P1": lambda: [costs.real_network(real, "resnet18", 96, pairs)],
            "P2": lambda: [loads.closed_loop(small, pairs)],
            "P3": lambda: [
                costs.unary(small, 32, 1, 1, pairs, 1.40, "P3"),
                costs.unary(large, 184, 3, 1, pairs, 1.40, "P3"),
            ],
            "P4": lambda: [
                costs.unary(small, 32, 1, 32, pairs, 0.10, "P4"),
                costs.unary(large, 184, 3, 32, pairs, 0.60, "P4"),
            ],
            "P5": scheduling.decisions,
            "P6": lambda: [*loads.overload(small), costs.refusals(small, pairs)],
            "P7": lambda: loads.steps(small),
            "P8": lambda: [*scheduling.simulated(1_000_000), *loads.in_time(small)],
            "P10": lambda: [loads.spread(small)],
            "P11": lambda: [loads.lone(small, pairs)],
            "P13": lambda: [costs.front_ends(small, pairs)],
            "P14": lambda: pictures.decoding(Path(folder) / "pictures", pairs),
            "P15": lambda: [
                starts.start(Path(folder) / "start", "resnet18", pairs),
                starts.first_requests(Path(folder) / "first", "resnet18", 3),
            ],
            "P16": lambda: [costs.observing(small, pairs)],
            "P17": lambda: [scheduling.predictions(small)],
            "P18": lambda: [costs.tensors(Path(folder) / "features", pairs)],
            "N1": lambda: [costs.control(pairs), costs.tensors(Path(folder) / "N1", pairs, "N1", "raw")],
            "N2": lambda: [costs.unary(small, 32, 1, 1, pairs, 0.35, "N2", "raw")],
            "N3": lambda: [costs.unary(large, 184, 3, 1, pairs, 0.70, "N3", "raw")],
            "N4": lambda: [loads.lone_over_echo(small, pairs)],
            "N5": lambda: [loads.lenet(Path(folder) / "N5", pairs)],
            "N6": lambda: [costs.unary(small, 32, 1, 32, pairs, 0.05, "N6", "raw")],
            "N7": lambda: [costs.full_queue(small, pairs)],
            "N8": lambda: [
                *loads.mobilenet(Path(folder) / "N8-mobilenet", pairs),
                *loads.unet(Path(folder) / "N8-unet", pairs),
            ],
            "N9": lambda: attacks.goodput(small, pairs),
            "N10": lambda: [costs.front_ends(small, pairs, "N10", "raw")],
            "N11": lambda: [connections.idle(Path(folder) / "N11")],
            "H1": lambda: [http_api.classify(large, pairs)],
            "score": lambda: scoring.bulk(Path(folder) / "score", pairs),
            "tiny": lambda: floor.tiny(small, pairs),
            "int8": lambda: [
                precision.integers(Path(folder) / "precision", name) for name in ("mobilenet", "resnet50")
            ],
            "callers": lambda: [loads.many_callers(Path(folder) / "callers", pairs)],
        }
        if unknown := set(arguments.only) - {*measurements, ABLATIONS, TRAINING}:
            parser.error(f"--only {min(unknown)}: want one of {', '.join([*measurements, ABLATIONS, TRAINING])}")
        for name in [] if arguments.again else arguments.only or [*measurements, ABLATIONS, TRAINING]:
            begin = time.perf_counter()
            if name == ABLATIONS:
                ablate(arguments.file.with_name("performance.md"), Path(folder) / ABLATIONS, pairs)
            elif name == TRAINING:
                train(arguments.file.with_name("performance.md"), Path(folder) / TRAINING, pairs)
            else:
                lines = list(measurements[name]())
                for line in lines:
                    print(f"{line.number}  {line.what}: {line.measured}", file=sys.stderr, flush=True)
                write(arguments.file, lines)
            print(f"    {time.perf_counter() - begin:.0f} s", file=sys.stderr, flush=True)
    if arguments.again:
        write(arguments.file, [])


def write(file: Path, lines: Sequence[Figure]) -> None:
    """Replaces these lines of the page, and keeps all others."""
    before = file.read_text(encoding="utf-8") if file.exists() else ""
    where = report.machine() if lines else report.machine_of(before)
    merged = report.merged(report.read(before), report.rows(lines))
    file.write_text(report.page(merged, where, before), encoding="utf-8")


def ablate(file: Path, folder: Path, pairs: int) -> None:
    """Measures what each optimisation brings, and writes it into the page, or a new one."""
    if not file.exists():
        file.write_text(f"{ablations.BEGIN}\n{ablations.END}\n", encoding="utf-8")
    ablations.replaced(file.read_text(encoding="utf-8"), "")  # a page without marks is an error before the measurement
    found = []
    for line in ablations.ablations(folder, pairs):
        found.append(line)
        print(f"{line.optimisation}; {line.figure}: {line.measured}", file=sys.stderr, flush=True)
    section = f"{report.machine()}\n\n{ablations.table(found)}"
    file.write_text(ablations.replaced(file.read_text(encoding="utf-8"), section), encoding="utf-8")


def train(file: Path, folder: Path, rounds: int) -> None:
    """Measures the loop of `convoy train` beside a bare one, and writes it into the page, or a new one."""
    if not file.exists():
        file.write_text(f"{training.BEGIN}\n{training.END}\n", encoding="utf-8")
    training.replaced(file.read_text(encoding="utf-8"), "")  # a page without marks is an error before the measurement
    found = [each for work in training.WORK for each in training.measured(work, folder / work.architecture, rounds)]
    section = f"{report.machine()}\n\n{training.table(found)}"
    file.write_text(training.replaced(file.read_text(encoding="utf-8"), section), encoding="utf-8")


if __name__ == "__main__":
    main()
