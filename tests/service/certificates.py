"""Certificates for tests, made by the `openssl` command."""

import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest

_KEY = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
_CONFIGURATION = """
[ca]
default_ca = here
[here]
database = {folder}/index
serial = {folder}/serial
new_certs_dir = {folder}
default_md = sha256
policy = any
unique_subject = no
copy_extensions = copy
[any]
commonName = supplied
"""


class Pair(NamedTuple):
    """A certificate and its private key, as files."""

    certificate: Path
    key: Path


class Authority:
    """Signs certificates; its own is the file `certificate`."""

    def __init__(self, folder: Path, name: str = "authority") -> None:
        self._folder = folder / name
        self._folder.mkdir(parents=True)
        self.certificate, self._key = self._folder / "ca.pem", self._folder / "ca.key"
        (self._folder / "index").touch()
        (self._folder / "serial").write_text("1000\n")
        (self._folder / "configuration").write_text(_CONFIGURATION.format(folder=self._folder))
        _openssl("req", "-x509", *_KEY, "-days", "2", "-subj", f"/CN={name}", "-keyout", self._key, "-out",
                 self.certificate)  # fmt: skip

    def sign(self, name: str, names: str = "DNS:localhost,IP:127.0.0.1", until: str = "350101000000Z") -> Pair:
        """A certificate with a common name and alternative ones; `until` is YYMMDDHHMMSSZ."""
        request = self._folder / f"{name}.csr"
        pair = Pair(self._folder / f"{name}.pem", self._folder / f"{name}.key")
        extension = ["-addext", f"subjectAltName={names}"]
        _openssl("req", *_KEY, "-subj", f"/CN={name}", *extension, "-keyout", pair.key, "-out", request)
        dates = ["-startdate", "200101000000Z", "-enddate", until]
        _openssl("ca", "-batch", "-notext", "-config", self._folder / "configuration", *dates, "-cert",
                 self.certificate, "-keyfile", self._key, "-in", request, "-out", pair.certificate)  # fmt: skip
        return pair


EXPIRED = "210101000000Z"


def self_signed(folder: Path, name: str) -> Pair:
    """A certificate that nobody else has signed."""
    pair = Pair(folder / f"{name}-own.pem", folder / f"{name}-own.key")
    names = "subjectAltName=DNS:localhost,IP:127.0.0.1"
    _openssl("req", "-x509", *_KEY, "-days", "2", "-subj", f"/CN={name}", "-addext", names, "-keyout", pair.key, "-out",
             pair.certificate)  # fmt: skip
    return pair


def encrypted(pair: Pair) -> Path:
    """The key of a pair, with a password."""
    file = pair.key.with_suffix(".locked")
    _openssl("ec", "-in", pair.key, "-aes128", "-passout", "pass:secret", "-out", file)
    return file


def copy(source: Pair, target: Pair) -> None:
    """Puts the files of one pair into the place of another, each at once, as who renews certificates does."""
    for file, place in zip(source, target, strict=True):
        fresh = place.with_suffix(".new")
        shutil.copyfile(file, fresh)
        fresh.replace(place)


def _openssl(*words: str | Path) -> None:
    command = shutil.which("openssl")
    if command is None:
        pytest.skip("openssl is not installed")
    done = subprocess.run([command, *map(str, words)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
