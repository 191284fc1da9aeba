"""The doors of a whole server: TLS on its three ports."""

import http.client
import socket
import ssl
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from convoy.service.client.client import Client
from convoy.service.client.credentials import Credentials
from convoy.service.client.results import ServerError
from convoy.service.errors import BadConfig
from tests.service import networks
from tests.service.certificates import EXPIRED, Authority, Pair, copy
from tests.service.running import Server

Convoy = Callable[..., subprocess.CompletedProcess[str]]
TIMEOUT = 20


class Files:
    """The certificates of a server and of its callers."""

    def __init__(self, folder: Path) -> None:
        self.authority, self.stranger = Authority(folder), Authority(folder, "stranger")
        self.ca = str(self.authority.certificate)
        self.server, self.caller = self.authority.sign("server"), self.authority.sign("caller")
        self.unknown, self.expired = self.stranger.sign("caller"), self.authority.sign("expired", until=EXPIRED)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    return Files(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="module")
def letters(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository of one small network."""
    repository = tmp_path_factory.mktemp("repository")
    networks.save(networks.classifier(), repository, "letters")
    return repository


@pytest.fixture(scope="module")
def used(files: Files, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """The files that the server uses."""
    folder = tmp_path_factory.mktemp("used")
    pair = Pair(folder / "server.pem", folder / "server.key")
    copy(files.server, pair)
    return pair


@pytest.fixture(scope="module")
def mutual(files: Files, used: Pair, letters: Path) -> Iterator[Server]:
    """A server whose callers need certificates."""
    settings = [f"tls.certificate={used.certificate}", f"tls.key={used.key}", f"tls.client_ca={files.ca}"]
    with Server(letters, [*settings, "server.lame_duck_seconds=0"]) as server:
        yield server


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """`convoy health` also waits for a server that pauses."""
    monkeypatch.setattr("convoy.service.commands.server.PROBE_DEADLINE", 60.0)


def who(files: Files, pair: Pair) -> Credentials:
    return Credentials(ca=files.ca, certificate=str(pair.certificate), key=str(pair.key))


def get(url: str, files: Files, pair: Pair | None) -> str:
    """The body of a page over TLS. Raises OSError."""
    context = ssl.create_default_context(cafile=files.ca)
    if pair is not None:
        context.load_cert_chain(*pair)
    with urllib.request.urlopen(url.replace("http:", "https:"), timeout=TIMEOUT, context=context) as response:
        return str(response.read().decode())


def metrics(server: Server, files: Files) -> str:
    """The page of metrics. Nothing where the connection has been closed because other certificates are in use now."""
    try:
        return get(f"{server.metrics}/metrics", files, files.caller)
    except (OSError, http.client.HTTPException):
        return ""


def expiry(server: Server, files: Files) -> str:
    """The sample of the certificate's expiry."""
    lines = metrics(server, files).splitlines()
    return next((line for line in lines if line.startswith("convoy_tls_certificate_expiry")), "")


def test_client_of_ours_speaks_tls(mutual: Server, files: Files) -> None:
    with Client(mutual.grpc, credentials=who(files, files.caller)) as client:
        assert [model.model for model in client.models(TIMEOUT)] == ["letters"]


@pytest.mark.parametrize("kind", ["expired", "unknown"])
def test_wrong_certificate_opens_none_of_the_ports(mutual: Server, files: Files, kind: str) -> None:
    pair = getattr(files, kind)
    with Client(mutual.grpc, credentials=who(files, pair)) as client, pytest.raises(ServerError):
        client.models(TIMEOUT)
    for url in (f"{mutual.http}/readyz", f"{mutual.metrics}/metrics"):
        with pytest.raises(OSError, match=r"."):
            get(url, files, pair)
        with pytest.raises(OSError, match=r"."):
            get(url, files, None)


def test_http_ports_speak_tls(mutual: Server, files: Files) -> None:
    assert '"ready": true' in get(f"{mutual.http}/readyz", files, files.caller)
    assert expiry(mutual, files).endswith(" 2.0512224e+09")


def test_failed_handshakes_and_plain_text_are_no_errors_of_the_http_ports(mutual: Server, files: Files) -> None:
    before = len(mutual.log)
    for address in (mutual.http, mutual.metrics):
        host, _, port = address.removeprefix("http://").rpartition(":")
        with socket.create_connection((host, int(port)), TIMEOUT) as bare:
            bare.sendall(b"GET /livez HTTP/1.1\r\n\r\n")
            assert not bare.recv(100).startswith(b"HTTP")
    assert '"live": true' in get(f"{mutual.http}/livez", files, files.caller)
    assert [record for record in mutual.log[before:] if record["level"] in ("error", "raw")] == []


@pytest.mark.usefixtures("patient")
def test_commands_speak_tls(mutual: Server, files: Files, convoy: Convoy) -> None:
    options = ["--ca", files.ca, "--certificate", files.caller.certificate, "--key", files.caller.key]
    assert "letters" in convoy("models", "--server", mutual.grpc, *options).stdout
    done = convoy("health", "--server", mutual.grpc, *options)
    assert (done.returncode, done.stdout) == (0, "SERVING\n")
    assert convoy("health", "--server", mutual.grpc).returncode == 1
    metrics = mutual.metrics.removeprefix("http://")
    assert "letters 1" in convoy("top", "--metrics", metrics, "--once", *options).stdout
    assert convoy("top", "--metrics", metrics, "--once").returncode == 2


@pytest.mark.usefixtures("patient")
def test_variables_stand_for_the_options(
    mutual: Server, files: Files, convoy: Convoy, monkeypatch: pytest.MonkeyPatch
) -> None:
    caller = files.caller
    for name, value in {"CA": files.ca, "CERTIFICATE": caller.certificate, "KEY": caller.key}.items():
        monkeypatch.setenv(f"CONVOY_{name}", str(value))
    assert convoy("health", "--server", mutual.grpc).stdout == "SERVING\n"


@pytest.mark.parametrize("option", ["certificate", "key"])
def test_option_that_needs_another_is_named(convoy: Convoy, option: str) -> None:
    done = convoy("models", f"--{option}", "file")
    other = {"certificate": "key", "key": "certificate"}[option]
    assert (done.returncode, done.stderr) == (2, f"convoy models: --{option} is given without --{other}, want both\n")


def test_file_of_a_client_that_is_not_there_is_one_line(convoy: Convoy) -> None:
    done = convoy("models", "--ca", "/nowhere/ca.pem")
    assert (done.returncode, done.stderr) == (2, "convoy models: '/nowhere/ca.pem': No such file or directory\n")
    with pytest.raises(BadConfig, match="want both or neither"):
        Credentials(certificate="a")


def test_renewed_certificate_is_used_without_a_restart(mutual: Server, files: Files, used: Pair) -> None:
    after = len(mutual.log)
    copy(files.authority.sign("renewed", until="360101000000Z"), used)
    mutual.wait_for_log("certificates of the server changed and are in use", after=after)
    wait_for(lambda: expiry(mutual, files).endswith(" 2.0827584e+09"))
    after = len(mutual.log)
    used.key.write_bytes(b"broken")
    record = mutual.wait_for_log("certificates of the server changed, but the previous ones stay", after=after)
    assert record["level"] == "error"
    failed = 'convoy_reload_failed{files="tls"}'
    wait_for(lambda: f"{failed} 1.0" in metrics(mutual, files))
    with Client(mutual.grpc, credentials=who(files, files.caller)) as client:
        assert client.models(TIMEOUT)
    copy(files.server, used)
    wait_for(lambda: f"{failed} 0.0" in metrics(mutual, files))


def wait_for(true: Callable[[], bool]) -> None:
    """Until it is so."""
    deadline = time.monotonic() + TIMEOUT
    while not true():
        assert time.monotonic() < deadline
        threading.Event().wait(0.05)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (
            ["tls.certificate=/nowhere/a.pem", "tls.key=b"],
            "tls.certificate '/nowhere/a.pem': No such file or directory",
        ),
        (["tls.certificate=a"], "tls.certificate is set, but tls.key is not, want both or neither"),
    ],
)
def test_server_that_cannot_use_its_files_does_not_start(letters: Path, settings: list[str], words: str) -> None:
    command = [str(Path(sys.executable).with_name("convoy")), "serve", "--repository", str(letters), "--grpc-port", "0"]
    options = [part for setting in settings for part in ("--set", setting)]
    done = subprocess.run([*command, *options], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.endswith(words)
