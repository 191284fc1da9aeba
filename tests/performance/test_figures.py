"""What the measurements of the report rest on sees what it should see."""

import math
import subprocess
import sys
from pathlib import Path

import numpy as np

from tests.performance.costs import UNOBSERVED
from tests.performance.loads import settled

COUNTING = """
import os, tempfile
os.environ["PROMETHEUS_MULTIPROC_DIR"] = tempfile.mkdtemp()
from pathlib import Path
from convoy.service import metric_files, metrics
metrics.CANCELLED.labels("digits").inc()
metrics.BATCH_SIZE.labels("digits", "1").observe(4)
print(sum(sample.value for family in metric_files.collect(Path(os.environ[metric_files.DIRECTORY]))
          for sample in family.samples))
"""


def test_goodput_that_comes_back_after_a_while_is_settled_then() -> None:
    steady = np.arange(0, 10, 0.01)
    assert settled(steady, 2, 10, 0.4) == 0
    gap = steady[(steady < 2) | (steady >= 3)]
    assert math.isclose(settled(gap, 2, 10, 0.4), 1, abs_tol=0.05)


def test_nothing_is_counted_where_it_is_silenced() -> None:
    def counted(environment: dict[str, str]) -> float:
        command = [sys.executable, "-c", COUNTING]
        return float(subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout)

    assert counted({}) > 0
    assert counted(dict(UNOBSERVED)) == 0
    assert Path(UNOBSERVED["PYTHONPATH"]).is_dir()
