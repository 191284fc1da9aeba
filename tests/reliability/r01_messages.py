"""R1: messages of every method, changed in their structure: each is answered in time, with a status of a fixed set."""

import random
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import grpc
from google.protobuf.message_factory import GetMessageClass

from tests.reliability import leaks, mutation
from tests.reliability.probe import Count, Probe, Tally
from tests.reliability.samples import METHODS, Method, requests
from tests.reliability.siege import SECONDS, Siege, text_of, texts, with_a_death

_AT_ONCE = 64  # unary calls
_THREADS = 8  # streams at once
_MOST = 8  # messages of a stream
_WATCH_SECONDS = 0.2  # a watch ends only with its deadline
# The methods of models have most of the code.
_WEIGHTS = {
    "Classify": 12,
    "Segment": 6,
    "ModelInfer": 12,
    "ClassifyStream": 6,
    "SegmentStream": 3,
    "ModelStreamInfer": 6,
    "Watch": 0.2,
}


def run(trials: int, seed: int) -> Tally:
    """One trial is one message."""
    count = Count()
    with Siege(count, seed) as siege, channel(siege) as connection, ThreadPoolExecutor(_THREADS) as threads:
        streams, unary = [], []
        for method, messages in _plan(random.Random(f"messages {seed}"), trials):
            if method.streams:
                streams.append(threads.submit(_stream, siege, connection, method, messages))
            else:
                unary += [(method, data) for data in messages]
        for at in range(0, len(unary), _AT_ONCE):
            _unary(siege, connection, unary[at : at + _AT_ONCE], seed)
        for stream in streams:
            for wrong in stream.result():
                count.bad(f"seed {seed}: {wrong}") if wrong else count.good()
    return count.tally()


def channel(siege: Siege) -> grpc.Channel:
    """To a server under siege."""
    options = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_receive_message_length", -1)]
    return grpc.insecure_channel(siege.server.grpc, options)


def _plan(rng: random.Random, trials: int) -> Iterator[tuple[Method, list[bytes]]]:
    weights = [_WEIGHTS.get(method.name, 1) for method in METHODS]
    while trials > 0:
        (method,) = rng.choices(METHODS, weights)
        many = method.descriptor.client_streaming
        messages = [_changed(rng, method) for _ in range(min(trials, rng.randint(1, _MOST) if many else 1))]
        trials -= len(messages)
        yield method, messages


def _changed(rng: random.Random, method: Method) -> bytes:
    data = rng.choice(requests(method.name))
    if rng.random() < 0.05:  # a message of another method
        data = rng.choice(requests(rng.choice(METHODS).name))
    return mutation.message(rng, data)


def _unary(siege: Siege, connection: grpc.Channel, calls: list[tuple[Method, bytes]], seed: int) -> None:
    began = time.monotonic()
    futures = [connection.unary_unary(method.path).future(data, timeout=SECONDS) for method, data in calls]
    for (method, data), future in zip(calls, futures, strict=True):
        try:
            wrong = _wrong_in(method, future.result(), data)
        except grpc.RpcError as error:
            wrong = siege.wrong(error, data, began)
        if wrong:
            siege.count.bad(f"seed {seed}: {method.path} {data[:100].hex()}: {wrong}")
        else:
            siege.count.good()


def _stream(siege: Siege, connection: grpc.Channel, method: Method, messages: list[bytes]) -> list[str]:
    began = time.monotonic()
    seconds = _WATCH_SECONDS if method.name == "Watch" else SECONDS
    call = (
        partial(connection.stream_stream(method.path), iter(messages))
        if method.descriptor.client_streaming
        else partial(connection.unary_stream(method.path), messages[0])
    )
    sent = b"".join(messages)
    wrong = ""
    try:
        for response in call(timeout=seconds):
            wrong = wrong or _wrong_in(method, response, sent)
    except grpc.RpcError as error:
        if method.name != "Watch" or error.code() != grpc.StatusCode.DEADLINE_EXCEEDED:
            wrong = wrong or siege.wrong(error, sent, began)
    siege.count.see("longest stream, s", time.monotonic() - began)
    if wrong:
        wrong = f"{method.path} {[each[:60].hex() for each in messages]}: {wrong}"
    return [wrong, *("" for _ in messages[1:])]


def _wrong_in(method: Method, response: bytes, sent: bytes) -> str:
    if method.name in ("RepositoryIndex", "ListModels", "ServerReflectionInfo"):
        return ""  # descriptions, which are not errors
    message: Any = GetMessageClass(method.descriptor.output_type).FromString(response)
    return next(filter(None, (leaks.found(text, text_of(sent)) for text in texts(message))), "")


def control(seed: int) -> Tally:
    """A process that dies."""
    return with_a_death("frontend", seed)


PROBE = Probe(
    "R1",
    "No message ends or hangs the server, or hurts a good caller",
    "mutated messages",
    100_000,
    10_000,
    run,
    control,
)
