"""Who may call: callers that are known by a token or a certificate, and what each of them may do."""

import hmac
import time
import tomllib
from collections.abc import Mapping, Sequence
from datetime import datetime
from hashlib import sha256
from typing import Annotated, Literal, Protocol

import msgspec
from msgspec import Meta

from convoy.service.config import AccessConfig
from convoy.service.errors import BadConfig, NotPermitted, UnknownCaller, named
from convoy.service.followed import Followed, read_file
from convoy.service.text import NoText, decoded

Scope = Literal["metrics", "admin"]
EVERY_MODEL = "*"
_MODEL = r"^(\*|[a-z0-9_-]{1,64})$"
_MOST_OF_A_NAME = 256  # characters
# The same words whatever is wrong, so that they help nobody to guess.
_WHO = "caller is unknown: want 'authorization: Bearer TOKEN' with a valid token, or the certificate of a caller"
NO = "caller may not do this"


class Entry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A caller, as the file has it.

    sha256       of its token, in hexadecimal digits; empty: it has none
    certificate  whether it is known by a certificate that contains its name
    models       those it may call; "*": every model
    scopes       what else it may do: read the metrics, manage the server
    expires      when both end
    """

    sha256: Annotated[str, Meta(pattern="^([0-9a-f]{64})?$")] = ""
    certificate: bool = False
    models: tuple[Annotated[str, Meta(pattern=_MODEL)], ...] = ()
    scopes: tuple[Scope, ...] = ()
    expires: Annotated[datetime, Meta(tz=True)] | None = None


class Caller:
    """Somebody who calls. `void` is set once the file no longer has the caller as it was: its calls end then.

    public   whether it is nobody in particular, who uses what is public
    account  its quotas, which a front end keeps; None: it has none
    """

    __slots__ = ("_all", "_expires", "_models", "account", "digest", "entry", "name", "public", "void")

    def __init__(self, name: str, entry: Entry, *, public: bool = False) -> None:
        self.name = name
        self.entry = entry
        self.public = public
        self.account: Quota | None = None
        self.digest = bytes.fromhex(entry.sha256)
        self.void = False
        self._all = EVERY_MODEL in entry.models
        self._models = frozenset(entry.models)
        self._expires = None if entry.expires is None else entry.expires.timestamp()

    def check(self) -> None:
        """Raises UnknownCaller if the caller is known no longer."""
        if self.void or (self._expires is not None and time.time() >= self._expires):
            raise UnknownCaller(_WHO)

    def sees(self, model: str) -> bool:
        """Returns whether the caller may call a model, and know that it exists."""
        return self._all or model in self._models

    def permit(self, model: str) -> None:
        """Raises NotPermitted if the caller may not call a model, whether or not it exists."""
        if not (self._all or model in self._models):
            raise NotPermitted(NO)

    def need(self, scope: Scope) -> None:
        """Raises NotPermitted if the caller lacks a scope."""
        if scope not in self.entry.scopes:
            raise NotPermitted(NO)


class Quota(Protocol):
    """What a caller may still send."""

    def admit(self) -> None:
        """Counts a request. Raises QuotaExceeded."""

    def spend(self, nbytes: int) -> None:
        """Counts the bytes of a request that was admitted."""


class Callers:
    """The callers of a file."""

    def __init__(self, entries: Mapping[str, Entry]) -> None:
        self.by_name = {name: Caller(name, entry) for name, entry in entries.items()}
        self._index()

    def replace(self, before: "Callers") -> None:
        """Takes the place of earlier ones: those that have not changed stay, the others are void."""
        for name, caller in before.by_name.items():
            if name in self.by_name and self.by_name[name].entry == caller.entry:
                self.by_name[name] = caller
            else:
                caller.void = True
        self._index()

    def identify(self, authorization: bytes | None, names: Sequence[str]) -> Caller:
        """Returns who calls, by a header or else by the names in a certificate. Raises UnknownCaller."""
        caller = self._by_token(authorization) if authorization is not None else self._by_certificate(names)
        if caller is None:
            raise UnknownCaller(_WHO)
        caller.check()
        return caller

    def _by_token(self, authorization: bytes) -> Caller | None:
        scheme, _, token = authorization.partition(b" ")
        if scheme.lower() != b"bearer":
            return None
        # The time of a look-up may depend on the digest, of which a caller cannot choose a single bit at will; what
        # compares is constant.
        digest = sha256(token.strip()).digest()
        caller = self._by_digest.get(digest)
        return caller if caller is not None and hmac.compare_digest(caller.digest, digest) else None

    def _by_certificate(self, names: Sequence[str]) -> Caller | None:
        for name in names:
            caller = self.by_name.get(name)
            if caller is not None and caller.entry.certificate:
                return caller
        return None

    def _index(self) -> None:
        self._by_digest = {caller.digest: caller for caller in self.by_name.values() if caller.digest}


def follow(config: AccessConfig) -> Followed[Callers] | None:
    """The callers of the file that is set; None if everybody may call. Raises BadConfig."""
    if not config.callers:
        return None
    return Followed("callers", [config.callers], lambda: _read(config.callers))


def poll(callers: Followed[Callers], *, now: bool = False) -> None:
    """Reads the file again if it has changed, or `now`; callers that are no longer in it are void."""
    before = callers.value
    if callers.poll(now=now):
        callers.value.replace(before)


def _read(file: str) -> Callers:
    what = f"access.callers {file!r}"
    try:
        values = tomllib.loads(decoded(read_file("access.callers", file)))
    except NoText as error:
        raise BadConfig(f"{what}: {error}") from None
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise BadConfig(f"{what} is not TOML: {error}") from None
    entries: dict[str, Entry] = {}
    names: dict[str, str] = {}  # by digest
    for name, value in values.items():
        try:
            entry = entries[name] = msgspec.convert(value, Entry)
        except msgspec.ValidationError as error:
            raise BadConfig(f"{what}: caller {named(name)}: {str(error).replace('`', '')}") from None
        if not (name and name.isprintable() and len(name) <= _MOST_OF_A_NAME):
            raise BadConfig(f"{what}: name {named(name)}, want 1 to {_MOST_OF_A_NAME} printable characters")
        if not (entry.sha256 or entry.certificate):
            raise BadConfig(f"{what}: caller {named(name)} has neither sha256 nor certificate = true, want one")
        if entry.sha256 and names.setdefault(entry.sha256, name) != name:
            raise BadConfig(f"{what}: callers {named(names[entry.sha256])} and {named(name)} have the same token")
    return Callers(entries)
