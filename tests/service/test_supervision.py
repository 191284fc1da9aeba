"""Processes that die, signals, ports and options: what an operator sees."""

import contextlib
import errno
import fcntl
import itertools
import os
import shutil
import signal
import socket
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import numpy as np
import onnx
import pytest

from convoy.service.client.client import Client
from convoy.service.client.results import ServerError
from convoy.service.config import AdminConfig, ServerConfig
from convoy.service.errors import BadConfig
from convoy.service.pb.convoy.v1 import vision_pb2 as pb
from convoy.service.supervisor.ports import Sockets
from tests import processes
from tests.service import networks
from tests.service.calls import method
from tests.service.running import START_SECONDS, Server, held_back, skip_without
from tests.service.test_overload import (
    PATIENT,
    _best,
    _wait_until,
    assert_all_slots_are_freed,
    at_once,
    ran,
    request,
    standing,
)
from tests.service.test_vision import encoded, grey

PROMPT = ("server.lame_duck_seconds=0",)
CONVOY = str(Path(sys.executable).with_name("convoy"))


def convoy(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([CONVOY, *words], capture_output=True, text=True, timeout=60, check=False)


def test_a_killed_engine_is_restarted_and_those_who_waited_get_their_right_answers(small_repository: Path) -> None:
    with (
        Server(small_repository, [*PROMPT, "batching.max_batch_size=1", PATIENT]) as server,
        grpc.insecure_channel(server.grpc) as channel,
    ):
        classify = method(channel, "Classify")
        classify(request(7))  # one that has served is restarted at once
        with standing(server):
            calls = [classify.future(request(seed)) for seed in range(16)]
            others = [
                classify.future(pb.ClassifyRequest(model="letters", images=[pb.Image(encoded=encoded(grey(seed)))]))
                for seed in range(6)
            ]
            _wait_until(lambda: server.total("convoy_requests_in_flight") == 22)
        _wait_until(lambda: any(call.done() for call in calls))  # then another runs, and five seconds of work wait
        engine = server.children()["engine"]
        os.kill(engine, signal.SIGKILL)
        for seed, call in [*enumerate(calls), *enumerate(others)]:
            labels = call.result(timeout=120).results[0].classification.labels
            assert [label.index for label in labels] == _best(seed)
        assert server.children()["engine"] != engine
        assert server.total("convoy_engine_restarts_total") == 1
        assert server.total("convoy_retries_total") >= 1
        assert server.wait_for_log("engine")["message"].endswith("signal 9; restarting in 0.05 s")
        assert_all_slots_are_freed(server)
        # Counted once each, however often they were sent to an engine.
        assert server.total("convoy_images_total") == 23


def test_a_killed_front_end_is_restarted_and_what_it_had_waiting_is_not_run(small_repository: Path) -> None:
    with Server(small_repository, [*PROMPT, "batching.max_batch_size=1", PATIENT]) as server:
        with Client(server.grpc) as client:
            client.classify(grey(1), "letters")
        counted = server.total("convoy_images_total")
        with grpc.insecure_channel(server.grpc) as channel, standing(server):
            calls = [method(channel, "Classify").future(at_once(seed)) for seed in range(20)]
            _wait_until(lambda: server.total("convoy_requests_in_flight") == 20)
            seen = len(server.log)
            os.kill(server.children()["frontend"], signal.SIGKILL)
            assert {call.exception().code() for call in calls} == {grpc.StatusCode.UNAVAILABLE}
        server.wait_for_log("ready", after=seen)
        assert server.wait_for_total("convoy_queue_depth", 0) == 0
        with Client(server.grpc) as client:
            # First come, first served: once this is answered, whatever still waited has run too.
            assert client.classify(grey(2), "slow").labels[0].index == _best(2)[0]
        # It would be 21 with this one. The engine runs what it finds first, and more if it is slow to find that nobody
        # awaits it.
        assert ran(server) < 10
        assert server.total("convoy_frontend_restarts_total") == 1
        # What the dead process had counted stays counted; what it had claimed is gone with it.
        assert server.total("convoy_images_total") == counted + 1
        assert_all_slots_are_freed(server)


def test_calls_of_a_server_whose_supervisor_is_killed_may_be_repeated(small_repository: Path) -> None:
    settings = [*PROMPT, PATIENT]
    with Server(small_repository, settings) as server, grpc.insecure_channel(server.grpc) as channel:
        children = server.children()
        with standing(server):
            calls = [method(channel, "Classify").future(request(seed)) for seed in range(4)]
            _wait_until(lambda: server.total("convoy_requests_in_flight") == 4)
            server.process.kill()
            assert {call.exception(timeout=60).code() for call in calls} == {grpc.StatusCode.UNAVAILABLE}
        _wait_until(lambda: not any(processes.alive(pid) for pid in children.values()))


@pytest.mark.both_transports
def test_sigterm_is_not_ready_at_once_answers_what_was_accepted_and_ends_with_0(small_repository: Path) -> None:
    with Server(small_repository, ["server.lame_duck_seconds=5", PATIENT]) as server:
        children = server.children()
        with grpc.insecure_channel(server.grpc) as channel:
            classify = method(channel, "Classify")
            with standing(server):
                accepted = [classify.future(request(seed)) for seed in range(4)]
                _wait_until(lambda: server.total("convoy_requests_in_flight") == 4)
                server.process.send_signal(signal.SIGTERM)
                server.wait_for_log("draining")
                _wait_until(lambda: server.get(f"{server.http}/readyz")[0] == 503)
                # For a little while it still accepts: whoever sends requests has not heard of it yet.
                lame_duck = classify.future(request(9))
                assert "draining" in server.get(f"{server.http}/readyz")[1]
                assert server.get(f"{server.http}/livez")[0] == 200
            for seed, call in [*enumerate(accepted), (9, lame_duck)]:
                labels = call.result(timeout=30).results[0].classification.labels
                assert [label.index for label in labels] == _best(seed)
        assert server.process.wait(30) == 0
        assert not any(processes.alive(pid) for pid in children.values())


def test_port_opens_only_once_models_are_loaded_where_that_is_set(small_repository: Path, tmp_path: Path) -> None:
    held, environment = held_back(tmp_path)
    held.touch()
    settings = [*PROMPT, "server.listen_when_loaded=true"]
    with (
        Server(small_repository, settings, wait=False, environment=environment) as server,
        socket.socket() as early,
    ):
        host, port = server.grpc.split(":")
        assert early.connect_ex((host, int(port))) == errno.ECONNREFUSED
        assert server.get(f"{server.http}/readyz")[0] == 503
        held.unlink()

        def accepts() -> bool:
            with socket.socket() as caller:
                return caller.connect_ex((host, int(port))) == 0

        _wait_until(accepts, START_SECONDS)
        with Client(server.grpc, retry=False) as client:
            assert client.classify(grey(1), "slow").labels[0].index == _best(1)[0]
        server.wait_for_log("ready")


def test_callers_wait_while_the_only_front_end_is_replaced(quick_repository: Path) -> None:
    with Server(quick_repository, PROMPT) as server:
        for seed in range(3):
            server.wait_for_log("ready")
            front_end = server.children()["frontend"]
            seen = len(server.log)
            os.kill(front_end, signal.SIGKILL)
            _wait_until(lambda pid=front_end: not processes.alive(pid))  # type: ignore[misc]
            with grpc.insecure_channel(server.grpc) as channel:  # which repeats nothing
                image = pb.Image(encoded=encoded(grey(seed)))
                answer = method(channel, "Classify")(pb.ClassifyRequest(model="letters", images=[image]), timeout=60)
            assert [label.index for label in answer.results[0].classification.labels] == _best(seed)
            server.wait_for_log("ready", after=seen)


def test_port_that_opens_once_models_are_loaded_is_closed_while_the_front_end_is_replaced(
    quick_repository: Path,
) -> None:
    with Server(quick_repository, [*PROMPT, "server.listen_when_loaded=true", PATIENT]) as server:
        assert not _refuses(server)
        with standing(server):  # nobody tells the next one which models there are
            os.kill(server.children()["frontend"], signal.SIGKILL)
            _wait_until(lambda: _refuses(server))
        _wait_until(lambda: not _refuses(server), START_SECONDS)  # a client tries again for a few seconds only
        with Client(server.grpc) as client:
            assert client.classify(grey(1), "letters").labels[0].index == _best(1)[0]


def test_callers_are_refused_while_front_ends_fail_to_start(quick_repository: Path) -> None:
    with Server(quick_repository, PROMPT) as server:
        server.wait_for_log("ready")

        def waits_long() -> bool:
            for pid in server.processes("frontend"):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            return any(record["message"].endswith("restarting in 2 s") for record in server.log)

        # As long as none of them starts, which takes a moment when the wait is over.
        _wait_until(lambda: waits_long() and _refuses(server), START_SECONDS)
        _wait_until(lambda: not _refuses(server), START_SECONDS)  # until one starts
        with Client(server.grpc) as client:
            assert client.classify(grey(1), "letters").labels[0].index == _best(1)[0]


def test_server_that_drains_refuses_connections_while_it_answers(small_repository: Path) -> None:
    settings = [*PROMPT, PATIENT]
    with Server(small_repository, settings) as server, grpc.insecure_channel(server.grpc) as channel:
        with standing(server):
            calls = [method(channel, "Classify").future(request(seed)) for seed in range(4)]
            _wait_until(lambda: server.total("convoy_requests_in_flight") == 4)
            assert not _refuses(server)
            server.process.send_signal(signal.SIGTERM)
            _wait_until(lambda: _refuses(server))
            assert server.process.poll() is None
        assert all(call.result(timeout=30).results for call in calls)
        assert server.process.wait(30) == 0


def _refuses(server: Server) -> bool:
    host, _, port = server.grpc.rpartition(":")
    try:
        socket.create_connection((host, int(port)), 5).close()
    except ConnectionRefusedError:
        return True
    return False


def test_a_front_end_that_takes_the_place_of_another_listens_once_it_knows_the_models(quick_repository: Path) -> None:
    with (
        Server(quick_repository, ["server.heartbeat_seconds=0"]) as server,
        Client(server.grpc, retry=False) as client,
    ):
        children = server.children()
        os.kill(children["engine"], signal.SIGSTOP)  # nobody says which models there are
        os.kill(children["frontend"], signal.SIGKILL)
        refusals: list[str] = []
        resumed = time.monotonic() + 4  # seconds, in which the next one has started

        def answered() -> bool:
            if refusals and time.monotonic() > resumed:
                os.kill(children["engine"], signal.SIGCONT)
            try:
                return client.classify(grey(1), "letters", deadline=5).labels[0].index == _best(1)[0]
            except ServerError as error:
                refusals.append(error.message)
                return False

        _wait_until(answered, START_SECONDS)
        assert server.children()["engine"] == children["engine"]
        assert refusals
        assert not [message for message in refusals if "loading" in message or "starting" in message]


def test_a_front_end_that_dies_while_the_server_drains_is_not_followed_by_another(quick_repository: Path) -> None:
    with Server(quick_repository, ["server.lame_duck_seconds=100"]) as server:
        front_end = server.children()["frontend"]
        server.process.send_signal(signal.SIGTERM)
        server.wait_for_log("draining")
        os.kill(front_end, signal.SIGKILL)
        assert server.process.wait(30) == 1
        assert not any("restarting in" in record["message"] for record in server.log)


@pytest.mark.both_transports
def test_an_idle_server_ends_well_within_five_seconds_of_sigterm(quick_repository: Path) -> None:
    def seconds() -> float:
        with Server(quick_repository) as server:
            began = time.monotonic()
            assert server.stop() == 0
            return time.monotonic() - began

    assert any(seconds() < 5 for _ in range(3))  # the machine may pause once


def test_requests_after_the_lame_duck_period_are_refused_while_what_was_accepted_is_answered(
    small_repository: Path,
) -> None:
    with (
        Server(small_repository, [*PROMPT, PATIENT]) as server,
        grpc.insecure_channel(server.grpc) as channel,
    ):
        classify = method(channel, "Classify")
        with standing(server):  # what was accepted stays so for as long as this takes
            accepted = classify.future(request(1))
            _wait_until(lambda: server.total("convoy_requests_in_flight") == 1)
            server.process.send_signal(signal.SIGTERM)
            # An image that is none never gets as far as the engine.
            late = pb.ClassifyRequest(model="letters", images=[pb.Image(encoded=b"none")])
            _wait_until(lambda: classify.future(late).exception().code() == grpc.StatusCode.UNAVAILABLE)
            # Liveness is another thing than readiness: who restarts dead servers must not restart one that drains.
            assert server.get(f"{server.http}/livez")[0] == 200
            assert not accepted.done()
        assert accepted.result(timeout=30).results[0].classification.labels[0].index == _best(1)[0]
        assert server.process.wait(30) == 0


def test_engine_that_hangs_at_its_end_has_left_nobody_without_an_answer(quick_repository: Path) -> None:
    with Server(quick_repository, ["server.lame_duck_seconds=0", PATIENT]) as server:
        os.kill(server.children()["engine"], signal.SIGSTOP)
        assert server.stop() == 0
    assert any("did not end in time: killed" in record["message"] for record in server.log)


def test_second_sigterm_ends_the_server_at_once(quick_repository: Path) -> None:
    with Server(quick_repository, ["server.lame_duck_seconds=20"]) as server:
        children = server.children()
        os.kill(children["engine"], signal.SIGSTOP)  # nothing that it should do keeps the server
        server.process.send_signal(signal.SIGTERM)
        server.wait_for_log("draining")
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(15) == 1
        _wait_until(lambda: not any(processes.alive(pid) for pid in children.values()))


@pytest.mark.parametrize("trial_seconds", [0, 60])
def test_sigterm_while_a_file_loads_that_never_ends_is_obeyed(tmp_path: Path, trial_seconds: int) -> None:
    networks.save(networks.classifier(), tmp_path, "letters")
    networks.save(networks.endless(), tmp_path, "zebras")
    settings = [*PROMPT, "server.log_level=debug", f"repository.trial_seconds={trial_seconds}"]
    with Server(tmp_path, settings, wait=False) as server:
        server.wait_for_log("model letters version 1 serves")
        if not trial_seconds:
            server.wait_for_log("model zebras version 1 is being loaded")
        children = server.children()
        assert server.stop() == 0
        _wait_until(lambda: not any(processes.alive(pid) for pid in children.values()))


def test_ctrl_c_ends_the_server_like_sigterm(quick_repository: Path) -> None:
    with Server(quick_repository, PROMPT) as server:
        assert server.stop(signal.SIGINT) == 0


def test_a_killed_supervisor_takes_its_processes_with_it(quick_repository: Path) -> None:
    with Server(quick_repository) as server:
        children = server.children()
        server.process.kill()
        server.process.wait()
        _wait_until(lambda: not any(processes.alive(pid) for pid in children.values()))


@pytest.mark.parametrize("key", ["grpc", "http", "metrics"])
def test_a_port_that_is_taken_is_one_line_and_exit_code_2(quick_repository: Path, key: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        ports = {"grpc": "0", "http": "0", "metrics": "0"} | {key: str(taken.getsockname()[1])}
        options = [word for name, port in ports.items() for word in (f"--{name}-port", port)]
        ended = convoy("serve", "--repository", str(quick_repository), *options)
    _assert_one_line(ended, f"server.{key}_port")


@pytest.mark.parametrize(("one", "other"), [("grpc", "http"), ("grpc", "metrics"), ("http", "metrics")])
def test_one_port_given_twice_is_one_line_and_exit_code_2(quick_repository: Path, one: str, other: str) -> None:
    ports = {"grpc": "0", "http": "0", "metrics": "0"} | dict.fromkeys((one, other), str(_free_port()))
    options = [word for name, port in ports.items() for word in (f"--{name}-port", port)]
    ended = convoy("serve", "--repository", str(quick_repository), *options)
    _assert_one_line(ended, f"server.{one}_port and server.{other}_port are both")


def test_a_port_is_taken_as_soon_as_it_is_bound() -> None:
    """Also from whoever binds it with SO_REUSEADDR, as every server does."""
    taken = Sockets(ServerConfig(grpc_port=0, http_port=0, metrics_port=0))
    with taken.http, taken.metrics, taken.reserved:
        for one in (taken.http, taken.metrics):
            with pytest.raises(BadConfig, match=r"server\.grpc_port"):
                Sockets(ServerConfig(grpc_port=one.getsockname()[1], http_port=0, metrics_port=0))
            with pytest.raises(BadConfig, match=r"server\.http_port"):
                Sockets(ServerConfig(grpc_port=0, http_port=one.getsockname()[1], metrics_port=0))


def test_port_of_administration_is_taken_like_the_others() -> None:
    free = ServerConfig(grpc_port=0, http_port=0, metrics_port=0)
    taken = Sockets(free, AdminConfig(enabled=True, port=0))
    with taken.http, taken.metrics, taken.reserved, taken.admin:
        for one in (taken.http, taken.metrics):
            with pytest.raises(BadConfig, match=r"set admin\.port"):
                Sockets(free, AdminConfig(enabled=True, port=one.getsockname()[1]))
    assert not Sockets(free, AdminConfig(port=0)).addresses.admin, "it is off"


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("file", "where something else is, want a path that is free"),
        ("folder", "where something else is"),
        ("link", "where something else is"),
        ("nowhere/admin.sock", "cannot be used .No such file or directory."),
        ("file/admin.sock", "cannot be used .Not a directory."),
        ("x" * 120, "cannot be used .AF_UNIX path too long."),
        ("busy", "where another process listens"),
    ],
)
def test_path_that_cannot_be_a_socket_is_named(tmp_path: Path, path: str, words: str) -> None:
    (tmp_path / "file").write_text("kept")
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to("file")
    with socket.socket(socket.AF_UNIX) as busy:
        busy.bind(str(tmp_path / "busy"))
        busy.listen()
        with pytest.raises(BadConfig, match=rf"admin\.socket is '.*', .*{words}"):
            Sockets(
                ServerConfig(grpc_port=0, http_port=0, metrics_port=0),
                AdminConfig(enabled=True, socket=str(tmp_path / path)),
            )
    assert (tmp_path / "file").read_text() == "kept"
    assert (tmp_path / "link").is_symlink()


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
        return port


def test_a_port_that_another_convoy_serves_on_is_not_shared_in_silence(small: Server, quick_repository: Path) -> None:
    # The default ports may be in use by others.
    ports = ["--grpc-port", small.grpc.rpartition(":")[2], "--http-port", "0", "--metrics-port", "0"]
    ended = convoy("serve", "--repository", str(quick_repository), *ports)
    _assert_one_line(ended, "server.grpc_port")


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (["--repository", "/no/such/place"], "is not a directory"),
        (["--repository", ".", "--grcp-port", "1"], "--grpc-port"),
        ([], "--repository"),
        (["--repository", ".", "--set", "batching.max_batchsize=3"], "batching.max_batchsize"),
        (["--repository", ".", "--set", "batching.max_batch_size=0"], "batching.max_batch_size"),
        (["--repository", ".", "--config", "/no/such/file.toml"], "/no/such/file.toml"),
        (["--repository", ".", "--host", "no.such.host.invalid"], "server.host is 'no.such.host.invalid'"),
        (["--repository", ".", "--host", ""], "want an address or a name of this machine such as 127.0.0.1"),
        (["--repository", ".", "--host", "192.0.2.1"], "want an address or a name of this machine such as 127.0.0.1"),
    ],
)
def test_a_wrong_option_is_one_line_that_says_what_to_do_and_exit_code_2(words: list[str], wanted: str) -> None:
    _assert_one_line(convoy("serve", *words), wanted)


def _assert_one_line(ended: subprocess.CompletedProcess[str], wanted: str) -> None:
    assert ended.returncode == 2, ended
    assert ended.stderr.count("\n") == 1, ended.stderr
    assert wanted in ended.stderr
    assert "Traceback" not in ended.stderr
    assert ended.stdout == ""


def test_a_server_told_to_use_cuda_without_it_is_not_ready_and_says_why(quick_repository: Path) -> None:
    with Server(quick_repository, ["engine.provider=cuda", "server.lame_duck_seconds=0"], wait=False) as server:
        record = server.wait_for_log("not ready: no model serves")
        assert "provider cuda was requested" in record["message"]
        status, body = server.get(f"{server.http}/readyz")
        assert status == 503
        assert "provider cuda was requested" in body
        with Client(server.grpc) as client:
            with pytest.raises(ServerError, match="provider cuda was requested") as caught:
                client.classify(grey(1), "letters")
            assert caught.value.code == grpc.StatusCode.UNAVAILABLE
            assert {model.state for model in client.models()} == {"unavailable"}


def test_no_process_of_the_server_loads_torch_or_onnx(small: Server) -> None:
    for pid in small.children().values():
        mapped = Path(f"/proc/{pid}/maps").read_text()
        assert "onnxruntime" in mapped or "uvloop" in mapped  # the control: libraries do show in this file
        assert "/torch/" not in mapped
        assert "/onnx/" not in mapped


def test_only_the_engine_loads_onnxruntime_and_only_front_ends_load_what_speaks_grpc(small: Server) -> None:
    if Server.transport == "grpcio":
        pytest.skip("it is about libnghttp2")
    skip_without("nghttp2")
    children = small.children()
    engine, front_end = (Path(f"/proc/{children[kind]}/maps").read_text() for kind in ("engine", "frontend"))
    assert "onnxruntime" in engine
    assert "nghttp2" not in engine
    assert "cygrpc" not in engine
    assert "nghttp2" in front_end
    assert "cygrpc" not in front_end
    assert "onnxruntime" not in front_end


def test_onnxruntime_is_told_to_send_no_usage_data(small: Server) -> None:
    environment = Path(f"/proc/{small.children()['engine']}/environ").read_bytes().split(b"\0")
    assert b"ORT_DISABLE_TELEMETRY=1" in environment


def held_by(pid: int) -> Iterator[str]:
    """What the descriptors of a process lead to."""
    for link in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed since they were listed, as a caller's connection is
            yield str(link.readlink())


def test_nothing_of_the_server_has_a_name_in_shared_memory(small: Server) -> None:
    with Client(small.grpc) as client:
        client.segment(np.zeros((64, 64, 3), np.uint8), "colours")
    held = [target for pid in small.children().values() for target in held_by(pid)]
    assert any("memfd:convoy" in target for target in held)  # the control
    # The counts of its metrics have, in a folder that only its user may enter.
    assert not any(target.startswith("/dev/shm") and "/convoy-metrics-" not in target for target in held)


def test_a_file_that_kills_its_loader_is_given_up_and_the_others_serve(tmp_path: Path) -> None:
    networks.save(networks.classifier(), tmp_path, "zebras")
    # Its first run takes for ever: time enough to be killed while it loads.
    file = networks.save(networks.slow(10**7), tmp_path, "deadly")
    with Server(tmp_path, [*PROMPT, "server.log_level=debug", "repository.trial_seconds=0"], wait=False) as server:
        seen = 0
        for _ in range(3):
            server.wait_for_log("model deadly version 1 is being loaded", after=seen)
            seen = len(server.log)
            os.kill(server.children()["engine"], signal.SIGKILL)
            server.wait_for_log("it was loading model deadly version 1", after=seen)
        server.wait_for_log("ready")
        with Client(server.grpc) as client:
            states = {model.model: (model.state, model.reason) for model in client.models()}
            assert states["zebras"] == ("ready", "")
            assert states["deadly"][0] == "unavailable"
            assert states["deadly"][1].startswith("3 engines died while loading it")
            assert client.classify(grey(1), "zebras").labels[0].index == _best(1)[0]
            # Another file is another matter.
            onnx.save(networks.classifier(), file.with_suffix(".part"))
            file.with_suffix(".part").rename(file)
            server.wait_for_log("model deadly version 1 serves")
            _wait_until(lambda: client.models()[0].state == "ready")
            assert client.classify(grey(1), "deadly").labels[0].index == _best(1)[0]


def test_version_is_not_given_up_because_inputs_of_another_one_end_engines_while_it_loads(tmp_path: Path) -> None:
    names = ("fatal-1", "fatal-2")
    for name in names:
        networks.save(networks.fatal(), tmp_path, name)
    networks.save(networks.slow(30), tmp_path, "slow")  # loaded last, for seconds
    settings = [*PROMPT, "server.log_level=debug", "repository.trial_seconds=0"]
    loads, blamed = "model slow version 1 is being loaded", "it was loading model slow version 1"
    with Server(tmp_path, settings) as server, Client(server.grpc, retry=False) as client:

        def loading() -> bool:
            last = [one["message"] for one in server.log if one["message"].startswith(("engine", "model slow"))][-1]
            return bool(last == loads)

        engine = server.children()["engine"]
        os.kill(engine, signal.SIGKILL)
        server.wait_for_log(f"engine {engine} ended")
        for grey_level, name in itertools.product((250, 251), names):
            _wait_until(loading)  # each ends two engines, at least the first of them as it loads
            with pytest.raises(ServerError, match="the engine died on this input"):
                client.classify(np.full((8, 8), grey_level, np.uint8), name)
        assert sum(one["message"] == blamed for one in server.log) >= 3
        server.wait_for_log("model slow version 1 serves", after=len(server.log))
        _wait_until(lambda: [model.state for model in client.models()] == ["ready"] * 3)


def test_server_is_not_ready_where_a_new_engine_finds_no_repository(tmp_path: Path) -> None:
    root = tmp_path / "repository"
    networks.save(networks.classifier(), root, "letters")
    with Server(root, [*PROMPT, "repository.poll_seconds=0.2"]) as server, Client(server.grpc) as client:
        root.rename(tmp_path / "away")
        os.kill(server.children()["engine"], signal.SIGKILL)
        server.wait_for_log("not ready: the model repository cannot be read: No such file or directory")
        status, text = server.get(f"{server.http}/readyz")
        assert status == 503
        assert "cannot be read" in text
        with pytest.raises(ServerError, match="model 'letters' is not served: the model repository cannot be read"):
            client.classify(grey(1), "letters")
        seen = len(server.log)
        (tmp_path / "away").rename(root)
        server.wait_for_log("ready", after=seen)
        assert client.classify(grey(1), "letters").labels[0].index == _best(1)[0]


def hear_hangups() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # nohup may have set another, for the tests and all that they start


def test_server_outlives_its_terminal(quick_repository: Path) -> None:
    terminal, other_end = os.openpty()

    def take_terminal() -> None:
        hear_hangups()
        os.setsid()
        fcntl.ioctl(other_end, termios.TIOCSCTTY, 0)

    with Server(quick_repository, PROMPT, before=take_terminal) as server, Client(server.grpc) as client:
        os.close(other_end)
        os.close(terminal)
        server.wait_for_log("SIGHUP")
        assert client.classify(grey(1), "letters").labels[0].index == _best(1)[0]
        assert server.stop() == 0


def test_hangup_ends_no_process(quick_repository: Path) -> None:
    with Server(quick_repository, PROMPT, before=hear_hangups) as server, Client(server.grpc) as client:
        children = server.children()
        for pid in children.values():
            os.kill(pid, signal.SIGHUP)
            os.kill(pid, signal.SIGINT)
        os.kill(server.process.pid, signal.SIGHUP)
        server.wait_for_log("SIGHUP")
        assert client.classify(grey(1), "letters").labels[0].index == _best(1)[0]
        assert server.children() == children
        assert server.stop() == 0


def test_hangup_makes_files_be_read_again_at_once(quick_repository: Path, tmp_path: Path) -> None:
    callers = tmp_path / "callers.toml"
    callers.write_text(f'[one]\nsha256 = "{"0" * 64}"\n')
    settings = [*PROMPT, f"access.callers={callers}"]
    with Server(quick_repository, settings, before=hear_hangups) as server:
        os.kill(server.process.pid, signal.SIGHUP)
        again = "callers were read again and are in use"
        _wait_until(
            lambda: {"supervisor", "frontend"} <= {one["process"] for one in server.log if one["message"] == again}
        )
        callers.write_text("not toml")
        os.kill(server.process.pid, signal.SIGHUP)
        server.wait_for_log("callers were read again, but the previous ones stay in use")


def test_server_that_nohup_started_outlives_its_terminal(quick_repository: Path) -> None:
    ignored = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # which a new program inherits
    try:
        server = Server(quick_repository, PROMPT)
    finally:
        signal.signal(signal.SIGHUP, ignored)
    with server, Client(server.grpc) as client:
        os.kill(server.process.pid, signal.SIGHUP)
        client.classify(grey(1), "letters")
        assert server.stop() == 0


def test_another_programs_folder_for_metrics_is_left_alone(quick_repository: Path, tmp_path: Path) -> None:
    names = ("PROMETHEUS_MULTIPROC_DIR", "prometheus_multiproc_dir", "OMP_NUM_THREADS", "http_proxy")
    environment = dict(zip(names, (str(tmp_path), str(tmp_path / "none"), "many", "http://127.0.0.1:9"), strict=True))
    with (
        Server(quick_repository, PROMPT, environment=environment) as server,
        Client(server.grpc) as client,
    ):
        client.classify(grey(1), "letters")
        assert server.total("convoy_images_total") == 1
        assert list(tmp_path.iterdir()) == []


def test_repository_behind_a_link_that_is_swapped_is_followed_also_by_the_next_engine(tmp_path: Path) -> None:
    for version, checkout in ((1, "one"), (2, "two")):
        networks.save(networks.classifier(), tmp_path / checkout, "letters", version)
    root, fresh = tmp_path / "repository", tmp_path / "fresh"
    root.symlink_to("one")
    with Server(root, [*PROMPT, "repository.poll_seconds=0.5"]) as server, Client(server.grpc) as client:
        assert client.classify(grey(1), "letters").version == 1
        fresh.symlink_to("two")
        fresh.replace(root)
        shutil.rmtree(tmp_path / "one")
        server.wait_for_log("model letters version 2 serves")
        seen = len(server.log)
        os.kill(server.children()["engine"], signal.SIGKILL)
        server.wait_for_log("ready", after=seen)
        # If the front end had not heard of version 2 before, the next engine serves version 1 for a moment.
        _wait_until(lambda: client.classify(grey(1), "letters").version == 2)
