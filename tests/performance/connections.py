"""What connections cost that are open and do nothing."""

from pathlib import Path

import numpy as np

from tests.performance import models
from tests.performance.figure import INFER, Figure, serving
from tests.performance.raw_load import RawLoad
from tests.service.calls import infer_request

_FIRST = 100  # connections, after which the front end has loaded and allocated what any number of them needs
_WANTED = 20.0  # kB


def idle(root: Path, connections: int = 10_000) -> Figure:
    """N11: memory of a front end for each connection that has had one answer and is idle."""
    models.features(root, "features")
    body = infer_request("features", np.ones((1, 2, 4), np.float32)).SerializeToString()
    with serving(root, "engine.sleep_ms=[0, 0]") as server, RawLoad(server.grpc, INFER, body) as raw:
        pid = server.children()["frontend"]
        raw.open(_FIRST)
        before = resident(pid)
        raw.open(connections)
        grown = (resident(pid) - before) / connections / 1000
    what = f"memory of the front end for each of {connections:,} idle connections after one call, raw client"
    return Figure("N11", what, f"<= {_WANTED:g} kB", f"{grown:.1f} kB", grown <= _WANTED)


def resident(pid: int) -> int:
    """Bytes of memory of a process, its share of what it has in common with others."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return 1024 * int(line.split()[1])
    raise RuntimeError(f"process {pid} has no Pss")
