"""Serialised requests over one connection: the choice of the model by request number, and the outcomes."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import grpc
import grpc.aio
import numpy as np

from convoy.service.bench.drive import Outcome, Refusal, Send
from convoy.service.client.requests import OPTIONS
from convoy.service.client.results import ServerError, read_error

_CHOICES = 65_521  # a prime: the sequence of models has this period, which never aligns with that of the images


class Question(NamedTuple):
    """The requests to one model. All three functions accept the request's number."""

    method: str  # gRPC method path
    body: Callable[[int], bytes]  # the request, serialised
    read: Callable[[int, bytes], Outcome]  # the outcome of its answer
    images: Callable[[int], int]  # images in the request


def connect(server: str) -> grpc.aio.Channel:
    """A connection for a load test, on the running loop."""
    return grpc.aio.insecure_channel(server, options=OPTIONS)


def unary(channel: grpc.aio.Channel, question: Question, model: int, *, server: str, deadline: float) -> Send:
    """Sends requests to the model with this index, one call each."""
    call = channel.unary_unary(question.method)  # no serialisers: bytes in, bytes out

    async def ask(number: int) -> Outcome:
        try:
            answer: bytes = await call(question.body(number), timeout=deadline)
        except grpc.aio.AioRpcError as error:
            refused = refusal(read_error(error, server, deadline))
            return Outcome(model, 0, (), (refused,) * question.images(number))
        return question.read(number, answer)

    return ask


def sender(asks: Sequence[Send], weights: Sequence[float], seed: int) -> Send:
    """Sends each request to one of the models, drawn by weight: the same one in every process."""
    shares = np.array(weights) / sum(weights)
    choice = np.random.default_rng((seed, 1)).choice(len(asks), _CHOICES, p=shares).tolist()
    return lambda number: asks[choice[number % _CHOICES]](number)


def refusal(error: ServerError) -> Refusal:
    """An error as it appears in a report."""
    code: str = error.code.name
    return Refusal(code if error.reason == code else f"{code} {error.reason}", error.message)
