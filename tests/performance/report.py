"""The report: what is reached first, what falls short last. A run replaces the lines that it measured and no other."""

import os
import platform
import re
from collections.abc import Iterable, Sequence
from datetime import date
from pathlib import Path
from typing import NamedTuple

import grpc
import onnxruntime

from tests.performance.figure import EACH, FIXED, Figure

INTRODUCTION = """# Benchmarks

What a user would conclude:

- With a network that takes milliseconds, nearly all of the cost is the network (P1). Choose a server by what else it
  does.
- With a network that takes microseconds, the server is the cost. Send several images in one request (P4).
- Under overload the server answers as many requests as it can, and refuses the others early (P6, P9), if it knows how
  soon answers are needed: set deadlines, or `batching.latency_objective_ms`.
- A lone request takes some milliseconds longer than in your own process (P11). If nothing else runs, call onnxruntime
  directly.
- On a CPU with instructions for bytes, int8 pays for large networks. `convoy export RUN --all-variants` says whether it
  does for yours.
- These are ratios on one machine. Yours has others: `convoy profile` and `convoy bench` measure it.

Written by `make perf`. `make perf ARGS="--only P3"` measures the lines P3 alone and keeps all others. The words:

- Most figures divide Convoy's value by that of something simpler. Both are measured in turns within one run (ABBA).
  Where there is an interval, it is the 95 % interval of the median over the pairs.
- The **sleep engine** runs no network: a batch of n images takes {fixed:g} + {each:g} n ms, as on a GPU.
- A **bare echo** is a gRPC server in Python that returns 250 bytes and does nothing else.
- The **raw client** sends prepared bytes over libnghttp2, as `convoy bench --raw-client` does. Lines that do not name
  it use `grpcio`'s client, which sends 4,000 requests a second at most.
- **Goodput** is the number of requests a second that are answered within their deadline. The **oracle's load** is the
  highest goodput that any scheduler could reach: batches that are as large as the deadline allows, back to back.
- **CV** is the coefficient of variation of the time between requests: 1 for a Poisson process, more for bursts.

Last run: {machine}
"""

REMARKS = "<!-- Below: written by hand, kept by `make perf`. -->\n"

# What the lines of a number mean where they are reached.
MEANINGS = {
    "P1": "The server adds little to what a real network computes.",
    "P2": "Batches follow one another without gaps.",
    "P3": "A call with one small image costs little more than any gRPC call in Python.",
    "P4": "Images that are sent together share the cost of a call.",
    "P5": "Choosing a batch takes microseconds, however many requests wait.",
    "P6": "An overloaded server goes on answering as many requests as it can, and refuses the others early.",
    "P7": "When the load jumps, the server settles within the time that a request may take.",
    "P8": "A request that is admitted is answered in time.",
    "P9": "Under overload the choice of batches comes close to what any scheduler could reach.",
    "P10": "The slowest answers take little longer than the others.",
    "P11": "A lone request waits for little more than its own run.",
    "P13": "A second front end makes no request more expensive.",
    "P14": "A large JPEG is decoded no larger than the network needs, which saves most of the time.",
    "P15": "The server is ready soon, and its first requests are as fast as later ones.",
    "P16": "Metrics and timings are nearly free.",
    "P17": "The server knows how long the next batch will take.",
    "P18": "A tiny tensor over the Open Inference Protocol costs little, as with servers in C++ or Rust.",
    "N1": "A tiny tensor costs a fraction of any gRPC call in Python, once the client is not the limit.",
    "N2": "So does a call with one small image.",
    "N3": "A larger image costs less than any gRPC call in Python.",
    "N4": "Beyond its run, a lone request waits no longer than for an echo.",
    "N5": "A small network gets a good part of what onnxruntime can do, the client on the same cores.",
    "N6": "Small images that are sent together share the cost of a call.",
    "N7": "Refusing costs a fraction of any gRPC call in Python.",
    "N8": "Many callers of a real network get nearly all that onnxruntime can do.",
    "N8b": "The server adds little to what a real network computes.",
    "N9": "Whoever misuses the server takes nothing from others.",
    "N10": "A second front end makes no request more expensive.",
    "N11": "An idle connection needs little memory.",
    "score": "Bulk scoring takes no more time than a loop with onnxruntime that decodes in threads.",
    "callers": "Many callers of a real network get nearly all that onnxruntime can do.",
    "int8": "An int8 file runs clearly faster on the CPU.",
}


class Row(NamedTuple):
    """One line of the page, and the day on which it was measured."""

    number: str
    what: str
    wanted: str
    measured: str
    reached: bool | None
    day: str


_SECTIONS: Sequence[tuple[str, bool | None]] = (
    ("What Convoy reaches", True),
    ("Figures without a target", None),
    ("What falls short", False),
)


def rows(lines: Iterable[Figure]) -> list[Row]:
    """Returns lines that were measured today."""
    today = date.today().isoformat()
    return [Row(line.number, line.what, line.wanted, line.measured, line.reached, today) for line in lines]


def read(page: str) -> list[Row]:
    """Returns the lines of a page."""
    found = []
    for title, reached in _SECTIONS:
        _, _, section = page.partition(f"\n## {title}\n")
        for line in section.partition("\n## ")[0].partition(REMARKS)[0].splitlines():
            cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
            if len(cells) == len(_HEADS[reached]) and cells[0] not in ("#", "---"):
                named = dict(zip(_HEADS[reached], cells, strict=True))
                found.append(
                    Row(named["#"], named["figure"], named.get("wanted", ""), named["measured"], reached, named["on"])
                )
    return found


def merged(before: Iterable[Row], measured: Sequence[Row]) -> list[Row]:
    """Returns the lines before, those of the measured numbers replaced, in the order of the numbers."""
    again = {row.number for row in measured}
    return sorted([*(row for row in before if row.number not in again), *measured], key=_place)


def page(lines: Sequence[Row], where: str, before: str) -> str:
    """Returns the page with these lines, and what was written by hand on the page before. `where` is `machine()`."""
    parts = [INTRODUCTION.format(fixed=1000 * FIXED, each=1000 * EACH, machine=where)]
    for title, reached in _SECTIONS:
        parts.append(f"\n## {title}\n\n{_table([row for row in lines if row.reached is reached], reached)}")
    _, _, remarks = before.partition(REMARKS)
    return "".join(parts) + "\n" + REMARKS + remarks


def table(lines: Iterable[Figure]) -> str:
    """Returns a table of lines in their order, each with a mark that says whether it is reached."""
    marks = {True: "reached", False: "**not reached**", None: ""}
    found = [[line.number, line.what, line.wanted, line.measured, marks[line.reached]] for line in lines]
    return markdown(["#", "what", "wanted", "measured", ""], found)


def markdown(heads: Sequence[str], cells: Iterable[Sequence[str]]) -> str:
    """Returns a table."""
    return "".join(f"| {' | '.join(row)} |\n" for row in (heads, ["---"] * len(heads), *cells))


def machine() -> str:
    """Returns what this runs on, and the day."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    cpu = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
    return (
        f"{date.today().isoformat()}, {cpu}, {len(os.sched_getaffinity(0))} cores, "
        f"Linux {platform.release().partition('-')[0]}, Python {platform.python_version()}, "
        f"onnxruntime {onnxruntime.__version__}, grpcio {grpc.__version__}."
    )


def machine_of(page: str) -> str:
    """Returns what the last run of a page ran on."""
    found = re.search(r"^Last run: (.*)$", page, re.MULTILINE)
    return found[1] if found else ""


_HEADS: dict[bool | None, list[str]] = {
    True: ["#", "what it means", "figure", "wanted", "measured", "on"],
    None: ["#", "figure", "measured", "on"],
    False: ["#", "figure", "wanted", "measured", "on"],
}


def _table(lines: Sequence[Row], reached: bool | None) -> str:
    found = []
    last = ""
    for row in lines:
        meaning = MEANINGS.get(row.number, "") if row.number != last else ""
        last = row.number
        cells = {
            "#": row.number,
            "what it means": meaning,
            "figure": row.what,
            "wanted": row.wanted,
            "measured": row.measured,
            "on": row.day,
        }
        found.append([cells[head] for head in _HEADS[reached]])
    return markdown(_HEADS[reached], found) if found else "Nothing.\n"


def _place(row: Row) -> tuple[int, int, str]:
    number = re.fullmatch(r"([PN])(\d+)(\w*)", row.number)
    return ("PN".index(number[1]), int(number[2]), number[3]) if number else (2, 0, row.number)
