"""A model repository behind links that Kubernetes or git-sync exchange is followed while requests run."""

import itertools
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from convoy.service.client.client import Client
from convoy.service.client.results import ServerError
from tests.service import networks
from tests.service.running import Server

# No poll within the test: what is found then, a notification has found.
NEVER = "repository.poll_seconds=600"
# Where the folder that is watched is exchanged itself, a notification may be missed: then a poll finds the change.
SOON = "repository.poll_seconds=0.5"
WAIT = 60.0  # seconds for a version to be tried, loaded and measured on a busy machine


class Volume:
    """A volume made from a ConfigMap, as a kubelet's atomic writer updates it: all files in a new folder with a date,
    to which `..data` leads; beside it, a link for the first part of every path. The old folder is removed at once."""

    def __init__(self, folder: Path) -> None:
        self.root = folder
        self._dates = itertools.count(1)

    def write(self, files: Mapping[str, bytes]) -> None:
        before = self.root / "..data"
        old = self.root / before.readlink() if before.is_symlink() else None
        fresh = self.root / f"..2026_11_30_12_00_{next(self._dates):02}.123456789"
        for name, content in files.items():
            (fresh / name).parent.mkdir(parents=True, exist_ok=True)
            (fresh / name).write_bytes(content)
        exchange(before, fresh.name)
        for first in {name.partition("/")[0] for name in files}:
            if not (self.root / first).is_symlink():
                (self.root / first).symlink_to(f"..data/{first}")
        if old is not None:
            shutil.rmtree(old)


class Worktrees:
    """What git-sync makes: a worktree for each commit, and the link `current` to the newest. The old one is removed at
    once, or later (`keeps`), as with --stale-worktree-timeout."""

    def __init__(self, folder: Path, *, keeps: bool = False) -> None:
        self._folder, self._keeps = folder, keeps
        self.root = folder / "current"
        self._commits = itertools.count(1)

    def write(self, files: Mapping[str, bytes]) -> None:
        old = self._folder / self.root.readlink() if self.root.is_symlink() else None
        fresh = self._folder / ".worktrees" / f"{next(self._commits):040x}"
        for name, content in {".git": b"gitdir: ../../.git\n", **files}.items():
            (fresh / name).parent.mkdir(parents=True, exist_ok=True)
            (fresh / name).write_bytes(content)
        exchange(self.root, os.path.relpath(fresh, self._folder))
        if old is not None and not self._keeps:
            shutil.rmtree(old)


def exchange(link: Path, target: str) -> None:
    """Lets a link lead elsewhere, in one step."""
    fresh = link.with_name(f"{link.name}_tmp")
    fresh.symlink_to(target)
    fresh.replace(link)


def network(shift: int) -> bytes:
    """A classifier that answers the label number `shift` for `PIXELS`."""
    return bytes(networks.classifier(shift=shift).SerializeToString())


PIXELS = np.zeros((8, 8), np.uint8)
PIXELS.flat[::10] = 255  # class 0, without a shift


class Calls:
    """Calls of two clients that never repeat one. What they were answered, and how they failed."""

    def __init__(self, target: str) -> None:
        self.answers: list[tuple[int, str]] = []  # version, label
        self.failures: list[ServerError] = []
        self._target = target
        self._changed = threading.Condition()
        self._stop = threading.Event()

    def call(self) -> None:
        with Client(self._target, retry=False) as client:
            while not self._stop.is_set():
                try:
                    result = client.classify(PIXELS, "net")
                except ServerError as error:
                    with self._changed:
                        self.failures.append(error)
                        self._changed.notify_all()
                    self._stop.wait(0.01)
                    continue
                with self._changed:
                    self.answers.append((result.version, result.labels[0].name))
                    self._changed.notify_all()

    def wait_for(self, answer: tuple[int, str]) -> float:
        """The seconds until both clients get this answer, and no other any more."""
        began = time.monotonic()
        with self._changed:
            assert self._changed.wait_for(lambda: self.answers[-4:] == [answer] * 4, WAIT), self.answers[-4:]
        return time.monotonic() - began

    def wait_for_failure(self) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: self.failures, WAIT)

    @contextmanager
    def running(self) -> Iterator[None]:
        threads = [threading.Thread(target=self.call) for _ in range(2)]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self._stop.set()
            for thread in threads:
                thread.join()


Layout = Callable[[Path], Volume | Worktrees]
LAYOUTS: dict[str, tuple[Layout, str]] = {
    "volume of a ConfigMap": (Volume, NEVER),
    "worktrees that are removed": (Worktrees, SOON),
    "worktrees that are kept": (lambda folder: Worktrees(folder, keeps=True), SOON),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_exchanged_link_of_a_repository_is_followed_and_no_call_fails(layout: str, tmp_path: Path) -> None:
    make, poll = LAYOUTS[layout]
    source = make(tmp_path)
    source.write({"net/1/model.onnx": network(0)})
    with Server(source.root, [poll, "server.lame_duck_seconds=0"]) as server:
        calls = Calls(server.grpc)
        with calls.running():
            calls.wait_for((1, "a"))
            source.write({"net/1/model.onnx": network(0), "net/2/model.onnx": network(1)})  # a new version,
            calls.wait_for((2, "b"))
            source.write({"net/2/model.onnx": network(2)})  # another content of the same one,
            calls.wait_for((2, "c"))
            source.write({"net/1/model.onnx": network(3)})  # and one that goes back
            calls.wait_for((1, "d"))
        assert calls.failures == []
        found = list(dict.fromkeys(calls.answers))
        assert found == [(1, "a"), (2, "b"), (2, "c"), (1, "d")]


def test_file_by_itself_in_a_volume_is_followed(tmp_path: Path) -> None:
    # A ConfigMap whose key is the file, without folders.
    source = Volume(tmp_path)
    source.write({"net.onnx": network(0)})
    with Server(tmp_path, [SOON, "server.lame_duck_seconds=0"], serving=[str(tmp_path / "net.onnx")]) as server:
        calls = Calls(server.grpc)
        with calls.running():
            calls.wait_for((1, "a"))
            for shift, label in ((1, "b"), (2, "c")):
                source.write({"net.onnx": network(shift)})
                calls.wait_for((1, label))
        assert calls.failures == []


def test_broken_commit_leaves_what_serves_and_only_a_commit_without_the_model_ends_it(tmp_path: Path) -> None:
    source = Worktrees(tmp_path)
    source.write({"net/1/model.onnx": network(0)})
    with Server(source.root, [SOON, "server.lame_duck_seconds=0"]) as server:
        calls = Calls(server.grpc)
        with calls.running():
            calls.wait_for((1, "a"))
            pointer = b"version https://git-lfs.github.com/spec/v1\n"  # git-sync does not fetch what is in LFS
            source.write({"net/1/model.onnx": network(0), "net/2/model.onnx": pointer})
            server.wait_for_log("model net version 2", WAIT)
            source.write({"net/1/model.onnx": network(0), "net/2/model.onnx": network(1)})
            calls.wait_for((2, "b"))
            assert calls.failures == []
            # A call that fails is seen.
            source.write({"other/1/model.onnx": network(1)})
            calls.wait_for_failure()
        assert {error.reason for error in calls.failures} <= {"UNKNOWN_MODEL", "MODEL_UNAVAILABLE"}


@pytest.mark.soak
@pytest.mark.parametrize("layout", LAYOUTS)
def test_links_that_are_exchanged_at_any_moment_fail_no_call(layout: str, tmp_path: Path) -> None:
    # Also in the middle of a scan, a copy, a trial. Settings beside the model are read at every scan.
    make, poll = LAYOUTS[layout]
    source = make(tmp_path)
    rng = np.random.default_rng(0)
    source.write({"net/1/model.onnx": network(0), "net/model.toml": b"max_queue = 100\n"})
    with Server(source.root, [poll, "server.lame_duck_seconds=0"]) as server:
        calls = Calls(server.grpc)
        with calls.running():
            for number in range(1, 201):
                version = 1 + number % 3
                files = {f"net/{version}/model.onnx": network(number % 10), "net/model.toml": b"max_queue = 100\n"}
                source.write(files)
                threading.Event().wait(float(rng.exponential(0.1)))
            calls.wait_for((version, "abcdefghij"[number % 10]))
        assert calls.failures == []
        assert len(set(calls.answers)) > 10
