"""The images in the body of a request: one file as it is, JSON with base64, or the parts of a form."""

import binascii
import logging
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import msgspec
from msgspec import UNSET, UnsetType
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, MultipartState, parse_options_header

from convoy.service.errors import BadImage, BadRequest, named
from convoy.service.frontend.rest.asked import Asked
from convoy.service.frontend.rest.refusals import JSON

T = TypeVar("T")

FORM = "multipart/form-data"
AT_ONCE = 1 << 16  # bytes that take less time to read or to write than a hop to a thread
SECONDS = 1e-8  # that a byte of JSON or of a form takes to be read

_PIECE = 1 << 20  # bytes decoded at a time: the loop waits as long
_ENCODED = _PIECE // 3 * 4  # characters of base64
_MOST_HEADERS = 8  # of a part
_MOST_OF_A_HEADER = 4096  # bytes
_PLAIN = (b"", b"7bit", b"8bit", b"binary")
_IMAGES = (b"image", b"images")

# It warns of each body that is not well formed: whoever sends them could fill the log.
logging.getLogger("python_multipart").setLevel(logging.CRITICAL)


class Base64(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A file in JSON."""

    b64: str


class _Body(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    image_bytes: Base64 | UnsetType = UNSET
    images: list[Base64] | UnsetType = UNSET


_BODY = msgspec.json.Decoder(_Body)


async def images(asked: Asked, most: int) -> Sequence[bytes]:
    """Returns the files in a request's body, at most `most`. Raises BadRequest, BadImage, HttpRefused, QueueFull."""
    body, kind = await asked.body(), asked.content_type
    if kind == JSON:
        return await sized(asked, len(body), lambda: of_json(body, most))
    if kind == FORM:
        header = asked.headers[b"content-type"]
        return await sized(asked, len(body), lambda: of_form(body, header, most))
    if body[:16].lstrip().startswith(b"{"):
        raise BadImage(f"image is JSON, want a JPEG or PNG file, or JSON with content-type: {JSON}")
    return [body]


async def sized(asked: Asked, nbytes: int, work: Callable[[], T], seconds: float = SECONDS) -> T:
    """Returns the result of work on `nbytes` bytes, at `seconds` a byte; long work runs in a thread."""
    return work() if nbytes <= AT_ONCE else await asked.aside(work, seconds * nbytes)


def of_json(body: bytes, most: int) -> list[bytes]:
    """Returns the files in `{"image_bytes": {"b64": ..}}` or `{"images": [{"b64": ..}, ..]}`. Raises BadRequest."""
    check_members(body, b"{", most + 1, "images", most)  # before an object is created for each
    found = decoded(_BODY, body)
    if found.images is not UNSET and found.image_bytes is not UNSET:
        raise BadRequest("request body has images as well as image_bytes, want one of the two")
    if found.images is not UNSET:
        return [file(each, f"images[{number}].b64") for number, each in enumerate(found.images)]
    if found.image_bytes is not UNSET:
        return [file(found.image_bytes, "image_bytes.b64")]
    raise BadRequest('request body has no images, want {"images": [{"b64": ".."}]}')


def check_members(body: bytes, mark: bytes, marks: int, what: str, most: int) -> None:
    """Raises BadRequest if JSON contains `mark` more than `marks` times: then it has more than `most` of `what`."""
    if body.count(mark) > marks:
        raise BadRequest(f"request has more than {most} {what}, want 1 to {most}")


def decoded(decoder: msgspec.json.Decoder[T], body: bytes, at: str = "") -> T:
    """Returns what JSON says. Raises BadRequest, which names the place of what is wrong; `at` is that of the JSON."""
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        message, _, place = str(error).partition(" - at `$")
        where = f"{at}{place}".strip(".`") or "request body"
        raise BadRequest(f"{where}: {message[:1].lower()}{message[1:]}") from None
    except RecursionError:
        raise BadRequest("request body is nested too deeply") from None
    except msgspec.DecodeError as error:
        raise BadRequest(f"request body is not JSON: {error}") from None
    except UnicodeDecodeError:
        raise BadRequest("request body is not JSON: a string is not UTF-8") from None


def file(encoded: Base64, place: str) -> bytes:
    """Returns the bytes of a file in base64 (RFC 4648, section 4). Raises BadRequest, which names its place."""
    text = encoded.b64
    try:
        pieces = [
            binascii.a2b_base64(text[start : start + _ENCODED], strict_mode=True)
            for start in range(0, len(text), _ENCODED)
        ]
    except ValueError as error:
        raise BadRequest(f"{place} is not base64: {str(error)[:1].lower()}{str(error)[1:]}") from None
    data = b"".join(pieces)
    if 0 <= text.find("=") < len(text) - 2:  # at the end of a piece
        raise BadRequest(f"{place} is not base64: excess data after padding")
    if len(text) != -(-len(data) // 3) * 4:
        raise BadRequest(f"{place} is not base64: it has {len(text)} characters for {len(data)} bytes")
    return data


def of_form(body: bytes, content_type: bytes, most: int) -> list[bytes]:
    """Returns the parts of a form, each of which must be a file. Raises BadRequest."""
    boundary = parse_options_header(content_type)[1].get(b"boundary", b"")
    if not boundary:
        raise BadRequest(f"content-type is {FORM} without a boundary")
    delimiter = b"\r\n--" + boundary
    # The parser goes byte by byte through what looks like a boundary, and through spaces behind one: seconds of
    # computing in the largest body. So nothing but boundaries may look like one.
    if body.count(delimiter) > most + body.startswith(delimiter):
        raise BadRequest(f"request has more than {most} parts, want 1 to {most}")
    if any(delimiter + space in body for space in (b" ", b"\t")):
        raise _bad_form("a boundary is followed by a space")
    parts = _Parts()
    try:
        parser = MultipartParser(
            boundary, parts.callbacks(), max_header_count=_MOST_HEADERS, max_header_size=_MOST_OF_A_HEADER
        )
        for start in range(0, len(body), _PIECE):
            parser.write(body[start : start + _PIECE])
    except FormParserError as error:
        raise _bad_form(f"{str(error)[:1].lower()}{str(error)[1:]}") from None
    if parser.state != MultipartState.END:
        raise _bad_form("it is cut off")
    if not parts.files:
        raise BadRequest("request has 0 parts, want one for each image")
    return parts.files


class _Parts:
    """The parts of a form while it is parsed."""

    def __init__(self) -> None:
        self.files: list[bytes] = []
        self._data: list[bytes] = []
        self._name: list[bytes] = []
        self._value: list[bytes] = []
        self._headers: dict[bytes, bytes] = {}

    def callbacks(self) -> Any:
        """Returns what the parser calls."""
        return {
            "on_part_begin": self._begin,
            "on_header_field": lambda data, start, end: self._name.append(data[start:end]),
            "on_header_value": lambda data, start, end: self._value.append(data[start:end]),
            "on_header_end": self._end_header,
            "on_headers_finished": self._check,
            "on_part_data": lambda data, start, end: self._data.append(data[start:end]),
            "on_part_end": self._end,
        }

    def _begin(self) -> None:
        self._headers = {}
        self._data = []
        self._name, self._value = [], []

    def _end_header(self) -> None:
        self._headers[b"".join(self._name).lower()] = b"".join(self._value)
        self._name, self._value = [], []

    def _check(self) -> None:
        """Raises BadRequest if the part is not a file."""
        _, options = parse_options_header(self._headers.get(b"content-disposition", b""))
        name = options.get(b"name", b"")
        if b"filename" not in options and name not in _IMAGES:
            shown = named(name.decode(errors="replace"))
            raise BadRequest(f"part {len(self.files)} of the form is {shown} and no file: parameters go into the query")
        encoding = self._headers.get(b"content-transfer-encoding", b"").strip().lower()
        if encoding not in _PLAIN:
            shown = named(encoding.decode(errors="replace"))
            raise BadRequest(f"part {len(self.files)} of the form has content-transfer-encoding {shown}, want binary")

    def _end(self) -> None:
        self.files.append(b"".join(self._data))
        self._data = []


def _bad_form(what: str) -> BadRequest:
    return BadRequest(f"request body is not the {FORM} that its content-type says: {what}")
