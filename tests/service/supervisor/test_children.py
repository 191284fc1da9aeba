"""What the supervisor knows of its processes."""

from typing import Any

import pytest

from convoy.service.ipc import messages
from convoy.service.ipc.messages import Loaded, Loading, Status, Suspect
from convoy.service.supervisor.children import Child, Children
from convoy.service.supervisor.processes import channel_pair


class Ended:
    """A process that has ended, with the supervisor's end of its channel."""

    def __init__(self, *sent: messages.Message) -> None:
        self.channel, other = channel_pair()
        for message in sent:
            messages.send(other, message)
        other.close()
        self.channel.setblocking(False)


def child(*sent: messages.Message) -> Child:
    process: Any = Ended(*sent)
    return Child("engine", 0, 1, process)


def test_last_words_of_an_ended_process_are_read() -> None:
    """It may have died before the loop read which version it was loading."""
    suspect = Suspect("deadly", 1, "stamp")
    one = child(Loading(None), Loading(suspect))
    Children(1, "localhost:1").receive_rest(one)
    assert one.loading == suspect


def test_process_that_said_nothing_leaves_no_trace() -> None:
    one = child()
    Children(1, "localhost:1").receive_rest(one)
    assert one.loading is None


@pytest.mark.parametrize(
    ("reason", "logged"),
    [
        ("the model repository cannot be read: No such file or directory", True),
        ("no model serves", True),
        ("models are loading", False),
    ],
)
def test_fault_is_logged_although_the_server_was_not_ready_before(
    reason: str, logged: bool, caplog: pytest.LogCaptureFixture
) -> None:
    children = Children(1, "localhost:1")
    process: Any = Ended()
    one = children.by_number[1] = Child("frontend", 0, 1, process)
    children.receive(one, Status(True, False, "the engine is starting"))
    children.log_readiness()
    children.receive(one, Status(True, False, reason))
    children.log_readiness()
    assert (f"not ready: {reason}" in caplog.messages) == logged


def test_server_is_ready_once_every_front_end_is() -> None:
    children = Children(2, "localhost:1")
    assert children.ready() == (False, "front ends are starting")
    for number in (1, 2):
        process: Any = Ended()
        children.by_number[number] = Child("frontend", 0, number, process)
    children.receive(children.by_number[1], Status(True, True, ""))
    assert children.ready() == (False, "starting")
    children.receive(children.by_number[2], Status(True, True, "no engine on device 1"))
    assert children.ready() == (True, "no engine on device 1")
    children.draining = True
    assert children.ready() == (False, "draining")


def test_front_end_that_is_replaced_does_not_make_the_server_unready() -> None:
    children = Children(1, "localhost:1")
    old, new = (Child("frontend", 0, number, Ended()) for number in (1, 2))  # type: ignore[arg-type]
    old.status, new.succeeds = Status(True, True, ""), True
    children.by_number[1] = old
    assert children.ready() == (True, "")
    children.by_number[2] = new
    assert children.ready() == (True, "")
    new.status, old.retiring = Status(True, True, ""), True
    old.status = Status(False, False, "draining")
    assert children.ready() == (True, "")
    new.status = Status(True, False, "the engine is starting")
    del children.by_number[1]
    assert not children.ready()[0]


def test_engine_serves_once_it_has_loaded_whatever_others_do() -> None:
    """Until then, its memory does not show what it needs."""
    children = Children(1, "localhost:1")
    first, second = (Child("engine", device, device, Ended()) for device in (0, 1))  # type: ignore[arg-type]
    children.receive(first, Loaded())
    children.receive(second, Loading(Suspect("letters", 1, "stamp")))
    assert (first.serves, second.serves) == (True, False)


def test_front_end_serves_once_it_says_so() -> None:
    children = Children(1, "localhost:1")
    one = Child("frontend", 0, 1, Ended())  # type: ignore[arg-type]
    children.receive(one, Status(True, False, "models are loading"))
    assert not one.serves
    children.receive(one, Status(True, True, ""))
    assert one.serves
