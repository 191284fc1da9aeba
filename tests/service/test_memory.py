"""What processes hold after callers that wanted much of it have gone."""

from contextlib import ExitStack
from pathlib import Path

import grpc

from convoy.service.config import MIB
from convoy.service.machine import own_bytes
from convoy.service.pb.convoy.v1 import vision_pb2 as pb
from tests.service import networks
from tests.service.calls import method
from tests.service.frontend.transport.raw import SETTINGS, Raw, message
from tests.service.running import Server, skip_without
from tests.service.test_overload import _wait_until, assert_all_slots_are_freed

PROMPT = ("server.lame_duck_seconds=0",)
SLACK = 80 * MIB
CLASSIFY = "/convoy.v1.Vision/Classify"


def large() -> bytes:
    """A request of 60 MiB with a picture that is none."""
    image = pb.Image(encoded=b"\xff\xd8\xff" + bytes(60 * MIB))
    return pb.ClassifyRequest(model="letters", images=[image]).SerializeToString()


def test_stalled_uploads_hold_no_more_than_their_limit_and_leave_nothing(tmp_path: Path) -> None:
    skip_without("nghttp2")
    networks.save(networks.classifier(), tmp_path, "letters")
    limits = ["limits.inflight_bytes=134217728", "server.transport=nghttp2"]
    with Server(tmp_path, [*PROMPT, *limits]) as server:
        host, _, port = server.grpc.rpartition(":")
        pid = server.children()["frontend"]
        before = own_bytes(pid)
        begun = message(large())[: 59 * MIB]
        with ExitStack() as stack:
            for _ in range(12):
                raw = stack.enter_context(Raw((host, int(port))))
                raw.until(SETTINGS)
                try:
                    raw.upload(1, begun, CLASSIFY)
                except (OSError, AssertionError):
                    continue  # it has lost its place to others
            held = own_bytes(pid) - before
            assert held > 100 * MIB
            # Twice the bytes in flight, the message that made it too many, and what is being processed.
            assert held < 2 * 128 * MIB + 60 * MIB + SLACK
        _wait_until(lambda: own_bytes(pid) < before + SLACK)


def test_broken_pictures_leave_nothing(tmp_path: Path) -> None:
    networks.save(networks.classifier(), tmp_path, "letters")
    with (
        Server(tmp_path, PROMPT) as server,
        grpc.insecure_channel(server.grpc, [("grpc.max_send_message_length", -1)]) as channel,
    ):
        pid = server.children()["frontend"]
        before = own_bytes(pid)
        call, data = method(channel, "Classify"), large()
        for _ in range(3):
            errors = [each.exception(120) for each in [call.future(data) for _ in range(8)]]
            assert {error.code() for error in errors} <= {
                grpc.StatusCode.INVALID_ARGUMENT,
                grpc.StatusCode.RESOURCE_EXHAUSTED,
            }
        _wait_until(lambda: own_bytes(pid) < before + SLACK)
        assert_all_slots_are_freed(server)
