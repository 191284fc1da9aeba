"""What a scrape says of whatever is at the address."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from convoy.service.client.credentials import Credentials
from convoy.service.errors import BadConfig
from convoy.service.monitor.scrape import NoAnswer, NoMetrics, Scraper
from tests.service.monitor.pages import answering


@contextmanager
def speaking(answer: bytes) -> Iterator[str]:
    """A server that sends these bytes to whoever has sent something, and closes."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            connection, _ = listening.accept()
            with connection:
                connection.recv(1 << 16)
                connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        yield f"127.0.0.1:{listening.getsockname()[1]}"
        thread.join()


def test_metrics_come_with_their_time_and_the_token_goes_along() -> None:
    with answering(['convoy_slots{kind="a"} 3\n']) as (address, tokens):
        scrape = Scraper(address, Credentials(token="convoy_x"), clock=lambda: 7.0).scrape()
    assert (scrape.at, scrape.metrics) == (7.0, {"convoy_slots": {frozenset({("kind", "a")}): 3.0}})
    assert tokens == ["Bearer convoy_x"]


def test_address_without_a_server_has_no_answer() -> None:
    with socket.socket() as taken:  # bound but not listening: nobody else gets the port meanwhile
        taken.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(NoAnswer, match=rf"no answer from {address} \(Connection refused\)"):
            Scraper(address, Credentials()).scrape()


def test_connection_that_is_closed_may_have_wanted_tls() -> None:
    with speaking(b"") as address, pytest.raises(NoAnswer, match="does the server want --tls"):
        Scraper(address, Credentials()).scrape()


@pytest.mark.parametrize(
    ("status", "body", "said"),
    [
        (401, "unknown caller", "answers 401 Unauthorized: unknown caller"),
        (404, "not found", "answers 404 Not Found: not found"),
        (200, '{"ready": true}', "without metrics of Convoy"),
        (200, "node_load1 0.5\n", "without metrics of Convoy"),
    ],
)
def test_other_pages_are_no_metrics(status: int, body: str, said: str) -> None:
    with answering([body], status) as (address, _), pytest.raises(NoMetrics, match=said):
        Scraper(address, Credentials()).scrape()


def test_port_of_another_protocol_is_no_metrics() -> None:
    with speaking(b"SSH-2.0-OpenSSH\r\n") as address, pytest.raises(NoMetrics, match="speaks no HTTP"):
        Scraper(address, Credentials()).scrape()


def test_server_without_tls_is_no_server_for_who_wants_it() -> None:
    with speaking(b"HTTP/1.0 400 Bad Request\r\n\r\n") as address, pytest.raises(NoMetrics, match="agree on no TLS"):
        Scraper(address, Credentials(tls=True)).scrape()


def test_file_that_cannot_be_used_is_named_before_anything_is_asked(tmp_path) -> None:
    (tmp_path / "ca.pem").write_text("nothing")
    for name in ("ca.pem", "absent.pem"):
        with pytest.raises(BadConfig, match=name):
            Scraper("127.0.0.1:1", Credentials(ca=str(tmp_path / name)))
