"""`python -m tests.performance FILE`: measures and writes the report."""

import argparse
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from datetime import date
from pathlib import Path

import grpc
import onnxruntime

from tests.performance import costs, floor, loads, models, pictures, precision, scheduling, starts
from tests.performance.figure import EACH, FIXED, Figure

INTRODUCTION = """# Benchmarks

Written by `make perf`. Each figure is a ratio within one run, ours and what it is compared with in turns (ABBA);
where there is an interval, it is the 95 % interval of the median over the pairs. The sleep engine takes
{fixed:g} + {each:g} n ms for a batch of n images and runs no network.

"""


REMARKS = "\n## What falls short"


def report(lines: Sequence[Figure]) -> str:
    """The table."""
    rows = [("#", "what", "wanted", "measured", ""), ("---",) * 5]
    marks = {True: "reached", False: "**not reached**", None: ""}
    rows += [(line.number, line.what, line.wanted, line.measured, marks[line.reached]) for line in lines]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def machine() -> str:
    """What it ran on."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    cpu = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
    return (
        f"{date.today().isoformat()}, {cpu}, {len(os.sched_getaffinity(0))} cores, "
        f"Linux {platform.release().partition('-')[0]}, Python {platform.python_version()}, "
        f"onnxruntime {onnxruntime.__version__}, grpcio {grpc.__version__}.\n\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("--pairs", type=int, default=7, help="trials of each in turns")
    parser.add_argument("--only", action="append", metavar="P", help="only these figures, such as P3")
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
            "tiny": lambda: floor.tiny(small, pairs),
            "int8": lambda: [
                precision.integers(Path(folder) / "precision", name) for name in ("mobilenet", "resnet50")
            ],
            "callers": lambda: [loads.many_callers(Path(folder) / "callers", pairs)],
        }
        lines: list[Figure] = []
        for name in arguments.only or measurements:
            begin = time.perf_counter()
            for line in measurements[name]():
                lines.append(line)
                print(f"{line.number}  {line.what}: {line.measured}", file=sys.stderr, flush=True)
            print(f"    {time.perf_counter() - begin:.0f} s", file=sys.stderr, flush=True)
    text = INTRODUCTION.format(fixed=1000 * FIXED, each=1000 * EACH) + machine() + report(lines)
    before = arguments.file.read_text(encoding="utf-8") if arguments.file.exists() else ""
    _, heading, remarks = before.partition(REMARKS)  # by hand: they stay, to be read beside the new figures
    arguments.file.write_text(text + heading + remarks, encoding="utf-8")


if __name__ == "__main__":
    main()
