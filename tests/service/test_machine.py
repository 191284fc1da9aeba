"""What a process may use of the machine it runs on."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from convoy.service.machine import available_bytes, cores, cuda_devices, memory_bytes, own_bytes, usage


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


def test_a_containers_available_memory_is_what_it_has_left(tmp_path: Path) -> None:
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal:       16000000 kB\nMemAvailable:    4000000 kB\n")
    assert available_bytes(tmp_path, meminfo) == 4_000_000 << 10
    (tmp_path / "memory.max").write_text(f"{1 << 30}\n")
    (tmp_path / "memory.current").write_text(f"{900 << 20}\n")
    assert available_bytes(tmp_path, meminfo) == 124 << 20
    (tmp_path / "memory.stat").write_text(f"active_file 5\ninactive_file {300 << 20}\n")  # files are only cached
    assert available_bytes(tmp_path, meminfo) == 424 << 20
    (tmp_path / "memory.max").write_text("max\n")
    assert available_bytes(tmp_path, meminfo) == 4_000_000 << 10
    assert 0 < available_bytes() <= memory_bytes()


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


def test_own_memory_counts_what_a_process_does_not_share(tmp_path: Path) -> None:
    (tmp_path / "17").mkdir()
    (tmp_path / "17" / "statm").write_text("90000 5000 3000 700 0 8000 0\n")
    assert own_bytes(17, tmp_path) == 2000 * os.sysconf("SC_PAGE_SIZE")
    assert 0 < own_bytes() < 1 << 40
    with pytest.raises(OSError, match="No such file"):
        own_bytes(18, tmp_path)


def test_usage_is_that_of_the_process(tmp_path: Path) -> None:
    (tmp_path / "17").mkdir()
    numbers = ["0"] * 50
    numbers[11], numbers[12], numbers[21] = "150", "50", "2000"
    (tmp_path / "17" / "stat").write_text(f"17 (odd) name 1 2) S {' '.join(numbers[1:])}\n")
    ticks = os.sysconf("SC_CLK_TCK")
    assert usage(17, tmp_path) == (200 / ticks, 2000 * os.sysconf("SC_PAGE_SIZE"))
    seconds, nbytes = usage(os.getpid())
    assert seconds > 0
    assert nbytes > own_bytes()
    with pytest.raises(OSError, match="No such file"):
        usage(18, tmp_path)
