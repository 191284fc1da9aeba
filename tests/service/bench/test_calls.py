"""Load over streams: against a real server, and a stream that breaks off or never answers."""

import asyncio
import time
from collections.abc import Awaitable, Callable

import grpc

from convoy.service.bench import client, vision
from convoy.service.bench.calls import Outcome, Streamed, Workload, connect
from convoy.service.bench.plan import Open, Piece, Plan
from convoy.service.pb.convoy.v1 import vision_pb2 as pb
from tests.service.running import Server


def plan(target: str, models: tuple[tuple[str, float], ...]) -> Plan:
    return Plan(
        server=target,
        models=vision.models(target, models, 30.0),
        load=Open((Piece(0.5, 100, 100),), "constant", 1.0),
        warm_up=0.1,
        batch=2,
        deadline=30.0,
        seed=0,
        processes=1,
        folder=None,
        stream=True,
        sizes=(),
    )


def test_each_model_has_a_stream_of_its_own_and_every_request_its_answer(small: Server) -> None:
    asked = plan(small.grpc, (("letters", 1.0), ("colours", 1.0)))
    client.run(asked, 0, lambda: time.monotonic() + 0.05)
    assert isinstance(asked.load, Open)
    wanted = len(client.due_times(asked.load, asked.warm_up, asked.seed))
    name = "convoy_request_duration_seconds_count"
    # The last one counts a moment after its answer.
    classified = small.wait_for_total(name, wanted - small.total(name, method="SegmentStream"), method="ClassifyStream")
    assert 10 < classified < wanted - 10
    assert small.wait_for_total(name, wanted - classified, method="SegmentStream") == wanted - classified
    # Its caller leaves as soon as it has the last answer.
    assert small.total(name, method="SegmentStream", code="CANCELLED") == 0
    assert small.total(name, method="Classify") == 0


def answered_by(
    serve: Callable[..., object], asks: Callable[[Streamed], Awaitable[object]], deadline: float = 15.0
) -> None:
    """Ask a server whose ClassifyStream is `serve`."""

    async def play() -> None:
        server = grpc.aio.server()
        handler = grpc.stream_stream_rpc_method_handler(
            serve,
            request_deserializer=pb.ClassifyStreamRequest.FromString,
            response_serializer=pb.ClassifyStreamResponse.SerializeToString,
        )
        service = grpc.method_handlers_generic_handler("convoy.v1.Vision", {"ClassifyStream": handler})
        server.add_generic_rpc_handlers((service,))
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        question = Workload(
            "/convoy.v1.Vision/Classify",
            lambda number: pb.ClassifyRequest(model=str(number)).SerializeToString(),
            lambda number, answer: Outcome(0, 1, (), ()),
            lambda number: 1,
            lambda number, answer: Outcome(0, 1, (), ()),
            1_000,
        )
        async with connect(f"127.0.0.1:{port}") as channel:
            await asks(Streamed(channel, question, 0, server="there", deadline=deadline))
        await server.stop(None)

    asyncio.run(asyncio.wait_for(play(), 20))


def names(outcomes: list[Outcome]) -> list[str]:
    return [each.refused[0].name if each.refused else "answered" for each in outcomes]


def test_answers_find_their_requests_in_whatever_order() -> None:
    async def serve(requests, context):
        held = [message async for message in _first(requests, 3)]
        assert [message.request.model for message in held] == ["4", "5", "6"]
        for message in reversed(held):
            if message.id == 5:
                error = pb.RequestError(code=8, reason="QUEUE_FULL", message="full")
                yield pb.ClassifyStreamResponse(id=5, error=error)
            else:
                yield pb.ClassifyStreamResponse(id=message.id, response=pb.ClassifyResponse())
        await asyncio.sleep(10)

    async def asks(stream: Streamed) -> None:
        outcomes = await asyncio.gather(*(stream.send(number) for number in (4, 5, 6)))
        assert names(outcomes) == ["answered", "RESOURCE_EXHAUSTED QUEUE_FULL", "answered"]

    answered_by(serve, asks)


def test_a_stream_that_ends_refuses_what_waits_and_the_next_request_opens_another() -> None:
    streams = []

    async def serve(requests, context):
        streams.append(1)
        async for message in _first(requests, 2):
            if len(streams) > 1:
                yield pb.ClassifyStreamResponse(id=message.id, response=pb.ClassifyResponse())

    async def asks(stream: Streamed) -> None:
        assert names(await asyncio.gather(stream.send(1), stream.send(2))) == ["UNAVAILABLE"] * 2
        assert names([await stream.send(3)]) == ["answered"]

    answered_by(serve, asks)
    assert len(streams) == 2


def test_what_is_never_answered_is_refused_at_its_deadline() -> None:
    async def serve(requests, context):
        async for message in requests:
            if message.id > 1:
                yield pb.ClassifyStreamResponse(id=message.id, response=pb.ClassifyResponse())

    async def asks(stream: Streamed) -> None:
        outcomes[:] = names(await asyncio.gather(stream.send(1), stream.send(2)))

    outcomes: list[str] = []
    for deadline in (0.3, 3.0, 15.0):  # on a busy machine, a short time may be over before anything is answered
        answered_by(serve, asks, deadline)
        if "answered" in outcomes:
            break
    assert outcomes == ["DEADLINE_EXCEEDED", "answered"]


async def _first(requests, count):
    for _ in range(count):
        yield await anext(requests)
