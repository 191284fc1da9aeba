"""TLS of both transports: whose certificates are accepted, and what happens when the files change."""

import asyncio
import socket
import ssl
import warnings
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from convoy.service import tls
from convoy.service.config import TlsConfig
from convoy.service.followed import Followed
from tests.service import certificates
from tests.service.certificates import EXPIRED, Authority, Pair, copy
from tests.service.frontend.transport.serving import SECONDS, Serving


class Files:
    """The certificates of a server, of its callers, and of those whom it does not know."""

    def __init__(self, folder: Path) -> None:
        self.authority, self.stranger = Authority(folder), Authority(folder, "stranger")
        self.server, self.caller = self.authority.sign("server"), self.authority.sign("caller")
        self.expired = self.authority.sign("expired", until=EXPIRED)
        self.unknown = self.stranger.sign("caller")
        self.own = certificates.self_signed(folder, "caller")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    return Files(tmp_path_factory.mktemp("certificates"))


@pytest.fixture
def used(files: Files, tmp_path: Path) -> TlsConfig:
    """The settings of a server whose files a test may change."""
    pair = Pair(tmp_path / "server.pem", tmp_path / "server.key")
    copy(files.server, pair)
    authorities = tmp_path / "authorities.pem"
    authorities.write_bytes(files.authority.certificate.read_bytes() + files.stranger.certificate.read_bytes())
    return TlsConfig(certificate=str(pair.certificate), key=str(pair.key), client_ca=str(authorities))


@pytest.fixture
def plain(kind: str, files: Files) -> Iterator[Serving]:
    """A server that asks for no certificate."""
    followed = tls.follow(TlsConfig(certificate=str(files.server.certificate), key=str(files.server.key)), "h2")
    with Serving(kind, tls=followed) as serving:
        yield serving


@pytest.fixture
def mutual(kind: str, files: Files) -> Iterator[Serving]:
    """A server that asks for a certificate of one authority."""
    server, ca = files.server, str(files.authority.certificate)
    followed = tls.follow(TlsConfig(certificate=str(server.certificate), key=str(server.key), client_ca=ca), "h2")
    with Serving(kind, tls=followed) as serving:
        yield serving


def channel(
    serving: Serving, files: Files, pair: Pair | None = None, authority: Authority | None = None
) -> grpc.Channel:
    ca = (authority or files.authority).certificate.read_bytes()
    own = (pair.key.read_bytes(), pair.certificate.read_bytes()) if pair is not None else (None, None)
    options = [("grpc.use_local_subchannel_pool", 1)]
    return grpc.secure_channel(serving.target, grpc.ssl_channel_credentials(ca, *own), options)


def call(open_channel: grpc.Channel, data: bytes = b"hello") -> str | bytes:
    """The answer of Echo, or the name of the status."""
    try:
        return bytes(open_channel.unary_unary("/test.Test/Echo")(data, timeout=SECONDS))
    except grpc.RpcError as error:
        return str(error.code().name)


def echo(serving: Serving, files: Files, pair: Pair | None = None, authority: Authority | None = None) -> str | bytes:
    """The same on a connection of its own."""
    with channel(serving, files, pair, authority) as opened:
        return call(opened)


def test_calls_and_streams_go_over_tls(plain: Serving, files: Files) -> None:
    with channel(plain, files) as opened:
        assert call(opened, bytes(1 << 20)) == bytes(1 << 20)
        answers = opened.stream_stream("/test.Test/EchoStream")(iter([b"a", bytes(100_000), b"c"]), timeout=SECONDS)
        assert [len(answer) for answer in answers] == [1, 100_000, 1]


def test_caller_refuses_a_server_that_another_authority_has_signed(plain: Serving, files: Files) -> None:
    assert echo(plain, files, authority=files.stranger) == "UNAVAILABLE"
    assert echo(plain, files) == b"hello"


def test_caller_without_tls_is_refused(plain: Serving) -> None:
    with grpc.insecure_channel(plain.target) as opened:
        assert call(opened) == "UNAVAILABLE"


def test_caller_needs_a_valid_certificate_of_a_known_authority(mutual: Serving, files: Files) -> None:
    assert echo(mutual, files, files.caller) == b"hello"
    for pair in (None, files.expired, files.unknown, files.own):
        assert echo(mutual, files, pair) == "UNAVAILABLE"
    assert mutual.methods.counts["Echo begun"] == 1


def test_old_versions_are_refused(plain: Serving, files: Files) -> None:
    for version, accepted in ((ssl.TLSVersion.TLSv1_1, False), (ssl.TLSVersion.TLSv1_2, True)):
        context = ssl.create_default_context(cafile=str(files.authority.certificate))
        context.set_ciphers("ALL:@SECLEVEL=0")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            context.minimum_version = ssl.TLSVersion.TLSv1
            context.maximum_version = version
        context.set_alpn_protocols(["h2"])
        with socket.create_connection(plain.address, SECONDS) as bare:
            try:
                with context.wrap_socket(bare, server_hostname="localhost") as secured:
                    assert accepted
                    assert secured.selected_alpn_protocol() == "h2"
            except (ssl.SSLError, ConnectionError):
                assert not accepted


def test_http_2_needs_to_be_agreed_on(plain: Serving, files: Files) -> None:
    context = ssl.create_default_context(cafile=str(files.authority.certificate))
    try:
        with (
            socket.create_connection(plain.address, SECONDS) as bare,
            context.wrap_socket(bare, server_hostname="localhost") as secured,
        ):
            assert secured.recv(100) == b""
    except (ssl.SSLError, ConnectionError):
        assert plain.kind == "grpcio"  # which ends the connection without a goodbye


def renew(serving: Serving, followed: Followed[tls.Tls]) -> bool:
    """What the front end does once a second: a change is found by the second look."""
    changed = any(serving.do(followed.poll) for _ in range(2))
    if changed:
        serving.do(serving._transport.renew)
    return changed


def test_new_certificate_is_used_from_the_next_connection_on(kind: str, files: Files, used: TlsConfig) -> None:
    followed = tls.follow(used, "h2")
    assert followed is not None
    with Serving(kind, tls=followed) as serving, channel(serving, files, files.caller) as before:
        assert call(before) == b"hello"
        copy(files.unknown, Pair(Path(used.certificate), Path(used.key)))
        assert renew(serving, followed)
        assert echo(serving, files, files.caller) == "UNAVAILABLE"
        assert echo(serving, files, files.caller, files.stranger) == b"hello"
        assert call(before) == b"hello"  # an open connection goes on


@pytest.mark.parametrize("broken", ["expired", "mismatch", "junk", "gone"])
def test_pair_that_cannot_be_used_leaves_the_one_before(kind: str, files: Files, used: TlsConfig, broken: str) -> None:
    followed = tls.follow(used, "h2")
    assert followed is not None
    place = Pair(Path(used.certificate), Path(used.key))
    with Serving(kind, tls=followed) as serving:
        match broken:
            case "expired":
                copy(files.expired, place)
            case "mismatch":
                copy(Pair(files.unknown.certificate, files.caller.key), place)
            case "junk":
                place.key.write_bytes(b"junk")
            case "gone":
                place.certificate.unlink()
        assert not renew(serving, followed)
        assert followed.failed
        assert echo(serving, files, files.caller) == b"hello"
        copy(files.unknown, place)
        assert renew(serving, followed)
        assert not followed.failed
        assert echo(serving, files, files.caller, files.stranger) == b"hello"


def test_authority_that_is_removed_takes_its_callers_along(kind: str, files: Files, used: TlsConfig) -> None:
    followed = tls.follow(used, "h2")
    assert followed is not None
    with Serving(kind, tls=followed) as serving:
        assert echo(serving, files, files.unknown) == b"hello"
        Path(used.client_ca).write_bytes(files.authority.certificate.read_bytes())
        assert renew(serving, followed)
        assert echo(serving, files, files.unknown) == "UNAVAILABLE"
        assert echo(serving, files, files.caller) == b"hello"


def test_connection_of_a_removed_authority_ends(files: Files, used: TlsConfig) -> None:
    followed = tls.follow(used, "h2")
    assert followed is not None
    with Serving("nghttp2", tls=followed) as serving, channel(serving, files, files.unknown) as opened:
        assert call(opened) == b"hello"
        Path(used.client_ca).write_bytes(files.authority.certificate.read_bytes())
        assert renew(serving, followed)
        serving.do(lambda: asyncio.wait_for(serving.hub.emptied.wait(), SECONDS))
        assert call(opened) == "UNAVAILABLE"


def test_session_of_a_removed_authority_is_not_resumed(files: Files, used: TlsConfig) -> None:
    followed = tls.follow(used, "h2")
    assert followed is not None
    context = ssl.create_default_context(cafile=str(files.authority.certificate))
    context.load_cert_chain(files.unknown.certificate, files.unknown.key)
    context.maximum_version = ssl.TLSVersion.TLSv1_2  # whose handshake ends with the session
    context.set_alpn_protocols(["h2"])
    with Serving("nghttp2", tls=followed) as serving:

        def connect(session: ssl.SSLSession | None) -> tuple[ssl.SSLSession | None, bool | None]:
            with (
                socket.create_connection(serving.address, SECONDS) as bare,
                context.wrap_socket(bare, server_hostname="localhost", session=session) as secured,
            ):
                return secured.session, secured.session_reused

        session, _ = connect(None)
        assert connect(session)[1]  # as long as nothing has changed
        Path(used.client_ca).write_bytes(files.authority.certificate.read_bytes())
        assert renew(serving, followed)
        with pytest.raises((ssl.SSLError, ConnectionError)):
            connect(session)
