"""The page at `/`: its files, read once and kept in memory, plain and compressed."""

import gzip
import hashlib
from collections.abc import Mapping
from importlib.resources import files
from typing import NamedTuple

from starlette.responses import Response

from convoy.service.frontend.rest.asked import Asked
from convoy.service.frontend.rest.refusals import JSON
from convoy.service.frontend.rest.routes import Route, Schema

PACKAGE = "convoy.service.page"
INDEX = "index.html"
PAGE = "page"  # public as what has nothing of the server's in it
# Nothing comes from elsewhere, nothing is inline, nobody may frame it. Pictures are shown from memory (blob:, data:).
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-cache",  # a browser asks each time whether it has changed: a new server has a new page
}
_MEDIA_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
_TEXT: Schema = {"type": "string"}
_ALIVE: Schema = {"type": "object", "required": ["status"], "properties": {"status": {"const": "alive"}}}
_ANSWERS: Mapping[str, Schema] = {JSON: _ALIVE, "text/html": _TEXT}


class _File(NamedTuple):
    media_type: str
    plain: bytes
    compressed: bytes
    tag: str


class Page:
    """The files. Read at the start, never again: a request chooses among names, and no path is made of it."""

    def __init__(self) -> None:
        self._files: Mapping[str, _File] = {
            entry.name: _read(entry.name, entry.read_bytes())
            for entry in files(PACKAGE).iterdir()
            if _suffix(entry.name) in _MEDIA_TYPES
        }

    def routes(self) -> list[Route]:
        """Returns `/` and the path of each file, for everybody: they have nothing of the server's in them."""
        index = Route("GET", "/", self._index, "The page, or whether the server answers", _ANSWERS, public=PAGE)
        return [index, *(self._route(name) for name in sorted(self._files) if name != INDEX)]

    def _route(self, name: str) -> Route:
        async def answer(asked: Asked) -> Response:
            return self._answer(asked, name)

        media_type = self._files[name].media_type.partition(";")[0]
        return Route("GET", f"/page/{name}", answer, "A file of the page", {media_type: _TEXT}, public=PAGE)

    async def _index(self, asked: Asked) -> Response:
        # Browsers ask for HTML by name. Others, such as clients of TorchServe, want to know whether it lives.
        if asked.accepts("text/html"):
            return self._answer(asked, INDEX)
        return Response(b'{"status":"alive"}', headers={"vary": "accept"}, media_type=JSON)

    def _answer(self, asked: Asked, name: str) -> Response:
        file = self._files[name]
        compressed = b"gzip" in _tokens(asked.headers.get(b"accept-encoding", b""))
        tag = f'"{file.tag}-gz"' if compressed else f'"{file.tag}"'
        headers = {**HEADERS, "etag": tag, "vary": "accept, accept-encoding"}
        if known(asked, tag):
            return Response(status_code=304, headers=headers)
        if compressed:
            headers["content-encoding"] = "gzip"
        return Response(file.compressed if compressed else file.plain, 200, headers, file.media_type)


def known(asked: Asked, tag: str) -> bool:
    """Returns whether the caller has this version of a file already."""
    tags = asked.headers.get(b"if-none-match", b"").decode("latin-1").split(",")
    return any(each.strip().removeprefix("W/") in (tag, "*") for each in tags)


def _read(name: str, data: bytes) -> _File:
    tag = hashlib.sha256(data).hexdigest()[:16]
    return _File(_MEDIA_TYPES[_suffix(name)], data, gzip.compress(data, 9, mtime=0), tag)


def _suffix(name: str) -> str:
    return name[name.rfind(".") :]


def _tokens(header: bytes) -> set[bytes]:
    """Returns the encodings that a caller accepts."""
    parts = [each.partition(b";") for each in header.lower().split(b",")]
    return {name.strip() for name, _, weight in parts if weight.replace(b" ", b"") not in (b"q=0", b"q=0.0")}
