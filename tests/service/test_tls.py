"""What the files of TLS must contain, and what is read from them."""

import ssl
from pathlib import Path

import pytest

from convoy.service import tls
from convoy.service.config import TlsConfig, load
from convoy.service.errors import BadConfig
from tests.service import certificates
from tests.service.certificates import EXPIRED, Authority, Pair


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="module")
def pair(authority: Authority) -> Pair:
    return authority.sign("server")


def read(certificate: Path | str, key: Path | str, client_ca: Path | str = "") -> tls.Tls:
    followed = tls.follow(TlsConfig(certificate=str(certificate), key=str(key), client_ca=str(client_ca)), "h2")
    assert followed is not None
    return followed.value


def refusal(certificate: Path | str, key: Path | str, client_ca: Path | str = "") -> str:
    with pytest.raises(BadConfig) as caught:
        read(certificate, key, client_ca)
    assert "\n" not in caught.value.message
    return caught.value.message


def test_without_settings_nothing_is_encrypted() -> None:
    assert tls.follow(TlsConfig(), "h2") is None


def test_modern_versions_and_ciphers_alone(pair: Pair) -> None:
    context = read(*pair).context
    assert context.minimum_version == ssl.TLSVersion.TLSv1_2
    names = [cipher["name"] for cipher in context.get_ciphers()]
    assert all(name.startswith(("TLS_", "ECDHE-")) for name in names)
    assert not any(word in name for name in names for word in ("CBC", "SHA1", "RC4", "NULL"))


def test_clients_need_a_certificate_only_if_authorities_are_named(authority: Authority, pair: Pair) -> None:
    assert read(*pair).context.verify_mode == ssl.CERT_NONE
    assert read(*pair, authority.certificate).context.verify_mode == ssl.CERT_REQUIRED


def test_expiry_is_read_from_the_certificate(authority: Authority, pair: Pair) -> None:
    assert read(*pair).expires == 2051222400  # 2035-01-01
    assert tls.expiry(authority.sign("old", until=EXPIRED).certificate.read_bytes()) == 1609459200  # 2021-01-01
    # From 2050 on, dates are of another kind.
    assert tls.expiry(authority.sign("far", until="20600101000000Z").certificate.read_bytes()) == 2840140800


@pytest.mark.parametrize(
    "text",
    [b"", b"text", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----",
     b"-----BEGIN CERTIFICATE-----\n!\n-----END CERTIFICATE-----"],
)  # fmt: skip
def test_what_is_no_certificate_has_no_expiry(text: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        tls.expiry(text)


def test_truncated_certificate_has_no_expiry_or_its_own(pair: Pair) -> None:
    whole = ssl.PEM_cert_to_DER_cert(pair.certificate.read_text())
    for size in range(0, len(whole), 7):
        try:
            found = tls.expiry(ssl.DER_cert_to_PEM_cert(whole[:size]).encode())
        except ValueError:
            continue
        assert found == 2051222400


def test_certificate_that_has_expired_is_refused(authority: Authority) -> None:
    old = authority.sign("expired", until=EXPIRED)
    assert refusal(*old).endswith("expired.pem' expired on 2021-01-01 00:00:00 UTC, want a valid one")


def test_what_cannot_be_used_is_named(authority: Authority, pair: Pair, tmp_path: Path) -> None:
    other, junk, empty = authority.sign("other"), tmp_path / "junk", tmp_path / "empty"
    junk.write_text("no certificate")
    empty.touch()
    certificate, key = pair
    assert refusal("/nowhere/a.pem", key) == "tls.certificate '/nowhere/a.pem': No such file or directory"
    assert refusal(certificate, "/nowhere/a.key") == "tls.key '/nowhere/a.key': No such file or directory"
    assert refusal(junk, key) == f"tls.certificate '{junk}' has no certificate in PEM"
    assert refusal(key, key) == f"tls.certificate '{key}' has no certificate in PEM"
    assert refusal(certificate, junk).startswith(f"tls.key '{junk}' with tls.certificate")
    assert refusal(certificate, other.key).startswith(f"tls.key '{other.key}' does not belong to tls.certificate")
    locked = certificates.encrypted(pair)
    assert refusal(certificate, locked) == f"tls.key '{locked}' is encrypted, want a key without a password"
    assert refusal(certificate, key, junk) == f"tls.client_ca '{junk}' has no certificates in PEM"
    assert refusal(certificate, key, empty) == f"tls.client_ca '{empty}' is empty, want certificates in PEM"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["tls.certificate=a"], "tls.certificate is set, but tls.key is not, want both or neither"),
        (["tls.key=a"], "tls.key is set, but tls.certificate is not, want both or neither"),
        (["tls.client_ca=a"], "tls.client_ca is set, but tls.certificate and tls.key are not"),
    ],
)
def test_settings_that_do_not_go_together_are_named(settings: list[str], message: str) -> None:
    with pytest.raises(BadConfig) as caught:
        load(None, settings)
    assert caught.value.message == f"configuration: {message}"


def test_names_of_a_certificate_are_no_addresses() -> None:
    found = {
        "subject": ((("organizationName", "robots"),), (("commonName", "arm"),)),
        "subjectAltName": (("DNS", "arm.local"), ("IP Address", "10.0.0.1"), ("URI", "spiffe://a/arm"), ("DNS", "arm")),
    }
    assert tls.names(found) == ("spiffe://a/arm", "arm.local", "arm")
    assert tls.names(None) == tls.names({}) == ()
