"""Targets for fuzzing: everything of ours that reads bytes of others, each as a function that raises if it misbehaves.

`python -m tests.reliability.fuzz TARGET SECONDS` runs one under atheris, guided by coverage, if that is installed.
Without it the same targets get what a mutator with a seed makes of good data.
"""

import argparse
import gc
import importlib.util
import math
import os
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import FunctionType
from typing import Any, NamedTuple
from unittest import mock

import msgspec

from convoy.service import access, config, metadata, repository
from convoy.service.access import Callers, Entry
from convoy.service.config import Config
from convoy.service.engine import external_data
from convoy.service.errors import BadConfig, BadImage, BadMetadata, BadModelFile, BadRequest, UnknownCaller
from convoy.service.frontend import status, tensors, trace, wire
from convoy.service.frontend.transport import messages
from convoy.service.frontend.transport.messages import Assembler, Refused
from convoy.service.frontend.wire import Parser
from convoy.service.images import decode as images
from convoy.service.ipc import messages as ipc
from convoy.service.metadata import Document, InputSpec
from convoy.service.pb import inference_pb2
from convoy.service.pb.convoy.v1 import vision_pb2
from convoy.service.repository import TensorSpec, Version
from tests.reliability import leaks, mutation
from tests.reliability.mutation import Mutator
from tests.reliability.samples import pictures, requests
from tests.service import networks

MODULE = "atheris"
_SIDE = 64  # bytes that count as a large payload, so that short messages have some
_FOLLOWED = ("convoy.service.", "tomllib.")  # modules whose coverage guides
_MOST_PIXELS = 1 << 20


class Target(NamedTuple):
    """What is fuzzed.

    try_     reads the bytes; raises anything for a fault
    corpus   good data to begin with
    mutate   what a mutator without coverage makes of them
    """

    try_: Callable[[bytes], None]
    corpus: Callable[[], Sequence[bytes]]
    mutate: Mutator = mutation.scrambled


def _in_our_words(error: Exception, sent: bytes = b"") -> None:
    text = str(error)
    assert text, "an error without words"
    assert "\n" not in text, f"an error of several lines: {text!r}"
    found = leaks.found(text, sent.decode(errors="backslashreplace"))
    assert not found, f"an error with {found}: {text!r}"


def _one_line(error: Exception) -> None:
    assert "\n" not in str(error), f"an error of several lines: {error}"


# The wire.

_PARSERS = (
    (Parser(vision_pb2.ClassifyRequest.DESCRIPTOR, "images.raw.pixels"), vision_pb2.ClassifyRequest),
    (Parser(vision_pb2.SegmentStreamRequest.DESCRIPTOR, "request.images.raw.pixels"), vision_pb2.SegmentStreamRequest),
    (Parser(inference_pb2.ModelInferRequest.DESCRIPTOR, "raw_input_contents"), inference_pb2.ModelInferRequest),
)


def try_wire(data: bytes) -> None:
    """A message is read as protobuf alone reads it, however it is cut."""
    parser, kind = _PARSERS[data[0] % 3] if data else _PARSERS[0]
    body = data[1:]
    with mock.patch.object(wire, "LARGE", _SIDE):
        try:
            whole = kind.FromString(body)  # type: ignore[attr-defined]
        except Exception:  # as protobuf does for bad UTF-8
            whole = None
        try:
            found, payloads = parser.parse(body)
        except BadRequest as error:
            _in_our_words(error)
            assert whole is None, "protobuf reads what is refused"
            return
        assert whole is not None, "what protobuf refuses is read"
        assert _put_back(found, payloads) == whole or _has_nan(whole), "another message than protobuf's"
        _try_in_pieces(parser, body, 1 + len(body) // 7)


def _put_back(message: Any, payloads: Mapping[int, memoryview]) -> Any:
    request = message.request if hasattr(message, "request") else message
    for number, payload in payloads.items():
        if hasattr(request, "raw_input_contents"):
            request.raw_input_contents[number] = bytes(payload)
        elif request.images[number].WhichOneof("source") == "raw":
            request.images[number].raw.pixels = bytes(payload)
    return message


def _has_nan(message: Any) -> bool:
    return bool(message != message)  # noqa: PLR0124


def _try_in_pieces(parser: Parser, data: bytes, step: int) -> None:
    payloads: dict[int, bytearray] = defaultdict(bytearray)
    lifting = parser.lifting(len(data), lambda number, part: payloads[number].extend(part))
    accepted = 0
    for at in range(0, len(data), step):
        piece = memoryview(data)[at : at + step]
        accepted += lifting.write(piece)
        assert lifting.so_far(memoryview(b"".join(payloads.values()))) == data[:accepted], "bytes are lost"
        if accepted < at + len(piece):
            break
    lifting.message()


def try_frames(data: bytes) -> None:
    """How messages are cut into frames makes no difference, and none is longer than the limit."""
    if len(data) < 3:
        return
    step, encoding, body = 1 + data[0] % 61, messages.ENCODINGS[data[1] % 3], data[2:]
    assert _assembled([body], encoding) == _assembled(
        [body[at : at + step] for at in range(0, len(body), step)], encoding
    ), "another message in other pieces"


def _assembled(chunks: Sequence[bytes], encoding: bytes) -> tuple[list[bytes], str]:
    assembler, found = Assembler(4096, encoding), []
    try:
        for chunk in chunks:
            rest = chunk
            while rest:
                got = assembler.feed(rest, most=2)
                found += [bytes(each) for each in got]  # type: ignore[arg-type]
                rest, assembler.rest = bytes(assembler.rest), b""
    except Refused as error:
        _in_our_words(error)
        return [], f"{error.code}: {error.message}"  # what came before in the same piece is of no use
    assert all(len(each) <= 4096 for each in found)
    return found, "inside" if assembler.inside else ""


def try_timeout(data: bytes) -> None:
    """A grpc-timeout is a number of seconds, not negative and finite, or refused."""
    try:
        seconds = messages.seconds(data)
    except Refused as error:
        _in_our_words(error, data[:32])
        return
    assert 0 <= seconds < math.inf


def try_headers(data: bytes) -> None:
    """What a caller puts into headers is read or ignored, and what is sent back fits into a header."""
    parts = data.split(b"\0", 2)
    found = trace.read(parts[0], parts[-1])
    if found is not None:
        assert all(text.isprintable() and text.isascii() for text in found.fields().values())
    assert messages.accepted(data, "gzip") in messages.ENCODINGS
    text = data.decode(errors="replace")
    assert messages.percent_encoded(text).isascii()
    error = BadRequest(text)
    assert len(messages.percent_encoded(status.message_of(error))) <= 1600
    status.trailers(error)
    status.request_error(error)


# Images.


def try_image(data: bytes) -> None:
    """Bytes are an image or refused, in our own words."""
    colour: images.Colour = "RGB" if len(data) % 2 else "L"
    try:
        header = images.inspect(data, _MOST_PIXELS)
    except BadImage as error:
        _in_our_words(error)
        return
    try:
        picture = images.decode(data, colour, _MOST_PIXELS, lambda *_: (1, 2, 4)[len(data) % 3])
    except BadImage as error:
        _in_our_words(error)
        return
    assert (picture.height, picture.width) == (header.height, header.width)
    assert picture.pixels.shape[2] == (3 if colour == "RGB" else 1)


# Requests.

_ROW = Version(
    model="m",
    version=1,
    state="READY",
    inputs=(
        TensorSpec("x", "float32", (None, 4), ("N", "")),
        TensorSpec("image", "uint8", (None, None, None, 3), ("N", "H", "W", "")),
    ),
    outputs=(TensorSpec("y", "float32", (None, 4), ("N", "")),),
    batched=True,
    max_batch_size=8,
)
_FREE = Version(
    model="m",
    version=1,
    state="READY",
    document=Document(task="segmentation", labels=["a"], input=InputSpec(colour="RGB", multiple=4, fit="pad")),
    inputs=(TensorSpec("image", "uint8", (None, None, None, 3), ("N", "H", "W", "")),),
    outputs=(TensorSpec("mask", "uint8", (None, None, None), ("N", "H", "W")),),
)


def try_tensors(data: bytes) -> None:
    """A request's tensors fit the model, or are refused."""
    with suppress(Exception):
        request = inference_pb2.ModelInferRequest.FromString(data)
        for row in (_ROW, _FREE):
            try:
                found = tensors.read(request, row, _MOST_PIXELS)
                tensors.requested_outputs(request, row)
            except BadRequest as error:
                _checked.append(error)
            except Exception as error:
                _checked.append(error)
            else:
                assert all(0 not in values.shape for values in found.arrays)
    errors, _checked[:] = _checked[:], []
    for error in errors:
        if not isinstance(error, BadRequest):
            raise error
        _in_our_words(error)


_checked: list[Exception] = []


# Files.


def try_document(data: bytes) -> None:
    """A model's document is one that can be written again, or refused in one line."""
    text = data.decode(errors="replace")
    try:
        found = metadata.decode({metadata.KEY: text})
    except BadMetadata as error:
        _one_line(error)
        return
    assert found is not None
    assert metadata.decode({metadata.KEY: metadata.encode(found)}) == found
    assert all(side >= 1 for side in metadata.input_shape(found))


def try_settings(data: bytes) -> None:
    """A model.toml has settings, or is refused in one line."""
    try:
        config.load_model_config(data)
    except BadConfig as error:
        _one_line(error)


def try_option(data: bytes) -> None:
    """A setting of the command line is read, or refused."""
    with suppress(BadConfig):
        config.load(None, [data.decode(errors="surrogateescape")])


def try_callers(data: bytes) -> None:
    """A file of callers is read, or refused with the name of what is wrong."""
    with mock.patch.object(access, "read_file", return_value=data), suppress(BadConfig):
        found = access._read("callers.toml")
        for name, caller in found.by_name.items():
            assert name
            assert caller.digest or caller.entry.certificate


_CALLERS = Callers({"ci": Entry(sha256="ab" * 32), "robot": Entry(certificate=True)})


def try_token(data: bytes) -> None:
    """Nobody is known by a token that was made up."""
    for header, names in ((data, ()), (b"Bearer " + data, ()), (None, (data.decode(errors="replace"),))):
        try:
            caller = _CALLERS.identify(header, names)
        except UnknownCaller as error:
            _in_our_words(error)
        else:
            assert names == ("robot",)
            assert caller.name == "robot"


def try_network(data: bytes) -> None:
    """The external data of a file that claims to be a network are found, or the file is refused."""
    handle = os.memfd_create("network")
    try:
        os.pwrite(handle, data, 0)
        try:
            found = external_data.locations(Path(f"/proc/self/fd/{handle}"))
        except BadModelFile as error:
            _in_our_words(error)
        else:
            assert all(isinstance(name, str) for name in found)
    finally:
        os.close(handle)


def try_triton(data: bytes) -> None:
    """A file that Triton wrote has a batch size, or a note."""
    with mock.patch.object(repository.files, "read", return_value=data):
        settings, note = repository._with_triton(Path(__file__), Path(), config.ModelConfig())
        assert note
        assert settings.max_batch_size is None or 1 <= settings.max_batch_size <= 1024


# Processes of ours.


def try_control(data: bytes) -> None:
    """A message between our processes is read, or an error of the decoder: nothing else comes from a child."""
    with suppress(msgspec.MsgspecError, RecursionError, ValueError):
        found = ipc._decoder.decode(data)
        assert ipc._decoder.decode(msgspec.json.encode(found)) == found


def try_table(data: bytes) -> None:
    """The table of versions is read, or an error of the decoder."""
    with suppress(msgspec.MsgspecError, RecursionError, ValueError):
        found = repository.decode_table(data)
        assert repository.decode_table(repository.encode_table(found)) == found


# Good data.


def _messages() -> list[bytes]:
    return [
        bytes([number]) + data
        for number, kind in enumerate(("Classify", "SegmentStream", "ModelInfer"))
        for data in requests(kind)
    ]


def _frames() -> list[bytes]:
    import gzip
    import zlib

    plain = [b"", b"hello", bytes(300)]
    bodies = {0: plain, 1: [zlib.compress(each) for each in plain], 2: [gzip.compress(each) for each in plain]}
    return [
        bytes([7, encoding]) + b"".join(b"%c" % (encoding > 0) + len(body).to_bytes(4, "big") + body for body in found)
        for encoding, found in bodies.items()
    ]


def _documents() -> list[bytes]:
    made = (networks.classifier(), networks.segmenter(), networks.waves())
    return [value.value.encode() for model in made for value in model.metadata_props]


_SETTINGS = (
    b'policy = "deferred"\nlatency_objective_ms = 20\nmax_batch_size = 8\nversions = "latest 2"\nbuckets = "off"\n',
    b'versions = [1, 2]\ninstances = "auto"\nprovider = "cpu"\nbatched = true\nsha256 = ["' + b"ab" * 32 + b'"]\n',
    b"buckets = [[8, 8], [64, 32]]\nmax_queue = 5\nmax_queue_delay_ms = 0.5\n",
)
_CALLER_FILE = (
    b'ci = { sha256 = "' + b"ab" * 32 + b'", models = ["lenet5"], expires = 2027-06-30T00:00:00Z }\n'
    b'"spiffe://a/b" = { certificate = true, models = ["*"], scopes = ["metrics", "admin"] }\n'
)
_OPTIONS = (b"server.grpc_port=1", b"batching.max_batch_size=8", b'access.public=["probes"]', b"engine.sleep_ms=[5, 0]")
_TIMEOUTS = (b"1H", b"99999999H", b"0n", b"100m", b"00000001S", b"1", b"S", b"-1S", b"1.5S", "1\u0661S".encode())


def _control() -> list[bytes]:
    start = ipc.Start(Config(), (0,), "r", "127.0.0.1:1", "m", "s", "c", ((ipc.Suspect("m", 1, "x"), 2),), (("m", 1),))
    others = (
        ipc.Link(1, 0),
        ipc.Drain(),
        ipc.Status(True, False, "x"),
        ipc.Loading(None),
        ipc.Deadly("m", 1, b"1", b"2", 3.0),
        ipc.Pictures(((b"1", 2.0),), ((b"3", 4.0),), 5.0),
        ipc.Ask(1, ipc.Load("m")),
        ipc.Apply(1, ipc.Logging("debug")),
        ipc.Applied(1, ipc.Refusal("UNKNOWN_MODEL", "no m"), 2),
    )
    return [msgspec.json.encode(each) for each in (start, *others, ipc.Withdraw("m", 1))]


def _first(mutate: Mutator) -> Mutator:
    """Leaves the first byte, which says what the others are."""
    return lambda rng, data: data[:1] + mutate(rng, data[1:])


def _picture(rng: Any, data: bytes) -> bytes:
    if rng.random() < 0.3:
        return mutation.scrambled(rng, data)
    return (mutation.png if data.startswith(b"\x89PNG") else mutation.jpeg)(rng, data)


TARGETS: dict[str, Target] = {
    "wire": Target(try_wire, _messages, _first(mutation.message)),
    "frames": Target(try_frames, _frames),
    "timeout": Target(try_timeout, lambda: _TIMEOUTS),
    "headers": Target(
        try_headers, lambda: (b"abc\0" + b"00-" + b"a" * 32 + b"-" + b"b" * 16 + b"-01", b"gzip, identity")
    ),
    "image": Target(try_image, pictures, _picture),
    "tensors": Target(try_tensors, lambda: requests("ModelInfer"), mutation.message),
    "document": Target(try_document, _documents),
    "settings": Target(try_settings, lambda: _SETTINGS),
    "option": Target(try_option, lambda: _OPTIONS),
    "callers": Target(try_callers, lambda: (_CALLER_FILE,)),
    "token": Target(try_token, lambda: (b"Bearer convoy_abc", b"robot", b"bearer  x")),
    "network": Target(try_network, lambda: [networks.classifier().SerializeToString()], mutation.message),
    "triton": Target(try_triton, lambda: (b'name: "m"\nmax_batch_size: 8\n', b"max_batch_size: 0")),
    "control": Target(try_control, _control),
    "table": Target(try_table, lambda: (repository.encode_table(repository.Table((_ROW, _FREE), complete=True)),)),
}


def is_installed() -> bool:
    """Whether atheris is there; it has wheels for few versions of Python."""
    return importlib.util.find_spec(MODULE) is not None


def main() -> None:
    """Runs one target under atheris."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("target", choices=TARGETS)
    parser.add_argument("seconds", type=int)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--findings", type=Path, default=Path(), help="folder for inputs that are found")
    arguments = parser.parse_args()
    if not is_installed():
        sys.exit("atheris is not installed")
    import atheris

    target = TARGETS[arguments.target]
    with tempfile.TemporaryDirectory() as folder:
        for number, data in enumerate(target.corpus()):
            (Path(folder) / str(number)).write_bytes(data)
        options = [
            f"-max_total_time={arguments.seconds}",
            f"-seed={arguments.seed + 1}",
            "-max_len=4096",
            "-timeout=20",
        ]
        options += ["-rss_limit_mb=4096", "-print_final_stats=1", f"-artifact_prefix={arguments.findings}/"]
        # Ours alone: all that is imported takes minutes.
        for each in gc.get_objects():
            if isinstance(each, FunctionType) and str(each.__module__).startswith(_FOLLOWED):
                atheris.instrument_func(each)
        atheris.Setup([sys.argv[0], *options, folder], target.try_)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
