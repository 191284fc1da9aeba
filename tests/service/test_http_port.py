"""The HTTP port through the life of a server: who may come in, limits, drains, and processes that die."""

import http.client
import json
import os
import signal
import ssl
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

from convoy.service.commands.token import line
from tests.service import networks
from tests.service.running import Server
from tests.service.test_doors import Files
from tests.service.test_http_api import IMAGE, ask, connected, refusal
from tests.service.test_overload import PATIENT, standing

BODY = json.dumps({"inputs": [IMAGE]}).encode()
TOKENS = {name: f"convoy_{name}_{'x' * 40}" for name in ("good", "other")}
STALL = 4.0  # seconds; longer than the client or the server may pause


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("repository")
    networks.save(networks.classifier(), root, "letters")
    return root


@pytest.fixture(scope="module")
def guarded(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that knows its callers, has small limits, and lets pages of one other site ask."""
    callers = tmp_path_factory.mktemp("callers") / "callers.toml"
    callers.write_text(
        "\n".join(
            [line("good", TOKENS["good"], ["letters"], [], None), line("other", TOKENS["other"], [], ["admin"], None)]
        )
    )
    settings = [
        f"access.callers='{callers}'",
        'access.public=["probes"]',
        'server.cors_origins=["https://example.org"]',
        "limits.max_message_bytes=100000",
        f"limits.stall_seconds={STALL}",
        "server.lame_duck_seconds=0",
    ]
    with Server(repository, settings) as server:
        yield server


def bearer(name: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {TOKENS[name]}"}


def wait_for(true: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        threading.Event().wait(0.05)


def status(url: str) -> int:
    try:
        return ask(url)[0]
    except OSError:
        return 0


@pytest.mark.parametrize("path", ["/v2", "/v2/health/ready", "/v2/models/letters", "/nothing", "/v1/models"])
def test_strangers_learn_nothing(guarded: Server, path: str) -> None:
    code, headers, body = ask(guarded.http + path)
    assert (code, headers["www-authenticate"]) == (401, "Bearer")
    assert json.loads(body)["reason"] == "UNKNOWN_CALLER"


def test_probes_are_public_where_that_is_set(guarded: Server) -> None:
    assert ask(f"{guarded.http}/livez")[0] == ask(f"{guarded.http}/readyz")[0] == 200


def test_callers_may_do_what_they_may_over_grpc(guarded: Server) -> None:
    infer = f"{guarded.http}/v2/models/letters/infer"
    assert ask(infer, BODY, **bearer("good"))[0] == 200
    assert refusal(ask(infer, BODY, **bearer("other"))) == (403, "NOT_PERMITTED")
    assert refusal(ask(f"{guarded.http}/v2/models/nosuch/infer", BODY, **bearer("good"))) == (403, "NOT_PERMITTED")
    assert json.loads(ask(f"{guarded.http}/v2/models", **bearer("good"))[2]) == {"models": ["letters"]}
    load = f"{guarded.http}/v2/repository/models/letters/load"
    assert refusal(ask(load, b"", **bearer("good"))) == (403, "NOT_PERMITTED")
    assert refusal(ask(load, b"", **bearer("other"))) == (501, "NOT_OFFERED")


def test_pages_of_other_sites_ask_only_where_they_are_let(guarded: Server) -> None:
    infer = f"{guarded.http}/v2/models/letters/infer"
    code, headers, _ = ask(infer, BODY, Origin="https://example.org", **bearer("good"))
    assert (code, headers["access-control-allow-origin"]) == (200, "https://example.org")
    assert refusal(ask(infer, BODY, Origin="https://evil.test", **bearer("good"))) == (403, "NOT_PERMITTED")
    assert refusal(ask(infer, BODY, Origin="null", **bearer("good"))) == (403, "NOT_PERMITTED")
    assert ask(infer, BODY, Origin=guarded.http, **bearer("good"))[0] == 200
    preflight = urllib.request.Request(infer, method="OPTIONS")
    preflight.add_header("Origin", "https://example.org")
    preflight.add_header("Access-Control-Request-Method", "POST")
    preflight.add_header("Access-Control-Request-Headers", "authorization")
    with urllib.request.urlopen(preflight, timeout=10) as answer:
        assert answer.headers["access-control-allow-origin"] == "https://example.org"


def test_body_over_the_limit_is_refused_before_it_is_read(guarded: Server) -> None:
    infer = f"{guarded.http}/v2/models/letters/infer"
    assert refusal(ask(infer, bytes(100_001), **bearer("good"))) == (413, "TOO_LONG")
    host = guarded.http.removeprefix("http://")
    connection = http.client.HTTPConnection(host, timeout=10)
    chunks = iter([bytes(10_000)] * 30)
    with suppress(ConnectionError):  # it is answered before all is sent
        connection.request("POST", "/v2/models/letters/infer", chunks, bearer("good"), encode_chunked=True)
    assert connection.getresponse().status == 413
    connection.close()


def test_body_that_stalls_ends_its_connection_and_one_that_goes_on_does_not(guarded: Server) -> None:
    head = b"POST /v2/models/letters/infer HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n" % len(BODY)
    head += b"authorization: " + bearer("good")["Authorization"].encode() + b"\r\n\r\n"
    pieces = [BODY[place : place + 40] for place in range(0, len(BODY), 40)]
    with connected(guarded) as stalled, connected(guarded) as slow:
        stalled.sendall(head + BODY[:10])
        slow.sendall(head)
        for piece in pieces:
            threading.Event().wait(1.2 * STALL / len(pieces))  # more than the limit in all
            slow.sendall(piece)
        assert stalled.recv(100) == b""
        assert slow.recv(100).startswith(b"HTTP/1.1 200 ")


def test_without_the_api_the_port_has_probes_alone(repository: Path) -> None:
    with Server(repository, ["server.http_api=false", "server.lame_duck_seconds=0"]) as server:
        assert ask(f"{server.http}/livez")[0] == ask(f"{server.http}/readyz")[0] == 200
        assert ask(f"{server.http}/v2")[0] == ask(f"{server.http}/")[0] == 404


def test_certificates_of_clients_open_the_port(repository: Path, tmp_path: Path) -> None:
    files = Files(tmp_path)
    settings = [
        f"tls.certificate='{files.server.certificate}'",
        f"tls.key='{files.server.key}'",
        f"tls.client_ca='{files.ca}'",
        'access.public=["probes"]',
        "server.lame_duck_seconds=0",
    ]
    with Server(repository, settings) as server:
        url = server.http.replace("http://127.0.0.1", "https://localhost")
        stranger = ssl.create_default_context(cafile=files.ca)
        caller = ssl.create_default_context(cafile=files.ca)
        caller.load_cert_chain(files.caller.certificate, files.caller.key)
        with urllib.request.urlopen(f"{url}/readyz", context=stranger, timeout=10) as answer:
            assert answer.status == 200
        with pytest.raises(urllib.error.HTTPError, match="401"):
            urllib.request.urlopen(f"{url}/v2", context=stranger, timeout=10)
        with urllib.request.urlopen(f"{url}/v2", context=caller, timeout=10) as answer:
            assert answer.status == 200


def test_port_answers_through_the_death_of_front_ends(repository: Path) -> None:
    with Server(repository, ["server.lame_duck_seconds=0", "server.frontends=2"]) as server:
        infer = f"{server.http}/v2/models/letters/infer"
        os.kill(server.processes("frontend")[0], signal.SIGKILL)
        answers = [ask(infer, BODY)[0] for _ in range(20)]
        assert answers == [200] * 20
        assert status(f"{server.http}/readyz") in (200, 503)
        wait_for(lambda: status(f"{server.http}/readyz") == 200)
        for process in server.processes("frontend"):
            os.kill(process, signal.SIGKILL)
        # Nobody but the supervisor is left, which says so.
        wait_for(lambda: status(f"{server.http}/livez") == 200)
        wait_for(lambda: status(f"{server.http}/readyz") == 200)
        assert ask(infer, BODY)[0] == 200


def test_front_end_that_does_not_know_the_models_yet_leaves_callers_to_the_others(repository: Path) -> None:
    settings = ["server.lame_duck_seconds=0", "server.frontends=2", PATIENT]
    with Server(repository, settings) as server, standing(server):  # nobody says which models there are
        os.kill(server.processes("frontend")[0], signal.SIGKILL)
        killed = time.monotonic()
        answers = []
        while time.monotonic() < killed + 5:
            answers.append(status(f"{server.http}/v2/models/letters"))
            if time.monotonic() > killed + 9:
                answers.pop()  # after ten seconds it waits no longer
        assert set(answers) == {200}


def test_server_without_its_supervisor_counts_as_dead(repository: Path) -> None:
    with Server(repository, ["server.lame_duck_seconds=0"]) as server:
        os.kill(server.process.pid, signal.SIGSTOP)
        try:
            stopped = time.monotonic()
            assert status(f"{server.http}/livez") == 200 or time.monotonic() - stopped > 2  # not at once
            wait_for(lambda: status(f"{server.http}/livez") == 503)
            assert status(f"{server.http}/readyz") == 503
            assert ask(f"{server.http}/v2/models/letters/infer", BODY)[0] == 200
        finally:
            os.kill(server.process.pid, signal.SIGCONT)
        wait_for(lambda: status(f"{server.http}/readyz") == 200)


def test_drain_answers_what_has_arrived_and_closes_connections(repository: Path) -> None:
    # Long enough for a new request, even after a pause.
    settings = ["server.lame_duck_seconds=6", PATIENT]
    with Server(repository, settings) as server, ThreadPoolExecutor(8) as threads:
        idle = http.client.HTTPConnection(server.http.removeprefix("http://"), timeout=30)
        idle.request("GET", "/livez")
        idle.getresponse().read()
        url = f"{server.http}/v2/models/letters/infer"
        with standing(server):  # so that nothing is answered before the drain begins
            calls = [threads.submit(ask, url, BODY) for _ in range(8)]
            wait_for(lambda: server.total("convoy_requests_in_flight") == 8)
            server.process.send_signal(signal.SIGTERM)
            wait_for(lambda: status(f"{server.http}/readyz") == 503)
        assert json.loads(ask(f"{server.http}/readyz")[2])["reason"] == "draining"
        assert ask(url, BODY)[0] == 200  # callers have not noticed yet
        assert [call.result()[0] for call in calls] == [200] * 8
        assert server.process.wait(60) == 0
        assert idle.sock is None or idle.sock.recv(1) == b""
        idle.close()
