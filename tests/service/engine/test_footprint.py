"""Which runs return memory: those that are larger than usual, and the first after a large one has become unusual."""

import json
import subprocess
import sys
from pathlib import Path

from convoy.service.engine.footprint import Footprint
from tests.service import networks

SMALL, LARGE = 100, 1000


def returned(sizes: list[int]) -> list[int]:
    """The numbers of the runs that return memory."""
    footprint = Footprint()
    return [number for number, size in enumerate(sizes) if footprint.returns(size)]


def test_runs_of_one_size_return_nothing() -> None:
    assert returned([SMALL] * 100) == []


def test_sizes_that_come_again_and_again_return_nothing() -> None:
    assert returned([SMALL, SMALL, LARGE] * 30) == []


def test_run_that_is_much_larger_than_usual_returns_its_memory() -> None:
    assert returned([SMALL] * 10 + [LARGE] + [SMALL] * 10) == [10, 11]


def test_large_runs_that_repeat_keep_their_memory_until_they_have_stopped() -> None:
    sizes = [SMALL] * 10 + [LARGE] * 5 + [SMALL] * 20
    # The first two are unusual; then they are not, until eight runs have been small.
    assert returned(sizes) == [10, 11, 12, 22, 23]


def test_slightly_larger_run_returns_nothing() -> None:
    assert returned([SMALL] * 10 + [2 * SMALL] + [SMALL] * 10) == []


def test_first_runs_return_nothing() -> None:
    assert returned([1, 10, 100, 1000, 10_000, 1, 1, 1]) == []


MEMORY = """
import json, sys
from pathlib import Path
import numpy as np
from convoy.service.engine.session import load

session = load(Path(sys.argv[1]), "cpu", 0, 1)
if sys.argv[2] == "kept":
    session._footprint = None

def own() -> int:
    words = Path("/proc/self/statm").read_text().split()
    return (int(words[1]) - int(words[2])) * 4096 >> 20

def run(side: int) -> int:
    session.run([np.zeros((1, side, side, 3), np.uint8)])
    return own()

before = [run(64) for _ in range(10)][-1]
run(2048)
print(json.dumps(run(64) - before))
"""


def mib_left(file: Path, how: str) -> int:
    """MiB that a run of an unusual size leaves in its process."""
    ended = subprocess.run([sys.executable, "-c", MEMORY, str(file), how], capture_output=True, text=True, check=True)
    found: int = json.loads(ended.stdout)
    return found


def test_large_run_leaves_nothing_of_its_memory(tmp_path: Path) -> None:
    file = networks.save(networks.segmenter(), tmp_path, "colours")
    assert mib_left(file, "kept") > 32  # otherwise this would show nothing
    assert mib_left(file, "returned") < 16
