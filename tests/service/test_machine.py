"""What a process may use of the machine it runs on."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from convoy.service.machine import cores, cuda_devices, memory_bytes


def test_a_process_has_the_cores_it_may_run_on() -> None:
    assert 1 <= cores() <= (os.cpu_count() or 1)


@pytest.mark.parametrize(
    ("file", "text", "share"),
    [
        ("cpu.max", "100000 100000\n", 1),
        ("cpu.max", "25000 100000\n", 1),
        ("cpu.max", "max 100000\n", None),
        ("cpu.max", "6400000 100000\n", None),
        ("cpu.max", "nonsense", None),
        ("cpu/cpu.cfs_quota_us", "100000\n", 1),
        ("cpu,cpuacct/cpu.cfs_quota_us", "100000\n", 1),
        ("cpu/cpu.cfs_quota_us", "-1\n", None),
    ],
)
def test_a_containers_quota_counts_as_its_cores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str, text: str, share: int | None
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(8)))
    path = tmp_path / file
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    if "cfs" in file:
        path.with_name("cpu.cfs_period_us").write_text("100000\n")
    assert cores(tmp_path) == (share or 8)


def test_a_containers_memory_is_its_limit_where_it_has_one(tmp_path: Path) -> None:
    machine = memory_bytes(())
    assert machine > 1 << 28
    limit = tmp_path / "memory.max"
    for text, memory in ((f"{machine // 3}\n", machine // 3), ("max\n", machine), (f"{1 << 63}\n", machine)):
        limit.write_text(text)
        assert memory_bytes((tmp_path / "none", limit)) == memory


def test_without_a_driver_there_is_no_cuda_device() -> None:
    assert cuda_devices("libnosuchdriver.so.1") == 0
    assert cuda_devices("libc.so.6") == 0  # it has no such function


@pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler, to play the driver")
@pytest.mark.parametrize(("status", "count"), [(0, 3), (100, 0)])
def test_there_are_as_many_cuda_devices_as_the_driver_says(tmp_path: Path, status: int, count: int) -> None:
    source, library = tmp_path / "driver.c", tmp_path / "libdriver.so"
    source.write_text(
        f"int cuInit(unsigned flags) {{ return {status}; }}\n"
        "int cuDeviceGetCount(int *count) { *count = 3; return 0; }\n"
    )
    subprocess.run(["cc", "-shared", "-fPIC", "-o", str(library), str(source)], check=True)
    assert cuda_devices(str(library)) == count
