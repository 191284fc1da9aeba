"""TLS of a server: the settings of its ports, from PEM files."""

import re
import ssl
from calendar import timegm
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from time import strptime
from typing import Any, NamedTuple

from convoy.service.config import TlsConfig
from convoy.service.errors import BadConfig
from convoy.service.followed import Followed, read_file

# TLS 1.2 with what RFC 9113 lets HTTP/2 use: each connection has a key of its own. TLS 1.3 has nothing else.
_CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20"
_PEM = re.compile(rb"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)
_UTC_TIME, _GENERALIZED_TIME = 0x17, 0x18
_VERSION = 0xA0


class Tls(NamedTuple):
    """What the files contain, for the two libraries that speak TLS."""

    context: ssl.SSLContext
    lenient: ssl.SSLContext  # accepts clients without a certificate, even if there is `client_ca`
    certificate: bytes
    key: bytes
    client_ca: bytes  # empty: clients need no certificate
    expires: float  # of the certificate, seconds since the epoch


def follow(config: TlsConfig, protocol: str) -> Followed[Tls] | None:
    """The TLS of a port for one protocol of ALPN; None if it is not set. Raises BadConfig."""
    if not config.certificate:
        return None
    files = [file for file in (config.certificate, config.key, config.client_ca) if file]
    return Followed("certificates of the server", files, lambda: _read(config, protocol))


def names(certificate: Mapping[str, Any] | None) -> tuple[str, ...]:
    """The names in a verified certificate, as `SSLSocket.getpeercert` returns it: URIs, host names, common names.

    Addresses are not among them: they say where somebody is, not who.
    """
    if not certificate:
        return ()
    alternative = certificate.get("subjectAltName", ())
    uris, hosts = ([name for kind, name in alternative if kind == wanted] for wanted in ("URI", "DNS"))
    common = [value for part in certificate.get("subject", ()) for key, value in part if key == "commonName"]
    return tuple(dict.fromkeys([*uris, *hosts, *common]))


def expiry(certificate: bytes) -> float:
    """When the first certificate of a PEM file expires, in seconds since the epoch. Raises ValueError."""
    found = _PEM.search(certificate)
    if found is None:
        raise ValueError("no certificate")
    try:
        # RFC 5280: a Certificate contains a TBSCertificate: version, serial number, signature, issuer, validity, ...
        whole = _parts(ssl.PEM_cert_to_DER_cert(found[0].decode("ascii")))[0][1]
        fields = _parts(_parts(whole)[0][1])
        validity = fields[4 if fields[0][0] == _VERSION else 3][1]
        kind, text = _parts(validity)[1]
        return _seconds(kind, text.decode("ascii"))
    except IndexError:
        raise ValueError("no certificate") from None


def _read(config: TlsConfig, protocol: str) -> Tls:
    certificate = read_file("tls.certificate", config.certificate)
    key = read_file("tls.key", config.key)
    client_ca = read_file("tls.client_ca", config.client_ca) if config.client_ca else b""
    try:
        expires = expiry(certificate)
    except ValueError:
        raise BadConfig(f"tls.certificate {config.certificate!r} has no certificate in PEM") from None
    context, lenient = _context(config, protocol), _context(config, protocol)
    if expires <= datetime.now(UTC).timestamp():
        when = datetime.fromtimestamp(expires, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
        raise BadConfig(f"tls.certificate {config.certificate!r} expired on {when}, want a valid one")
    if client_ca:
        _trust(context, client_ca, ssl.CERT_REQUIRED, config)
        _trust(lenient, client_ca, ssl.CERT_OPTIONAL, config)
    elif config.client_ca:
        raise BadConfig(f"tls.client_ca {config.client_ca!r} is empty, want certificates in PEM")
    return Tls(context, lenient, certificate, key, client_ca, expires)


def _context(config: TlsConfig, protocol: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(_CIPHERS)
    context.options |= ssl.OP_NO_RENEGOTIATION
    context.set_alpn_protocols([protocol])
    try:
        context.load_cert_chain(config.certificate, config.key, password=_refuse_password)
    except ssl.SSLError as error:
        raise BadConfig(_reason(error, config)) from None
    except OSError as error:
        raise BadConfig(f"tls.key {config.key!r}: {error.strerror}") from None
    return context


def _trust(context: ssl.SSLContext, client_ca: bytes, mode: ssl.VerifyMode, config: TlsConfig) -> None:
    try:
        context.load_verify_locations(cadata=client_ca.decode("ascii"))
    except (ssl.SSLError, ValueError):
        raise BadConfig(f"tls.client_ca {config.client_ca!r} has no certificates in PEM") from None
    context.verify_mode = mode


class _Encrypted(ssl.SSLError):
    """A key that needs a password."""


def _refuse_password() -> str:
    # Without it, OpenSSL would ask for a password on the terminal.
    raise _Encrypted


def _reason(error: ssl.SSLError, config: TlsConfig) -> str:
    if isinstance(error, _Encrypted):
        return f"tls.key {config.key!r} is encrypted, want a key without a password"
    if error.reason == "KEY_VALUES_MISMATCH":
        return f"tls.key {config.key!r} does not belong to tls.certificate, want its private key"
    return f"tls.key {config.key!r} with tls.certificate {config.certificate!r}: want a private key in PEM"


def _parts(data: bytes) -> Sequence[tuple[int, bytes]]:
    """The elements of DER, one after the other: tag and contents of each."""
    found, at = [], 0
    while at < len(data):
        tag, size = data[at], data[at + 1]
        at += 2
        if size & 0x80:
            count = size & 0x7F
            size = int.from_bytes(data[at : at + count], "big")
            at += count
        found.append((tag, data[at : at + size]))
        at += size
    return found


def _seconds(kind: int, text: str) -> float:
    if kind == _UTC_TIME:
        text = ("19" if text >= "50" else "20") + text  # RFC 5280, section 4.1.2.5.1
    elif kind != _GENERALIZED_TIME:
        raise ValueError("no time")
    return timegm(strptime(text, "%Y%m%d%H%M%SZ"))
