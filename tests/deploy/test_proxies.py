"""The proxies of deploy/, as processes: servers behind them drain, or are killed, and what their callers lose.

The callers are on one connection and repeat nothing, so what is not lost is the proxy's doing, or the server's. They
send at 80 % of what was answered a moment before, when 24 of them sent one call after another. A server answers 50 a
second by its settings, not by its machine, so that the load is the servers' and not the processor's.
"""

import json
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from convoy.service.client.client import Client
from convoy.service.client.credentials import Credentials
from convoy.service.client.results import ServerError
from tests.deploy.fleet import DEPLOY, LARGE, SMALL, Cell, Fleet, Proxy, changed, get, image, play, program, through
from tests.service import networks
from tests.service.certificates import Authority

PROXIES = ["envoy", "haproxy", "nginx"]
CALLS, KILLS = 2000, 9  # of the long form


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    repository = tmp_path_factory.mktemp("fleet")
    networks.save(networks.classifier(), repository, "letters")
    # nginx checks nothing, and calls whoever accepts its connection.
    with Fleet(repository, settings=["server.listen_when_loaded=true"]) as fleet:
        yield fleet


def through_a_proxy(
    name: str,
    fleet: Fleet,
    folder: Path,
    size: int,
    end: Callable[[int], None],
    *,
    calls: int = 0,
    ends: int,
    also: dict[str, str] | None = None,
) -> Cell:
    program(name)  # skips before any server starts
    with Proxy(name, fleet, folder, also) as proxy:
        cell = play(through(proxy.grpc), size, end, calls=calls, ends=ends)
    print(f"{name}, {size} bytes, {end.__name__}: {cell}")
    return cell


@pytest.mark.parametrize(("name", "drains"), [("envoy", 2), ("haproxy", 1), ("nginx", 1)])
def test_rolling_restart_behind_a_proxy_fails_no_call(fleet: Fleet, name: str, drains: int, tmp_path: Path) -> None:
    assert not through_a_proxy(name, fleet, tmp_path, SMALL, fleet.drain, ends=drains).lost


def test_killed_servers_behind_envoy_fail_no_call(fleet: Fleet, tmp_path: Path) -> None:
    assert not through_a_proxy("envoy", fleet, tmp_path, LARGE, fleet.kill, ends=1).lost


# What is taken from Envoy's file, and the calls that are lost then.
KEPT = """\
                      request_body_buffer_limit: 67108864
                      routes:
                        - match: {prefix: "/", grpc: {}}
"""
WITHOUT = {
    "a buffer": (LARGE, {KEPT: KEPT.replace("67108864", "1048576")}),
    "a retry on reset": (SMALL, {"refused-stream,reset,unavailable": "refused-stream,unavailable"}),
}


@pytest.mark.parametrize("what", ["a buffer", pytest.param("a retry on reset", marks=pytest.mark.soak)])
def test_killed_servers_behind_envoy_fail_calls_without(fleet: Fleet, what: str, tmp_path: Path) -> None:
    size, also = WITHOUT[what]
    assert through_a_proxy("envoy", fleet, tmp_path, size, fleet.kill_with_a_call, ends=1, also=also).lost


@pytest.mark.parametrize("name", PROXIES)
def test_http_and_the_page_are_reached_through_a_proxy(fleet: Fleet, name: str, tmp_path: Path) -> None:
    program(name)
    pixels = image(SMALL)
    tensor = {"name": "image", "datatype": "UINT8", "shape": [1, 8, 8, 1], "data": pixels.ravel()[:64].tolist()}
    with Proxy(name, fleet, tmp_path) as proxy:
        assert get(f"{proxy.http}/v2/health/ready")[0] == 200
        status, page = get(f"{proxy.http}/", headers={"Accept": "text/html"})
        assert (status, "<title>" in page) == (200, True)
        body = json.dumps({"inputs": [tensor]}).encode()
        status, text = get(f"{proxy.http}/v2/models/letters/infer", body, {"Content-Type": "application/json"})
        assert status == 200, text
        assert json.loads(text)["outputs"][0]["shape"] == [1, networks.CLASSES]


def lines(language: str, beginning: str) -> str:
    """The block of docs/fleets.md in this language that begins so."""
    page = (DEPLOY.parent / "docs/fleets.md").read_text()
    (found,) = [block for block in re.findall(rf"```{language}\n(.*?)```", page, re.DOTALL) if beginning in block[:80]]
    return str(found)


@pytest.mark.parametrize("name", PROXIES)
def test_lines_of_the_page_encrypt_the_way_to_a_proxy(fleet: Fleet, name: str, tmp_path: Path) -> None:
    program(name)
    authority = Authority(tmp_path)
    pair = authority.sign("server")
    both = tmp_path / "both.pem"
    both.write_bytes(pair.certificate.read_bytes() + pair.key.read_bytes())
    if name == "envoy":
        filters = "filters:\n            - name: envoy.filters.network.http_connection_manager\n"
        type_ = "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"
        begin = f'              typed_config:\n                "@type": type.googleapis.com/{type_}\n'
        begin = f"{filters}{begin}                stat_prefix: grpc\n"
        also = {begin: f"{lines('yaml', 'transport_socket').strip()}\n          {begin}"}
    elif name == "haproxy":
        backend = "\n    default_backend grpc\n"
        also = {f" proto h2{backend}": lines("haproxy", "bind").partition("0.0.0.0:8001")[2].rstrip() + backend}
    else:
        also = {" http2;\n": lines("nginx", "listen").partition("listen 8001")[2]}
    files = {"/secrets/server.pem": pair.certificate, "/secrets/server.key": pair.key, "/secrets/both.pem": both}
    for old, file in files.items():
        also = {before: after.replace(old, str(file)) for before, after in also.items()}
    with Proxy(name, fleet, tmp_path, also) as proxy:
        with Client(proxy.grpc, credentials=Credentials(ca=str(authority.certificate))) as client:
            client.classify(image(SMALL), "letters", deadline=30)
        with Client(proxy.grpc, retry=False) as client, pytest.raises(ServerError):
            client.classify(image(SMALL), "letters", deadline=30)


def test_health_check_of_envoys_container_asks_envoy(fleet: Fleet, tmp_path: Path) -> None:
    compose = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    command = compose["services"]["envoy"]["healthcheck"]["test"][1:]
    with Proxy("envoy", fleet, tmp_path) as proxy:
        words = [
            changed(word, {"9901": proxy.admin.rpartition(":")[2]}) if "9901" in word else word for word in command
        ]
        assert subprocess.run(words, timeout=60, check=False).returncode == 0
    assert subprocess.run(words, stderr=subprocess.DEVNULL, timeout=60, check=False).returncode != 0


@pytest.mark.soak
@pytest.mark.timeout(900)
@pytest.mark.parametrize("size", [SMALL, LARGE])
@pytest.mark.parametrize("name", PROXIES)
def test_two_thousand_calls_survive_rolling_restarts(fleet: Fleet, name: str, size: int, tmp_path: Path) -> None:
    cell = through_a_proxy(name, fleet, tmp_path, size, fleet.drain, calls=CALLS, ends=3)
    assert cell.sent >= CALLS
    assert not cell.lost


@pytest.mark.soak
@pytest.mark.timeout(900)
@pytest.mark.parametrize("size", [SMALL, LARGE])
def test_two_thousand_calls_survive_kills_behind_envoy(fleet: Fleet, size: int, tmp_path: Path) -> None:
    cell = through_a_proxy("envoy", fleet, tmp_path, size, fleet.kill, calls=CALLS, ends=KILLS)
    assert cell.sent >= CALLS
    assert not cell.lost


@pytest.mark.soak
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("name", "size"), [("haproxy", LARGE), ("nginx", SMALL), ("nginx", LARGE)])
def test_kills_that_a_proxy_does_not_hide(fleet: Fleet, name: str, size: int, tmp_path: Path) -> None:
    """docs/fleets.md says so. A proxy that no longer loses them deserves another sentence there."""
    assert through_a_proxy(name, fleet, tmp_path, size, fleet.kill, calls=CALLS, ends=KILLS).lost


@pytest.mark.soak
@pytest.mark.timeout(900)
def test_kills_that_haproxy_hides(fleet: Fleet, tmp_path: Path) -> None:
    """Requests that fit its buffer."""
    assert not through_a_proxy("haproxy", fleet, tmp_path, SMALL, fleet.kill, calls=CALLS, ends=KILLS).lost
