import pytest

from convoy.service.address import address, target
from convoy.service.errors import BadConfig


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ("localhost", "localhost:8001"),
        ("localhost:9001", "localhost:9001"),
        ("10.0.0.7", "10.0.0.7:8001"),
        ("my-server.example.org", "my-server.example.org:8001"),
        ("http://127.0.0.1:8001", "127.0.0.1:8001"),
        ("http://localhost/", "localhost:8001"),
        ("grpc://localhost:1", "localhost:1"),
        ("::1", "[::1]:8001"),
        ("[::1]", "[::1]:8001"),
        ("[fe80::1%eth0]:9001", "[fe80::1%eth0]:9001"),
        ("dns:8001", "dns:8001"),
        ("dns:///convoy.example", "dns:///convoy.example:8001"),
        ("dns://127.0.0.1:53/convoy", "dns://127.0.0.1:53/convoy:8001"),
        ("dns:convoy", "dns:convoy:8001"),
    ],
)
def test_port_and_scheme_may_be_left_out_or_given(given: str, wanted: str) -> None:
    assert target(given) == wanted
    assert target(wanted) == wanted  # once more changes nothing


@pytest.mark.parametrize(
    "given", ["ipv4:10.0.0.1:8001,10.0.0.2:8001", "unix:/run/convoy.sock", "unix:convoy", "dns:///localhost:8001"]
)
def test_what_grpc_resolves_by_itself_stays_as_it_is(given: str) -> None:
    assert target(given) == given


@pytest.mark.parametrize(
    "given", ["", ":8001", "localhost:", "localhost:x", "localhost:0", "localhost:65536", "a b", "http://a/b", "a:1:2x"]
)
def test_other_addresses_are_refused(given: str) -> None:
    with pytest.raises(BadConfig, match=r"want HOST:PORT such as 127\.0\.0\.1:8001"):
        target(given)


def test_https_is_asked_for_by_an_option() -> None:
    with pytest.raises(BadConfig, match="want localhost:8001 and --tls"):
        target("https://localhost:8001/")


def test_port_of_the_metrics_is_another_one() -> None:
    assert address("localhost", 8002) == "localhost:8002"
    with pytest.raises(BadConfig, match=r"127\.0\.0\.1:8002"):
        address("unix:/run/x", 8002)
