"""R15: no text of an error has a path, an address, the name of a class or a stack; and each request has its status."""

import itertools
import time
from collections.abc import Callable

import grpc

from convoy.service.errors import BadTensor
from convoy.service.frontend import tensors
from convoy.service.repository import TensorSpec, Version
from tests.reliability import leaks, r01_http1, r01_http2, r01_messages, r14_names
from tests.reliability.probe import Count, Probe, Tally
from tests.reliability.r01_messages import channel
from tests.reliability.siege import SECONDS, Siege
from tests.reliability.status_cases import SIDES, Case, cases, infer
from tests.service.calls import reason

# Who sends what is refused, and for how many texts each has one trial.
_SOURCES: tuple[tuple[Callable[[int, int], Tally], int], ...] = (
    (r01_messages.run, 1),
    (r14_names.run, 2),
    (r01_http2.run, 20),
    (r01_http1.run, 20),
)


def run_texts(trials: int, seed: int) -> Tally:
    """One trial is one text of an error, of everything hostile that R1 and R14 send."""
    before, count = leaks.examined[0], Count()
    for run, share in _SOURCES:
        count.add(run(max(1, trials // share // 2), seed))
    tally = count.tally()
    return Tally(leaks.examined[0] - before, tally.failed, tally.examples, tally.worst)


def control_texts(seed: int) -> Tally:
    """Texts with secrets."""
    count = Count()
    for text in SECRETS:
        if not (found := leaks.found(text)):
            return Tally(1, 0)
        count.bad(found)
    return count.tally()


SECRETS = (
    "cannot open /srv/models/lenet5/1/model.onnx",
    "[Errno 2] No such file or directory: '/var/tmp/x'",
    "<convoy.service.engine.session.Session object at 0x7f3a5c1d2e50>",
    "buffer at 0x7ffd12345678 is too small",
    "numpy.core._exceptions.ArrayMemoryError: Unable to allocate",
    "KeyError: 'image'",
    'File "session.py", line 12, in run',
    "Traceback (most recent call last):",
    "memfd:slots is full",
    "region /dev/shm/x",
    "onnxruntime::Graph::Resolve failed",
    "listening on 10.1.2.3:8001",
)


def run_cases(trials: int, seed: int) -> Tally:
    """One trial is one request of the table, or one shape of S6."""
    count = Count()
    with Siege(count, seed) as siege, channel(siege) as connection:
        for case in itertools.islice(itertools.cycle(cases()), trials):
            wrong = _fault_in(siege, connection, case)
            count.bad(f"{case.name}: {wrong}") if wrong else count.good()
    return count.tally()


def _fault_in(siege: Siege, connection: grpc.Channel, case: Case) -> str:
    data = case.request if isinstance(case.request, bytes) else case.request.SerializeToString()
    began = time.monotonic()
    try:
        connection.unary_unary(case.path)(data, timeout=SECONDS)
    except grpc.RpcError as error:
        found = (error.code().name, reason(error) if case.wanted[1] else "")
        if found != case.wanted:
            return f"{found}, want {case.wanted}: {error.details()!r:.200}"
        return siege.wrong(error, data + case.path.encode(), began)
    return "" if case.wanted[0] == "OK" else f"OK, want {case.wanted}"


def control_cases(seed: int) -> Tally:
    """A table that wants something else."""
    count = Count()
    case = next(cases())._replace(wanted=("NOT_FOUND", "UNKNOWN_MODEL"))
    with Siege(Count(), seed) as siege, channel(siege) as connection:
        wrong = _fault_in(siege, connection, case)
        count.bad(wrong) if wrong else count.good()
    return count.tally()


_SHAPED = Version(
    model="m",
    version=1,
    state="READY",
    inputs=(TensorSpec("x", "float32", (None, None, None), ("a", "b", "c")),),
    outputs=(TensorSpec("y", "float32", (None, None, None), ("a", "b", "c")),),
)


def sizes() -> list[tuple[tuple[int, ...], str, float]]:
    """S6: each combination of three sides of a tensor of 4 bytes, how it ends, and the CPU seconds it takes."""
    found = []
    for shape in itertools.product(SIDES, repeat=3):
        request = infer(shape=shape, raw=[bytes(4)])
        took = []
        for _ in range(3):  # the least counts: others use the machine, too
            began = time.thread_time()
            try:
                tensors.read(request, _SHAPED, 1 << 30)
                how = "read"
            except BadTensor:
                how = "refused"
            took.append(time.thread_time() - began)
        found.append((shape, how, min(took)))
    return found


TEXTS = Probe(
    "R15",
    "No text of an error has a path, an address, the name of a class, a stack or a name of memory",
    "texts of errors",
    100_000,
    10_000,
    run_texts,
    control_texts,
)
CASES = Probe(
    "R15",
    "Each request of the table has its status and its reason",
    "requests of the table",
    10_000,
    1_000,
    run_cases,
    control_cases,
)
PROBES = (TEXTS, CASES)
