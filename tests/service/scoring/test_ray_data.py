"""Scoring on Ray Data: the bytes of the local engine, whoever is killed."""

import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pyarrow.parquet as pq
import pytest

from convoy.service.errors import BadConfig, BadImage
from convoy.service.scoring import local, output, ray_data
from convoy.service.scoring.entries import Cell, File, Member, Place, Refused, packed, unpacked
from convoy.service.scoring.output import Asked
from convoy.service.scoring.ray_data import Cluster, _Room
from convoy.service.scoring.score import Score
from tests.service import networks
from tests.service.scoring.runs import finished

ROWS = 4
IMAGES = 200


class Quiet:
    """A Watch that counts."""

    def __init__(self) -> None:
        self.counts = {"listed": 0, "kept": 0, "scored": 0, "failed": 0}

    def listed(self, images: int, complete: bool) -> None:
        self.counts["listed"] = images

    def kept(self, images: int, failed: int) -> None:
        self.counts["kept"] += images
        self.counts["failed"] += failed

    def scored(self, failed: bool) -> None:
        self.counts["scored"] += 1
        self.counts["failed"] += failed


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return networks.save(networks.classifier(), tmp_path_factory.mktemp("repository"), "letters")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    chance = np.random.default_rng(5)
    for index in range(IMAGES):
        PIL.Image.fromarray(chance.integers(0, 256, (8, 8), np.uint8)).save(folder / f"{index:03}.png")
    (folder / "077.png").write_bytes(b"no picture")
    return folder


@pytest.fixture(scope="module")
def unbroken(model: Path, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The parts of the local engine."""
    out = tmp_path_factory.mktemp("unbroken")
    local.run(Score(str(model)), out, Asked(source=str(photos), rows=ROWS), Quiet())
    found = parts(out)
    assert len(found) == IMAGES // ROWS
    return found


def parts(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in out.glob("part-*.parquet")}


def ids(out: Path) -> list[str]:
    return [each for path in sorted(out.glob("part-*.parquet")) for each in pq.read_table(path)["id"].to_pylist()]


# What needs no cluster


@pytest.mark.parametrize(
    "place",
    [
        File(os.fsdecode(b"/photos/caf\xe9.jpg")),
        Member("/a.tar", 512, 7),
        Cell("/ü.parquet", 1, 2, "image"),
        Refused("why"),
    ],
)
def test_a_place_survives_the_list_of_a_run(place: Place) -> None:
    text = packed(place)
    text.encode()  # Parquet has UTF-8 alone
    assert unpacked(text) == place
    assert type(unpacked(text)) is type(place)


def machine(cores: float, gpus: float = 0, alive: bool = True) -> Mapping[str, Any]:
    return {"Alive": alive, "Resources": {"CPU": cores, "GPU": gpus} if gpus else {"CPU": cores}}


@pytest.mark.parametrize(
    ("cluster", "nodes", "room"),
    [
        (Cluster(), [machine(8)], _Room(1, 8, 0)),
        (Cluster(), [machine(8), machine(16), machine(4, alive=False), machine(0)], _Room(3, 8, 0)),
        (Cluster(cpus=3), [machine(8), machine(2)], _Room(2, 3, 0)),
        (Cluster(cpus=1, actors=5), [machine(8)], _Room(5, 1, 0)),
        (Cluster(gpus=1), [machine(16, 4), machine(8)], _Room(4, 4, 1)),
        (Cluster(gpus=0.5), [machine(16, 1)], _Room(2, 8, 0.5)),
        (Cluster(gpus=1), [machine(2, 4)], _Room(2, 1, 1)),
        (Cluster(gpus=2), [machine(16, 4), machine(16, 1)], _Room(2, 8, 2)),
    ],
)
def test_actors_fill_the_machines(cluster: Cluster, nodes: Sequence[Mapping[str, Any]], room: _Room) -> None:
    assert ray_data._room(cluster, nodes) == room


def test_a_cluster_without_room_says_what_it_has() -> None:
    with pytest.raises(BadConfig) as caught:
        ray_data._room(Cluster(gpus=1, cpus=2), [machine(8), machine(1, 1)])
    assert str(caught.value) == (
        "no machine of the cluster has 2 cores and 1 GPUs for an actor, but 8 cores and 0 GPUs, 1 cores and 1 GPUs"
    )


@pytest.fixture
def scoring(model: Path, photos: Path, tmp_path: Path) -> ray_data._Parts:
    """An actor of a run that has been listed."""
    asked = Asked(source=str(photos), rows=ROWS)
    output.kept(tmp_path).mkdir()
    ray_data._list(tmp_path, asked, Quiet())
    return ray_data._Parts(output.prepared(tmp_path, Score(str(model)), asked), tmp_path, asked)


def test_an_actor_writes_the_parts_of_the_local_engine(
    scoring: ray_data._Parts, tmp_path: Path, unbroken: dict[str, bytes]
) -> None:
    assert scoring({"part": [19, 3]}) == {"part": [19, 3], "failed": [1, 0], "refused": ["", ""]}
    names = {"part-00003.parquet", "part-00019.parquet"}
    assert parts(tmp_path) == {name: unbroken[name] for name in names}
    assert not list(tmp_path.glob(".*.tmp"))


def test_the_local_engine_continues_what_actors_have_begun(
    scoring: ray_data._Parts, model: Path, photos: Path, tmp_path: Path, unbroken: dict[str, bytes]
) -> None:
    scoring({"part": [19, 3]})
    summary = local.run(Score(str(model)), tmp_path, Asked(source=str(photos), rows=ROWS), Quiet())
    assert (summary.images, summary.failed, summary.scored) == (IMAGES, 1, IMAGES - 2 * ROWS)
    assert parts(tmp_path) == unbroken


def test_a_part_that_is_there_is_not_scored_again(scoring: ray_data._Parts, tmp_path: Path) -> None:
    scoring({"part": [19]})
    before = output.part(tmp_path, 19).stat()
    assert scoring({"part": [19]})["failed"] == [1]
    assert output.part(tmp_path, 19).stat() == before


def test_a_part_of_a_source_that_has_grown_since_is_scored_again(
    scoring: ray_data._Parts, tmp_path: Path, unbroken: dict[str, bytes]
) -> None:
    file = output.part(tmp_path, 19)
    scoring({"part": [19]})
    pq.write_table(pq.read_table(file)[: ROWS - 1], file)
    asked = Asked(source="", rows=ROWS)
    assert ray_data._kept(tmp_path, asked, Quiet(), IMAGES // ROWS) == (set(), 0)
    scoring({"part": [19]})
    assert parts(tmp_path) == {file.name: unbroken[file.name]}


def test_a_part_whose_process_dies_each_time_ends_the_run(
    scoring: ray_data._Parts, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Died(BaseException):
        """Instead of the process."""

    def dying(*_: object) -> None:
        raise Died

    monkeypatch.setattr(Score, "rows", dying)
    for _ in range(4):
        with pytest.raises(Died):
            scoring({"part": [0]})
    refused = scoring({"part": [0]})["refused"]
    assert refused == [
        f"processes have died 4 times with images '{photos}/000.png' to '{photos}/003.png': look for what kills them"
    ]


def test_what_refuses_a_part_comes_back_in_one_line(scoring: ray_data._Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    def refusing(*_: object) -> None:
        raise BadImage("no")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Score, "rows", refusing)
    assert scoring({"part": [1]})["refused"] == ["no"]
    monkeypatch.setattr(Score, "rows", full)
    (message,) = scoring({"part": [1]})["refused"]
    assert message.endswith("cannot be written: No space left on device")


def test_without_ray_the_extra_is_named(
    model: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(BadConfig, match=r"needs Ray Data: pip install 'convoy\[bulk\]'"):
        ray_data.run(Score(str(model)), tmp_path / "out", Asked(source=str(photos)), Quiet())


def test_a_cluster_that_does_not_answer_is_one_line(
    model: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as taken:  # bound, but not listening
        taken.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        monkeypatch.setenv("RAY_ADDRESS", address)
        with pytest.raises(BadConfig) as caught:
            ray_data.run(Score(str(model)), tmp_path / "out", Asked(source=str(photos)), Quiet())
    assert str(caught.value) == f"RAY_ADDRESS is {address!r}, but no cluster answers there: Connection refused"


def test_what_an_actor_gets_is_said_with_ray_alone(model: Path, photos: Path, tmp_path: Path) -> None:
    refused = finished(photos, "--model", model, "-o", tmp_path / "out", "--gpus", 1)
    assert refused.returncode == 2
    assert "--actors, --cpus and --gpus are for --engine ray" in refused.stderr


def test_parts_of_another_source_are_refused(scoring: ray_data._Parts, tmp_path: Path, photos: Path) -> None:
    asked = Asked(source=str(photos), rows=ROWS)
    scoring({"part": [19, 20]})
    assert ray_data._kept(tmp_path, asked, Quiet(), IMAGES // ROWS) == ({19, 20}, 1)
    with pytest.raises(BadConfig, match=r"part-00020.parquet' is of images that the source no longer has"):
        ray_data._kept(tmp_path, asked, Quiet(), 20)


# With Ray


@contextlib.contextmanager
def scored(model: Path, photos: Path, out: Path, *options: str, **environment: str) -> Iterator[subprocess.Popen[str]]:
    """`convoy score --engine ray`, which is killed at the end if it still runs."""
    program = "from convoy.service.cli import main; main()"
    arguments = ["score", str(photos), "--model", str(model), "-o", str(out), "--rows", str(ROWS), "--engine", "ray"]
    process = subprocess.Popen(
        [sys.executable, "-c", program, *arguments, *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "RAY_ADDRESS": "", **environment},
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def wait_for_parts(out: Path, count: int, process: subprocess.Popen[str]) -> None:
    """Returns when there are so many parts, or when the run has ended."""
    while process.poll() is None and len(list(out.glob("part-*.parquet"))) < count:
        time.sleep(0.01)


def actors(process: subprocess.Popen[str]) -> list[int]:
    """The processes of a run that score."""
    found = []
    for each in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if "MapWorker" in (each / "cmdline").read_text() and session(int(each.name)) == session(process.pid):
                found.append(int(each.name))
    return found


def session(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[3]


def complete(process: subprocess.Popen[str], out: Path, unbroken: dict[str, bytes]) -> str:
    shown, errors = process.communicate()
    assert process.returncode == 1, errors  # one image is broken
    found = ids(out)
    assert len(found) == len(set(found)) == IMAGES
    assert parts(out) == unbroken
    others = sorted(str(path.relative_to(out)) for path in out.rglob("*") if not path.name.startswith("part-"))
    assert others == [".convoy", ".convoy/lock", ".convoy/profile.json", "_score.json"]
    return shown


@pytest.mark.ray
@pytest.mark.timeout(600)
def test_a_run_whose_driver_and_actor_were_killed_ends_in_the_same_bytes(
    model: Path, photos: Path, tmp_path: Path, unbroken: dict[str, bytes]
) -> None:
    chance = random.Random(11)
    for attempt in range(4):  # a test that stands still meanwhile kills nothing
        out = tmp_path / f"out-{attempt}"
        with scored(model, photos, out) as process:
            wait_for_parts(out, chance.randint(1, 8), process)
            found = actors(process)
            for actor in found[:1]:
                os.kill(actor, signal.SIGKILL)
            wait_for_parts(out, chance.randint(9, 20), process)
            process.send_signal(signal.SIGKILL)
        if found and len(parts(out)) < len(unbroken):
            break
    assert found
    assert 0 < len(parts(out)) < len(unbroken)
    with scored(model, photos, out) as process:
        assert "of them by an earlier run, 1 with an error" in complete(process, out, unbroken)


@pytest.mark.soak
@pytest.mark.ray
@pytest.mark.timeout(7200)
def test_twenty_kills_leave_every_id_exactly_once(
    model: Path, photos: Path, tmp_path: Path, unbroken: dict[str, bytes]
) -> None:
    chance, kills, runs = random.Random(20), 0, 0
    while kills < 20:
        runs += 1
        out = tmp_path / f"out-{runs}"
        while len(parts(out)) < len(unbroken) and kills < 20:
            with scored(model, photos, out) as process:
                if chance.random() < 0.3:  # also while it starts, lists or finds out what is left
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        process.wait(chance.uniform(0, 20))
                else:
                    wait_for_parts(out, len(parts(out)) + chance.randint(1, 6), process)
                    for pid in actors(process)[: chance.randint(0, 1)]:
                        os.kill(pid, signal.SIGKILL)
                    time.sleep(chance.uniform(0, 0.3))
                kills += process.poll() is None
                process.send_signal(signal.SIGKILL)
            assert all(unbroken[name] == data for name, data in parts(out).items())
        with scored(model, photos, out) as process:
            complete(process, out, unbroken)


@pytest.mark.soak
@pytest.mark.ray
@pytest.mark.timeout(1200)
def test_a_cluster_that_is_there_is_joined_and_may_lose_a_machine(
    model: Path, photos: Path, tmp_path: Path, unbroken: dict[str, bytes]
) -> None:
    from ray.cluster_utils import Cluster as Machines

    machines = Machines(initialize_head=True, head_node_args={"num_cpus": 1})
    try:
        second = machines.add_node(num_cpus=1)
        out = tmp_path / "out"
        with scored(model, photos, out, "--cpus", "1", RAY_ADDRESS=machines.address) as process:
            wait_for_parts(out, 5, process)
            machines.remove_node(second, allow_graceful=False)
            complete(process, out, unbroken)
    finally:
        machines.shutdown()
