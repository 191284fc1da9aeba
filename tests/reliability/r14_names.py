"""R14: names and paths in every text of every request: no file outside the repository is opened, or looked at."""

import json
import os
import random
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote_from_bytes

import grpc
from google.protobuf.message_factory import GetMessageClass

from tests.reliability.probe import Count, Probe, Tally
from tests.reliability.r01_messages import channel
from tests.reliability.samples import METHODS, Method, requests
from tests.reliability.siege import SECONDS, Siege, host_and_port

_AT_ONCE = 64
_HTTP_SHARE = 0.1  # of the names go into URLs
_WATCHED = Path(__file__).parent / "watched"
_MARK = "zq"  # in every name, so that a path that is made of one is known
_SHAPES = (
    *("../{}", "../../{}", "../../../../../../{}", "a/../../{}", "./{}", "/{}", "//{}", "{}/", "{}/.", "{}\0"),
    *("{}\0.onnx", "..%2f{}", "%2e%2e/{}", "..\\{}", "..%5c{}", "....//{}", "..;/{}", "{}/../../x", "file:{}"),
    *("file:///{}", "http://127.0.0.1:9/{}", "\\\\127.0.0.1\\{}", "~/{}", "$HOME/{}", "$(touch {})", "`{}`", ";{};"),
    *("|{}", "{}\n{}", "{}\x1b[2J", "\u2025/{}", "\uff0e\uff0e/{}", "\u202e{}", "{}#", "{}?x", "CON/{}"),
    *("letters/1/{}", "letters/../../{}", "letters\0/{}", "LETTERS{}", "{}.onnx", "model.onnx/{}"),
)


def names(rng: random.Random, root: Path) -> Iterator[str]:
    """Names without end: of files that exist outside the repository, and of some that do not."""
    secret = str(root / f"{_MARK}secret")
    bases = (
        secret,
        secret.lstrip("/"),
        f"{_MARK}secret",
        "etc/passwd",
        "proc/self/environ",
        "dev/shm",
        "proc/self/fd/0",
    )
    while True:
        name = rng.choice(_SHAPES).replace("{}", rng.choice((*bases, f"{_MARK}{rng.randrange(10**6)}")))
        yield name * rng.choice((1, 1, 1, 1, 2, 200))


def run(trials: int, seed: int) -> Tally:
    """One trial is one name in one field."""
    return _run(trials, seed, tempted=False)


def _run(trials: int, seed: int, *, tempted: bool) -> Tally:
    rng, count = random.Random(f"names {seed}"), Count()
    with tempfile.TemporaryDirectory(prefix="names-") as folder:
        paths, secret = Path(folder) / "paths", Path(folder) / f"{_MARK}secret"
        secret.write_text("secret")
        environment = {
            "PYTHONPATH": os.pathsep.join(filter(None, (str(_WATCHED), os.environ.get("PYTHONPATH")))),
            "CONVOY_PATHS": str(paths),
            "CONVOY_TEMPTATION": str(secret),
        }
        with Siege(count, seed, environment=environment) as siege, channel(siege) as connection:
            made = names(rng, Path(folder))
            _good_calls(siege, connection)
            time.sleep(0.5)  # what the beginning opens late
            before = paths.stat().st_size
            in_urls = round(trials * _HTTP_SHARE)
            _ask_urls(siege, [next(made) for _ in range(in_urls)])
            _ask(siege, connection, rng, made, trials - in_urls)
            if tempted:
                os.kill(siege.server.children()["frontend"], signal.SIGUSR2)
                until = time.monotonic() + SECONDS
                while str(secret) not in paths.read_text() and time.monotonic() < until:
                    time.sleep(0.05)
            lines = paths.read_bytes()[before:].decode().splitlines()
            found = [line for line in map(json.loads, lines) if _is_outside(line[2], siege.repository)]
            every = map(json.loads, paths.read_text().splitlines())
            found += [line for line in every if line[1] == "forbidden"]  # since the start: pickle, torch, onnx
        for pid, event, path in found[:10]:
            count.also_bad(f"seed {seed}: process {pid}: {event} of {path!r}")
    return count.tally()


def _is_outside(path: str, repository: Path) -> bool:
    if _MARK in path:
        return True
    if not path.startswith("/"):
        return path.startswith((".", "~")) or "/" in path
    allowed = (
        str(repository),
        sys.prefix,
        sys.base_prefix,
        "/proc/self",
        "/proc/",
        "/sys/",
        str(Path(__file__).parents[2]),
    )
    temporary = ("convoy-", "metrics")
    return not (path.startswith(allowed) or any(word in path for word in temporary))


def _good_calls(siege: Siege, connection: grpc.Channel) -> None:
    """One call of each method, so that whatever they open at the first time is open."""
    for method in METHODS:
        if not method.streams:
            for data in requests(method.name):
                connection.unary_unary(method.path).future(data, timeout=SECONDS).exception()
    for url in (siege.server.http, siege.server.metrics):
        siege.server.get(f"{url}/nothing")
    siege.server.samples()


def _ask(siege: Siege, connection: grpc.Channel, rng: random.Random, made: Iterator[str], trials: int) -> None:
    methods = [method for method in METHODS if method.name not in ("Watch",) and _texts_of(method)]
    while trials > 0:
        waiting, began = [], time.monotonic()
        for _ in range(_AT_ONCE):
            method = rng.choice(methods)
            message, filled = (
                GetMessageClass(method.descriptor.input_type).FromString(rng.choice(requests(method.name))),
                [],
            )
            _put(rng, message, made, filled)
            trials -= len(filled)
            data = message.SerializeToString()
            if method.streams:
                call = connection.stream_stream(method.path)(iter([data]), timeout=SECONDS)
            else:
                call = connection.unary_unary(method.path).future(data, timeout=SECONDS)
            waiting.append((method, filled, data, call))
            if trials <= 0:
                break
        for method, filled, data, call in waiting:
            wrong = _outcome(siege, method, call, data, began)
            if wrong:
                siege.count.bad(f"{method.path} with {filled[:2]!r:.200}: {wrong}")
                siege.count.good(len(filled) - 1)
            else:
                siege.count.good(len(filled))


def _outcome(siege: Siege, method: Method, call: Any, data: bytes, began: float) -> str:
    try:
        if method.streams:
            list(call)
        else:
            call.result()
    except grpc.RpcError as error:
        return siege.wrong(error, data, began)
    return ""


def _texts_of(method: Method) -> bool:
    return any(field.type in (field.TYPE_STRING, field.TYPE_MESSAGE) for field in method.descriptor.input_type.fields)


def _put(rng: random.Random, message: Any, made: Iterator[str], filled: list[str]) -> None:
    """Puts names into the texts of a message, all of them or some."""
    for field, value in message.ListFields():
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            _put_into_map(rng, field, value, made, filled)
        elif field.message_type is not None:
            for each in value if field.is_repeated else [value]:
                _put(rng, each, made, filled)
        elif field.type == field.TYPE_STRING and rng.random() < 0.7:
            filled.append(next(made))
            if field.is_repeated:
                value[:] = [filled[-1]] * len(value)
            else:
                setattr(message, field.name, filled[-1])
    if not filled:
        for field in message.DESCRIPTOR.fields:
            if field.type == field.TYPE_STRING and not field.is_repeated:
                filled.append(next(made))
                setattr(message, field.name, filled[-1])
                return


def _put_into_map(rng: random.Random, field: Any, value: Any, made: Iterator[str], filled: list[str]) -> None:
    key, inner = field.message_type.fields_by_name["key"], field.message_type.fields_by_name["value"]
    if key.type != key.TYPE_STRING:
        return
    filled.append(next(made))
    if inner.message_type is not None:
        value[filled[-1]].CopyFrom(value[next(iter(value))]) if value else value[filled[-1]].SetInParent()
        _put(rng, value[filled[-1]], made, filled)
    elif inner.type == inner.TYPE_STRING:
        value[filled[-1]] = filled[-1]


def _ask_urls(siege: Siege, made: list[str]) -> None:
    addresses = [host_and_port(url) for url in (siege.server.http, siege.server.metrics)]
    for number, name in enumerate(made):
        target = name.encode(errors="replace")
        if number % 2 or any(byte <= 32 for byte in target):
            target = quote_from_bytes(target, "/.").encode()
        prefix = (b"/", b"/v2/models/", b"/v2/repository/models/")[number % 3]
        received = b""
        with socket.create_connection(addresses[number % 2], SECONDS) as caller:
            try:
                caller.sendall(b"GET " + prefix + target + b" HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
                received = caller.recv(1 << 16)
            except ConnectionError:
                pass
        if b" 200 " in received[:20] or received[-6:] == b"secret":
            siege.count.bad(f"URL {prefix + target!r:.200} was answered: {received[:100]!r}")
        else:
            siege.count.good()


def control(seed: int) -> Tally:
    """A front end that opens a file outside."""
    return _run(200, seed, tempted=True)


PROBE = Probe(
    "R14",
    "No name in a request makes the server open, or look at, a file outside the repository",
    "names and paths",
    100_000,
    50_000,
    run,
    control,
)
