"""The engine of many machines: Ray Data spreads the parts of a run over actors, each of which has a `Score`.

The row of this data set is a part: a fixed slice of the source, which an actor scores, writes and renames as the local
engine does. So a part is there whole or not at all, is written once, and has the bytes that the local engine writes.
Ray's own checkpoints (`CheckpointConfig`) do less: they name and arrange files anew in each run, batches depend on what
is left, the ids of all finished images are in the memory of each filter, and a task that outlives its killed driver
may finish images a second time.
"""

import logging
import os
import socket
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import islice
from pathlib import Path
from time import monotonic
from typing import Any, NamedTuple

import msgspec

from convoy.service.errors import BadConfig, ConvoyError, RunFailed
from convoy.service.machine import cores
from convoy.service.scoring import output
from convoy.service.scoring.columns import parquet
from convoy.service.scoring.entries import Entry, packed, unpacked
from convoy.service.scoring.local import Summary, Watch, is_of
from convoy.service.scoring.output import Asked
from convoy.service.scoring.score import Score, server_of
from convoy.service.scoring.sources import listed, read
from convoy.service.scoring.suspects import forget

_ENTRIES = "entries.parquet"  # the list of the images: actors read their slices from it
_AT_ONCE = 2  # parts of an actor, so that none of its cores waits at the end of one
_TRIES = 4  # of a part whose process dies: Ray would repeat for ever one that kills it
_SECONDS_TO_CONNECT = 10
_STORE_BYTES = 100 << 20  # Ray's shared memory: what goes through it are numbers


class Cluster(msgspec.Struct, frozen=True, kw_only=True):
    """What an actor gets of a cluster.

    actors  0: as many as have room
    cpus    cores of each; 0: all of the smallest machine's, or its share of them for each GPU
    gpus    of each; below 1: several share one
    """

    actors: int = 0
    cpus: int = 0
    gpus: float = 0.0


class _Room(NamedTuple):
    """What `Cluster` comes to on the machines that are there."""

    actors: int
    cpus: int
    gpus: float


def run(score: Score, out: Path, asked: Asked, watch: Watch, cluster: Cluster | None = None) -> Summary:
    """As `local.run`, on the cluster that RAY_ADDRESS names, or on one of this machine alone that ends with the run.

    On a cluster the source, the model file and `out` have the same paths on all machines.
    """
    began = monotonic()
    out = out.absolute()
    with output.locked(out):
        counts = _list(out, asked, watch)  # before Ray starts, which takes seconds: the source may be wrong
        with _connected() as ray:
            failed, scored = _run(ray, score, out, asked, watch, cluster or Cluster(), counts)
        (output.kept(out) / _ENTRIES).unlink()
        forget(output.kept(out))
    return Summary(sum(counts), failed, scored, monotonic() - began)


def _run(
    ray: Any, score: Score, out: Path, asked: Asked, watch: Watch, cluster: Cluster, counts: Sequence[int]
) -> tuple[int, int]:
    """Scores the parts that are missing; returns how many images have errors in all, and how many were scored.

    counts  the images of each part
    """
    room = _room(cluster, ray.nodes())
    score = _prepared(ray, score, out, asked, room)
    kept, failed = _kept(out, asked, watch, len(counts))
    left = [number for number in range(len(counts)) if number not in kept]
    scored = 0
    for row in _scored(ray, left, (score, out, asked), room):
        if row["refused"]:
            raise BadConfig(row["refused"])
        failed += row["failed"]
        scored += counts[row["part"]]
        for place in range(counts[row["part"]]):
            watch.scored(place < row["failed"])
    missing = set(range(len(counts))) - output.parts(out).keys()
    if missing:
        raise RunFailed(f"{len(missing)} parts are missing, the first {min(missing)}: run the same command again")
    return failed, scored


class _Parts:
    """What an actor does: scores parts. Any number of threads may call it."""

    def __init__(self, score: Score, out: Path, asked: Asked) -> None:
        self._score = score
        self._out = out
        self._asked = asked

    def __call__(self, batch: Mapping[str, Sequence[Any]]) -> dict[str, list[Any]]:
        """`part` in; out how many of its images failed, or why it is `refused`: an exception would be many lines."""
        rows: dict[str, list[Any]] = {"part": [], "failed": [], "refused": []}
        for number in map(int, batch["part"]):
            failed, refused = 0, ""
            try:
                failed = self._part(number)
            except ConvoyError as error:
                refused = error.message
            except OSError as error:
                refused = f"{str(self._out)!r} cannot be written: {error.strerror}"
            for name, value in (("part", number), ("failed", failed), ("refused", refused)):
                rows[name].append(value)
        return rows

    def _part(self, number: int) -> int:
        entries = _entries(self._out, number)
        file = output.part(self._out, number)
        if file.exists():  # the process or its machine died after it had written this
            ids, failed = output.contents(file)
            if is_of(file, ids, entries):
                return failed
        tries = file.with_name(f".{file.stem}.tries{output.TMP}")
        with tries.open("ab") as counter:
            counter.write(b".")
        if tries.stat().st_size > _TRIES:
            between = f"{entries[0].id!r} to {entries[-1].id!r}"
            raise RunFailed(f"processes have died {_TRIES} times with images {between}: look for what kills them")
        failed = 0

        def done(has_error: bool) -> None:
            nonlocal failed
            failed += has_error

        rows = self._score.rows([entry.id for entry in entries], (partial(read, entry) for entry in entries), done)
        output.write(self._out, number, self._score, rows, self._asked)
        tries.unlink(missing_ok=True)
        return failed


@contextmanager
def _connected() -> Iterator[Any]:
    """Ray, in a cluster."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # it would report home otherwise
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # it warns on the screen of what does not matter here
    try:
        import ray
        import ray.data
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "ray":
            raise
        raise BadConfig("--engine ray needs Ray Data: pip install 'convoy[bulk]'") from None
    own: dict[str, Any] = {
        "address": "local",
        "num_cpus": cores(),
        "include_dashboard": False,
        "object_store_memory": _STORE_BYTES,
        "_node_ip_address": "127.0.0.1",  # Ray's ports have no authentication
    }
    address = os.environ.get("RAY_ADDRESS", "")  # Ray's own way to name a cluster
    joins = address not in ("", "local")
    if joins:
        _look_for(address)
    logging.getLogger("ray.data").setLevel(logging.ERROR)  # the command shows the progress
    try:
        with _silent():
            ray.init(**({} if joins else own), logging_level=logging.ERROR, log_to_driver=False)
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        context.print_on_execution_start = False
        yield ray
    except (ConnectionError, ray.exceptions.RayError) as error:
        raise RunFailed(f"Ray has ended the run ({_line(error)}): the same command continues") from None
    finally:
        ray.shutdown()


def _look_for(address: str) -> None:
    """Raises BadConfig if nothing listens at an address: Ray would look for minutes."""
    host, _, port = address.rpartition(":")
    if not (host and port.isdigit()):  # such as auto
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), _SECONDS_TO_CONNECT).close()
    except OSError as error:
        reason = error.strerror or str(error)
        raise BadConfig(f"RAY_ADDRESS is {address!r}, but no cluster answers there: {reason}") from None


@contextmanager
def _silent() -> Iterator[None]:
    """Without the lines that Ray's core writes about its own log."""
    sys.stderr.flush()
    kept, nothing = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nothing)


def _list(out: Path, asked: Asked, watch: Watch) -> list[int]:
    """Writes the list of the images, a row group for each part, and returns how many each has."""
    arrow = parquet()
    schema = arrow.schema([("id", arrow.string()), ("place", arrow.string())])
    counts: list[int] = []
    temporary = out / f".{_ENTRIES}.{os.getpid()}{output.TMP}"
    try:
        with arrow.parquet.ParquetWriter(temporary, schema, compression="zstd") as writer:
            entries = listed(asked.source, column=asked.column, id_column=asked.id_column)
            while part := list(islice(entries, asked.rows)):
                columns = {"id": [entry.id for entry in part], "place": [packed(entry.place) for entry in part]}
                writer.write_table(arrow.Table.from_pydict(columns, schema=schema), row_group_size=len(part))
                counts.append(len(part))
                watch.listed(sum(counts), False)
        temporary.replace(output.kept(out) / _ENTRIES)
    except OSError as error:
        raise BadConfig(f"{str(temporary)!r} cannot be written: {error.strerror}") from None
    finally:
        temporary.unlink(missing_ok=True)
    watch.listed(sum(counts), True)
    return counts


def _entries(out: Path, number: int) -> list[Entry]:
    """The slice of a part."""
    with parquet().parquet.ParquetFile(output.kept(out) / _ENTRIES) as file:
        rows = file.read_row_group(number).to_pylist()
    return [Entry(row["id"], unpacked(row["place"])) for row in rows]


def _room(cluster: Cluster, nodes: Sequence[Mapping[str, Any]]) -> _Room:
    """Raises BadConfig if the cluster has no room for an actor."""
    gpus = cluster.gpus
    alive = [node["Resources"] for node in nodes if node["Alive"]]
    machines = [(int(each.get("CPU", 0)), each.get("GPU", 0)) for each in alive]
    machines = [(cores_, gpus_) for cores_, gpus_ in machines if cores_ >= max(1, cluster.cpus) and gpus_ >= gpus]
    if not machines:
        wanted = f"{cluster.cpus or 1} cores and {gpus:g} GPUs"
        raise BadConfig(f"no machine of the cluster has {wanted} for an actor, but {_shown(alive)}")
    # Of each machine as many actors as it has room for, by its GPUs if they have any.
    cpus = cluster.cpus or min(max(1, int(cores_ / (gpus_ // gpus))) if gpus else cores_ for cores_, gpus_ in machines)
    fits = sum(int(min(cores_ // cpus, gpus_ // gpus if gpus else cores_)) for cores_, gpus_ in machines)
    return _Room(cluster.actors or fits, cpus, gpus)


def _shown(nodes: Sequence[Mapping[str, Any]]) -> str:
    machines = [f"{node.get('CPU', 0):g} cores and {node.get('GPU', 0):g} GPUs" for node in nodes]
    return ", ".join(machines[:4]) + (f" and {len(machines) - 4} more" if len(machines) > 4 else "")


def _prepared(ray: Any, score: Score, out: Path, asked: Asked, room: _Room) -> Score:
    """What `output.prepared` returns, from an actor's place: the driver's machine may have neither GPU nor time."""
    if server_of(score.options.model) is None:
        score = score.replaced(model=os.path.abspath(score.options.model))
    score = score.replaced(
        profiles=os.path.abspath(score.options.profiles or output.kept(out)), threads=score.options.threads or room.cpus
    )
    if room.gpus and score.options.provider == "auto":
        score = score.replaced(provider="cuda")  # never the CPU instead, in silence
    # max_calls: its process ends, and with it the memory that it has on the GPU.
    task = ray.remote(num_cpus=room.cpus, num_gpus=room.gpus, max_calls=1)(_prepare)
    prepared: Score | str = ray.get(task.remote(score, out, asked))
    if isinstance(prepared, str):
        raise BadConfig(prepared)
    return prepared


def _prepare(score: Score, out: Path, asked: Asked) -> Score | str:
    try:
        return output.prepared(out, score, asked)
    except ConvoyError as error:
        return error.message


def _kept(out: Path, asked: Asked, watch: Watch, count: int) -> tuple[set[int], int]:
    """The parts of earlier runs, and how many of their images have errors. Raises BadConfig if they are of others."""
    kept: set[int] = set()
    failed = 0
    for number, file in sorted(output.parts(out).items()):
        if number >= count:
            raise BadConfig(f"{str(file)!r} is of images that the source no longer has: choose another folder")
        ids, errors = output.contents(file)
        if is_of(file, ids, _entries(out, number)):
            kept.add(number)
            failed += errors
            watch.kept(len(ids), errors)
    return kept, failed


def _scored(ray: Any, numbers: Sequence[int], what: tuple[Score, Path, Asked], room: _Room) -> Iterator[dict[str, Any]]:
    """Scores parts, and yields a row for each, in any order."""
    if not numbers:
        return
    # A block for each part: otherwise an actor would do many while others have none.
    table = ray.data.from_items([{"part": number} for number in numbers], override_num_blocks=len(numbers))
    pool = ray.data.ActorPoolStrategy(
        size=min(room.actors, len(numbers)), max_concurrent_calls_per_actor=_AT_ONCE, enable_true_multi_threading=True
    )
    yield from table.map_batches(
        _Parts,
        fn_constructor_args=what,
        batch_size=1,
        compute=pool,
        num_cpus=room.cpus,
        num_gpus=room.gpus,
    ).iter_rows()


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
