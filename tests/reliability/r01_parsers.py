"""R1: our own parsers, each with what a mutator makes of good data, and under atheris where that is installed."""

import random
import re
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path
from unittest import mock

from tests.reliability import fuzz
from tests.reliability.fuzz import TARGETS, Target
from tests.reliability.probe import Count, Probe, Tally

_GUIDED_FROM = 10_000  # trials, from which atheris runs, too: it takes seconds to begin
_GUIDED_SECONDS = 30
_EXECUTED = re.compile(r"stat::number_of_executed_units:\s*(\d+)")


def run(trials: int, seed: int) -> Tally:
    """One trial is one input of one parser."""
    count = Count()
    for number, (name, target) in enumerate(TARGETS.items()):
        _mutated(count, name, target, trials // len(TARGETS) + (number < trials % len(TARGETS)), seed)
    if trials >= _GUIDED_FROM:
        if fuzz.is_installed():
            _guided(count, list(TARGETS)[seed % len(TARGETS)], seed)
        else:
            print("atheris is not installed", file=sys.stderr)
    return count.tally()


def _mutated(count: Count, name: str, target: Target, trials: int, seed: int) -> None:
    rng = random.Random(f"{name} {seed}")
    corpus = target.corpus()
    for number in range(trials):
        data = corpus[number] if number < len(corpus) else rng.choice(corpus)
        if number >= len(corpus):
            for _ in range(rng.choice((1, 1, 2))):
                data = target.mutate(rng, data)
        try:
            target.try_(data)
        except Exception as error:
            where = traceback.extract_tb(error.__traceback__)[-1]
            count.bad(f"{name}, seed {seed}, input {data[:100].hex()}: {error!r:.200} at {where.name}:{where.lineno}")
        else:
            count.good()


def _guided(count: Count, name: str, seed: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "tests.reliability.fuzz", name, str(_GUIDED_SECONDS), "--seed", str(seed)]
        try:
            done = subprocess.run(
                [*command, "--findings", folder], capture_output=True, check=False, timeout=5 * _GUIDED_SECONDS
            )
            said, code = done.stderr.decode(errors="replace"), done.returncode
        except subprocess.TimeoutExpired as late:  # it has reported, and does not end
            said, code = (late.stderr or b"").decode(errors="replace"), 0
        executed = _EXECUTED.search(said)
        count.good(int(executed[1]) if executed else 0)
        found = [each.read_bytes()[:200].hex() for each in Path(folder).iterdir()]
    if code or found or not executed:
        error = next((line for line in said.splitlines() if "Error" in line), said[-300:])
        count.also_bad(f"{name} under atheris, seed {seed}, input {found}: {error}")


def control(seed: int) -> Tally:
    """A parser with the fault of its kind: it reads beyond the end."""

    def careless(data: bytes) -> None:
        assert data[data[-1]] >= 0

    count = Count()
    with mock.patch.dict(TARGETS, {"wire": TARGETS["wire"]._replace(try_=careless)}):
        _mutated(count, "wire", TARGETS["wire"], 200, seed)
    return count.tally()


PROBE = Probe(
    "R1",
    "Whatever our own parsers are given, they read it or refuse it in their own words",
    "inputs of our own parsers",
    1_000_000,
    150_000,
    run,
    control,
)
