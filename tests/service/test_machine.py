"""What a process may use of the machine it runs on."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from service.machine import cores, cuda_devices, memory_bytes


def test_a_process_has_the_cores_it_may_run_on() -> None:
    assert 1 <= cores() <= (os.cpu_count() or 1)


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
