"""Memory that is used again tells whether a run has written its outputs there."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from convoy.service.engine.poison import Poison
from convoy.service.engine.providers import CUDA
from convoy.service.engine.session import DeviceLost, Session, Unwritten, load
from tests.service import networks

ROOMS = [
    np.zeros((3, 10), np.float32),
    np.zeros((2, 64, 64), np.uint8),
    np.zeros((4,), np.float32),  # rows of less than eight bytes
    np.zeros((2, 2), np.int64),
    np.zeros((1, 5), np.float16),
    np.zeros((), np.float64),
]


@pytest.mark.parametrize("room", ROOMS, ids=lambda room: f"{room.dtype} {room.shape}")
def test_output_that_is_not_written_is_found_and_one_that_is_written_is_not(room: np.ndarray) -> None:
    poison, others = Poison(), np.ones(4, np.float32)
    poison.put([None, room])
    assert poison.remains([others, room]) == 1
    for value in (0, 1, 255, 2**15, -1):
        poison.put([room])
        room.reshape(-1).view(np.uint8)[:] = value & 255
        assert poison.remains([others, room]) is None


@pytest.mark.parametrize("part", [np.s_[:2], np.s_[1:], np.s_[:, :8], np.s_[:, 2:]])
def test_output_that_is_written_in_part_is_found(part: Any) -> None:
    poison, room = Poison(), np.zeros((3, 10), np.float32)
    poison.put([room])
    room[part] = 1
    assert poison.remains([room]) == 0


def test_what_could_be_a_number_by_chance_is_not_judged() -> None:
    poison, room = Poison(), np.zeros((1,), np.float32)
    poison.put([room])
    assert poison.remains([room]) is None


def test_secrets_differ() -> None:
    room = np.zeros((1, 64), np.uint8)
    Poison().put([room])
    assert Poison().remains([room]) is None


@pytest.fixture
def silent(tmp_path: Path) -> Session:
    """A session whose runs into given memory end without error, and write nothing."""
    session = load(networks.save(networks.doubler(), tmp_path, "doubler"), "cpu", 0, 1)
    session._session = Silent(session._session)  # type: ignore[assignment]
    return session


class Silent:
    def __init__(self, session: Any) -> None:
        self._session = session

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)

    def run_with_iobinding(self, *arguments: Any) -> None:
        pass


def test_run_that_writes_nothing_is_an_error_and_on_a_gpu_the_end_of_the_device(silent: Session) -> None:
    x = np.ones((2, 4), np.float32)
    rooms = [np.full((2, 4), 2, np.float32), np.full((2, 1), 4, np.float32)]  # the right answers, of an earlier batch
    with pytest.raises(Unwritten, match="did not write output 'y'"):
        silent.run([x], rooms)
    silent.provider = CUDA
    with pytest.raises(DeviceLost, match="did not write output 'y'"):
        silent.run([x], rooms)


@pytest.mark.parametrize("network", ["doubler", "copy", "constant"])
def test_run_that_writes_is_none(tmp_path: Path, network: str) -> None:
    made = {"doubler": networks.doubler, "copy": networks.copies, "constant": networks.constants}[network]()
    session = load(networks.save(made, tmp_path, network), "cpu", 0, 1)
    x = np.arange(8, dtype=np.float32).reshape(2, 4)
    rooms = [np.zeros((2, *spec.shape[1:]), np.float32) for spec in session.outputs]  # type: ignore[arg-type]
    for found, expected in zip(session.run([x], rooms), session.run([x]), strict=True):
        assert (found == expected).all()
