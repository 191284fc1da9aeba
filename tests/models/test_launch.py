"""Ranks that others left in the environment are nobody's; those of torchrun and of our own processes are heeded."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from convoy.models import launch
from convoy.models.errors import BadTraining
from convoy.service import cli
from tests.models.pictures import draw

LEFT_OVER = {
    "SLURM_JOB_ID": "1234567",
    "SLURM_JOB_NAME": "train",
    "SLURM_NTASKS": "4",
    "SLURM_NTASKS_PER_NODE": "4",
    "SLURM_NODELIST": "node[1-2]",
    "SLURM_PROCID": "2",
    "SLURM_LOCALID": "2",
    "RANK": "one",
    "LOCAL_RANK": "1",
    "GROUP_RANK": "1",
    "MASTER_ADDR": "nowhere.invalid",
    "MASTER_PORT": "1",
}
TORCHRUN = {"TORCHELASTIC_RUN_ID": "a", "RANK": "5", "LOCAL_RANK": "1", "WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "4"}


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """Without anything of a launcher; what is taken out is put back."""
    names = {*LEFT_OVER, *TORCHRUN, launch.PARENT, "NODE_RANK", "SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE"}
    before = {name: os.environ.pop(name) for name in names if name in os.environ}
    yield monkeypatch
    monkeypatch.undo()
    for name in names:
        os.environ.pop(name, None)
    os.environ.update(before)


def trained(root: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [
        str(Path(sys.executable).with_name("convoy")),
        "train",
        "lenet5",
        "--data",
        str(draw(root / "pictures")),
        "--epochs",
        "1",
    ]
    command += ["--output", str(root / "run"), *options]
    environment = {**os.environ, **LEFT_OVER, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, check=False, capture_output=True, text=True, env=environment, timeout=200)


@pytest.mark.parametrize("devices", ["1", "2"])
def test_run_by_hand_is_as_asked_whatever_is_left_over(tmp_path: Path, devices: str) -> None:
    ended = trained(tmp_path, "--devices", devices)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.count("trained 1 epochs") == 1
    assert ended.stdout.count("next  ") == 1
    assert (tmp_path / "run" / "report.html").is_file()
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize(("before", "after"), [(None, "passive"), ("active", "active")])
def test_threads_of_torch_wait_passively_unless_told_otherwise(before: str | None, after: str) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    if before is not None:
        environment["OMP_WAIT_POLICY"] = before
    code = "import os, sys, convoy.models; print(os.environ['OMP_WAIT_POLICY'], 'torch' in sys.modules)"
    shown = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, check=True, env=environment, text=True, timeout=60
    )
    assert shown.stdout.split() == [after, "False"]


def test_ranks_of_torchrun_are_kept(environment: pytest.MonkeyPatch) -> None:
    for name, value in {**TORCHRUN, "SLURM_STEP_NUM_TASKS": "2"}.items():
        environment.setenv(name, value)
    assert launch.by_torchrun()
    assert not launch.remove_stale_ranks()
    assert launch.local_rank() == 1
    assert os.environ["RANK"] == "5"


def test_torchrun_of_which_only_a_part_is_left_is_forgotten(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("TORCHELASTIC_RUN_ID", "a")
    environment.setenv("LOCAL_RANK", "1")
    assert launch.remove_stale_ranks()
    assert launch.local_rank() == 0
    assert "LOCAL_RANK" not in os.environ


def test_process_that_another_of_the_run_started_keeps_its_rank(environment: pytest.MonkeyPatch) -> None:
    environment.setenv(launch.PARENT, str(os.getppid()))
    environment.setenv("LOCAL_RANK", "3")
    environment.setenv("WORLD_SIZE", "4")
    assert not launch.remove_stale_ranks()
    assert launch.local_rank() == 3
    environment.setenv(launch.PARENT, str(1 << 23))  # of a run that is gone
    environment.delenv("WORLD_SIZE")
    assert launch.remove_stale_ranks()


@pytest.mark.parametrize(
    "name", ["SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "JSM_NAMESPACE_SIZE", "WORLD_SIZE"]
)
def test_one_of_several_of_another_launcher_is_refused_with_what_to_unset(
    environment: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    environment.setenv(name, "4")
    with pytest.raises(BadTraining):
        launch.remove_stale_ranks()
    assert cli.run(["train", "lenet5", "--data", "digits"]) == 2
    err = capsys.readouterr().err
    assert f"{name} is 4" in err
    assert f"where {name} is left over from something else, unset it" in err
    assert err.count("\n") == 1
    environment.setenv(name, "1")
    assert launch.remove_stale_ranks()
