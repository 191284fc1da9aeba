"""Pictures that crash a decoder: at most one front end dies of it, and nobody but their caller is refused."""

import os
import signal
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest

from convoy.service.client.client import Client
from convoy.service.client.results import ServerError
from convoy.service.pb.convoy.v1 import vision_pb2 as pb
from tests.service import networks
from tests.service.calls import method, reason
from tests.service.running import Server
from tests.service.test_faults import FATAL, Neighbours
from tests.service.test_overload import _best, _wait_until
from tests.service.test_vision import encoded, grey

PROMPT = ("server.lame_duck_seconds=0",)
SECONDS = 60  # for an answer, before which two processes may have to start, one after the other
MAGIC = b"crash the decoder"
# Python imports this module at its start. It makes the decoder of the server's processes crash, as one with an error in
# its handling of memory would.
BROKEN_DECODER = f"""
import ctypes, sys

if any(name in sys.orig_argv for name in ("convoy.service.frontend.server", "convoy.service.images.apart")):
    from convoy.service.images import png

    read_image = png.read_image

    def crash(data, structure):
        if {MAGIC!r} in data:
            ctypes.string_at(0)
        return read_image(data, structure)

    png.read_image = crash
"""


def deadly(number: int = 0) -> bytes:
    """A picture that crashes that decoder, one of many."""
    return encoded(grey(number)) + MAGIC  # bytes after the end of an image do not matter


def request(data: bytes) -> pb.ClassifyRequest:
    return pb.ClassifyRequest(model="letters", images=[pb.Image(encoded=data)])


@pytest.fixture
def broken(tmp_path: Path) -> dict[str, str]:
    """The environment of a server with such a decoder."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(BROKEN_DECODER)
    return {"PYTHONPATH": os.pathsep.join([str(tmp_path / "site"), *filter(None, sys.path)])}


@pytest.mark.parametrize("front_ends", [1, 2])
def test_picture_that_crashes_a_decoder_ends_one_front_end_and_is_then_refused(
    tmp_path: Path, broken: dict[str, str], front_ends: int
) -> None:
    networks.save(networks.classifier(), tmp_path / "repository", "letters")
    settings = [*PROMPT, f"server.frontends={front_ends}"]
    with Server(tmp_path / "repository", settings, environment=broken) as server:
        for attempt in range(3 * front_ends):
            # Its own connection each time, to any front end.
            with grpc.insecure_channel(server.grpc, [("grpc.use_local_subchannel_pool", 1)]) as channel:
                error = method(channel, "Classify").future(request(deadly()), wait_for_ready=True).exception(SECONDS)
            if attempt == 0:
                assert error.code() is grpc.StatusCode.UNAVAILABLE
                server.wait_for_log("it was decoding 1 pictures")
                server.wait_for_total("convoy_frontend_restarts_total", 1)
            else:
                assert (error.code(), reason(error)) == (grpc.StatusCode.INVALID_ARGUMENT, "BAD_IMAGE")
                assert "ends the process that decodes it" in error.details()
        assert server.total("convoy_frontend_restarts_total") == 1


def test_other_pictures_of_that_kind_end_no_further_front_end(tmp_path: Path, broken: dict[str, str]) -> None:
    networks.save(networks.classifier(), tmp_path / "repository", "letters")
    with Server(tmp_path / "repository", PROMPT, environment=broken) as server:
        with grpc.insecure_channel(server.grpc) as channel:
            assert method(channel, "Classify").future(request(deadly())).exception(SECONDS)
        server.wait_for_total("convoy_frontend_restarts_total", 1)
        with Client(server.grpc) as good, grpc.insecure_channel(server.grpc) as channel:
            classify = method(channel, "Classify")
            for number in range(1, 5):
                bad = classify.future(request(deadly(number)), wait_for_ready=True)
                # Beside it, in the same way, other pictures are decoded.
                assert good.classify(grey(number), "letters").labels[0].index == _best(number)[0]
                assert bad.exception(SECONDS).code() is grpc.StatusCode.INVALID_ARGUMENT
        assert server.total("convoy_frontend_restarts_total") == 1


def test_picture_that_only_ran_beside_is_decoded(tmp_path: Path, broken: dict[str, str]) -> None:
    networks.save(networks.classifier(), tmp_path / "repository", "letters")
    with Server(tmp_path / "repository", PROMPT, environment=broken) as server, ThreadPoolExecutor(4) as callers:
        over = threading.Event()
        answers: list[int] = []

        def call(client: Client) -> None:
            while not over.is_set():
                answers.append(client.classify(grey(3), "letters").labels[0].index)

        with Client(server.grpc) as client, grpc.insecure_channel(server.grpc) as channel:
            calling = [callers.submit(call, client) for _ in range(4)]
            _wait_until(lambda: len(answers) > 8)
            assert method(channel, "Classify").future(request(deadly())).exception(SECONDS)
            server.wait_for_total("convoy_frontend_restarts_total", 1)
            before = len(answers)
            _wait_until(lambda: len(answers) > before + 20)
            over.set()
            for each in calling:
                each.result(60)
        assert set(answers) == {_best(3)[0]}


def test_killed_front_end_leaves_its_pictures_servable(tmp_path: Path) -> None:
    networks.save(networks.classifier(), tmp_path, "letters")
    with Server(tmp_path, PROMPT) as server, Neighbours(server.grpc) as neighbours:
        _wait_until(lambda: neighbours.answered > 8)
        os.kill(server.children()["frontend"], signal.SIGKILL)
        before = neighbours.answered
        _wait_until(lambda: neighbours.answered > before + 20)
        assert neighbours.settle()  # one of them may not have noticed its failure yet
        neighbours.failed.clear()  # they do not retry
        before = neighbours.answered
        _wait_until(lambda: neighbours.answered > before + 20)
        assert neighbours.failed == []


def test_input_that_ends_engines_is_refused_also_by_the_next_front_end(tmp_path: Path) -> None:
    networks.save(networks.fatal("dies"), tmp_path, "dies")
    with Server(tmp_path, PROMPT) as server, Client(server.grpc) as client:
        with pytest.raises(ServerError) as refused:
            client.classify(FATAL, "dies")
        assert refused.value.reason == "ENGINE_DIED"
        deaths = server.total("convoy_engine_restarts_total")
        os.kill(server.children()["frontend"], signal.SIGKILL)
        server.wait_for_total("convoy_frontend_restarts_total", 1)
        with pytest.raises(ServerError) as refused:
            client.classify(FATAL, "dies")
        assert refused.value.reason == "ENGINE_DIED"
        assert server.total("convoy_engine_restarts_total") == deaths
