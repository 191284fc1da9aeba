"""How busy a GPU is, as its own program tells."""

from pathlib import Path

import pytest

from tests.performance.device import Watch


def test_watch_tells_the_share_of_time_in_which_the_gpu_was_busy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 97\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    watch = Watch()
    with watch:
        pass
    assert str(watch) == "; GPU busy 97 % of the time"


def test_watch_says_nothing_where_there_is_no_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    watch = Watch()
    with watch:
        pass
    assert str(watch) == ""
