import asyncio
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import numpy as np
import pytest

from convoy.service.client.aio import AsyncClient
from convoy.service.client.client import Client
from convoy.service.client.results import ServerError, Timings, read_error
from convoy.service.errors import BadImage, BadRequest
from tests.service.fake_vision import serving
from tests.service.test_overload import _wait_until


def grey(value, height=4, width=6):
    return np.full((height, width), value, np.uint8)


@pytest.fixture
def client(vision_target):
    with Client(vision_target) as client:
        yield client


@pytest.fixture
def png(tmp_path):
    from PIL import Image

    path = tmp_path / "seven.png"
    Image.fromarray(grey(7)).save(path)
    return path


def test_one_image_gives_its_ranked_labels_and_timings(client):
    answer = client.classify(grey(7), top_k=3)
    assert (answer.model, answer.version) == ("digits", 3)
    assert [(label.index, label.name, label.probability) for label in answer.labels] == [
        (7, "7", 0.5),
        (8, "8", 0.25),
        (9, "9", 0.125),
    ]
    assert answer.timings == Timings(
        receive=0.0001,
        decode=0.0002,
        preprocess=0.0003,
        queue=0.0014,
        gather=0.0,
        run=0.003,
        scatter=0.0,
        postprocess=0.0,
        total=0.0055,
        batch_size=4,
    )


def test_path_string_and_bytes_are_the_same_image(client, fake_vision, png: Path):
    answers = [client.classify(source) for source in (png, str(png), png.read_bytes())]
    assert [answer.labels[0].name for answer in answers] == ["7", "7", "7"]
    assert {request.images[0].encoded for request in fake_vision.requests} == {png.read_bytes()}


@pytest.mark.parametrize("shape", [(4, 6), (4, 6, 1), (4, 6, 3), (4, 6, 4)])
def test_array_travels_as_raw_pixels_of_its_shape(client, fake_vision, shape):
    pixels = np.arange(np.prod(shape), dtype=np.uint8).reshape(shape)
    client.classify(pixels)
    raw = fake_vision.requests[0].images[0].raw
    channels = shape[2] if len(shape) == 3 else 1
    assert (raw.height_px, raw.width_px, raw.channels) == (4, 6, channels)
    assert raw.pixels == pixels.tobytes()


def test_array_that_is_a_view_travels_in_its_own_order(client, fake_vision):
    pixels = np.arange(48, dtype=np.uint8).reshape(6, 8)
    client.classify(pixels.T[::2])
    assert list(fake_vision.requests[0].images[0].raw.pixels) == pixels.T[::2].flatten().tolist()


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((4, 4), np.float32),
        np.zeros(4, np.uint8),
        np.zeros((4, 4, 2), np.uint8),
        np.zeros((1, 4, 4, 3), np.uint8),
    ],
)
def test_array_that_is_no_image_is_refused_before_it_is_sent(client, fake_vision, array):
    with pytest.raises(BadImage, match="want uint8"):
        client.classify(array)
    assert fake_vision.requests == []


@pytest.mark.parametrize("numbers", [{"top_k": 2**32}, {"top_k": -1}, {"version": 2**63}, {"version": -1}])
def test_number_that_no_server_takes_is_refused_before_it_is_sent(client, fake_vision, numbers):
    (name,) = numbers
    with pytest.raises(BadRequest, match=f"{name} is {numbers[name]}, want 0 to "):
        client.classify(grey(1), **numbers)
    if name == "version":
        with pytest.raises(BadRequest, match="version is "):
            client.segment(grey(1), **numbers)
    assert fake_vision.requests == []


def test_largest_numbers_that_a_message_holds_are_sent(client, fake_vision):
    client.classify_many([], version=2**63 - 1, top_k=2**32 - 1)
    assert (fake_vision.requests[0].version, fake_vision.requests[0].top_k) == (2**63 - 1, 2**32 - 1)


def test_file_that_cannot_be_read_is_named(client, tmp_path):
    with pytest.raises(BadImage, match=r"absent\.png.*No such file"):
        client.classify(tmp_path / "absent.png")


def test_several_images_go_in_one_request_and_come_back_in_order(client, fake_vision):
    answers = client.classify_many([grey(value) for value in (3, 1, 2)])
    assert [answer.labels[0].name for answer in answers] == ["3", "1", "2"]
    assert len(fake_vision.requests) == 1


def test_refused_image_among_several_leaves_its_neighbours_their_answers(client):
    first, second, third = client.classify_many([grey(3), b"not an image", grey(5)])
    assert (first.labels[0].name, third.labels[0].name) == ("3", "5")
    assert isinstance(second, ServerError)
    assert (second.code, second.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "BAD_IMAGE")
    assert "want a JPEG or PNG" in second.message


def test_sequence_of_one_gives_a_list_of_one(client):
    (answer,) = client.classify_many([grey(3)])
    assert answer.labels[0].name == "3"


def test_single_refused_image_raises(client):
    with pytest.raises(ServerError, match="want a JPEG or PNG") as caught:
        client.classify(b"not an image")
    assert (caught.value.code, caught.value.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "BAD_IMAGE")
    assert caught.value.retry_after is None


def test_retry_hint_of_a_full_server_is_told(client):
    with pytest.raises(ServerError) as caught:
        client.classify(grey(1), "full")
    assert (caught.value.code, caught.value.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "QUEUE_FULL")
    assert caught.value.retry_after == 0.25
    assert caught.value.message == "1024 images wait already"


def test_error_without_details_has_its_code_as_reason(client):
    with pytest.raises(ServerError) as caught:
        client.classify(grey(1), "bare")
    assert (caught.value.reason, caught.value.message) == ("UNIMPLEMENTED", "not offered")


def test_answer_that_comes_too_late_is_a_passed_deadline(client):
    with pytest.raises(ServerError, match=r"within 0\.1 seconds") as caught:
        client.classify(grey(1), "never", deadline=0.1)
    assert caught.value.code is grpc.StatusCode.DEADLINE_EXCEEDED


def test_absent_server_is_named_with_what_to_check():
    with (
        Client("127.0.0.1:1") as client,
        pytest.raises(ServerError, match=r"no answer from 127\.0\.0\.1:1 .*is a Convoy"),
    ):
        client.models()


@pytest.mark.parametrize(
    ("details", "said"),
    [
        (
            "errors resolving foo: [field:hostname lookup error:address lookup failed for foo: Domain name not found]",
            "no answer from foo (address lookup failed for foo: Domain name not found): is a Convoy server running "
            "there?",
        ),
        (
            "errors resolving foo: [field:hostname lookup error:Failed to parse port in name: foo:bar]",
            "no answer from foo (Failed to parse port in name: foo:bar): is a Convoy server running there?",
        ),
        (
            "failed to connect to all addresses; last error: UNKNOWN: ipv6:%5B::1%5D:1: Failed to connect to remote "
            "host: Connection refused",
            "no answer from foo (Connection refused): is a Convoy server running there?",
        ),
        (
            "Cancelling all calls",
            "foo ended the call (Cancelling all calls): the server stopped, or the connection was lost",
        ),
        ("Socket closed", "foo ended the call (Socket closed): the server stopped, or the connection was lost"),
    ],
)
def test_what_grpc_says_of_an_absent_server_is_told_in_short_and_whole(details, said):
    error = grpc.aio.AioRpcError(grpc.StatusCode.UNAVAILABLE, grpc.aio.Metadata(), grpc.aio.Metadata(), details)
    assert read_error(error, "foo", None).message == said


def test_server_that_ends_under_a_call_is_not_taken_for_absent(fake_vision):
    with ThreadPoolExecutor(1) as threads:
        with serving(fake_vision) as target:
            client = Client(target, retry=False)
            call = threads.submit(client.classify, grey(1), "never")
            _wait_until(lambda: fake_vision.requests)
        with client, pytest.raises(ServerError, match="ended the call") as caught:
            call.result(20)
    assert caught.value.code is grpc.StatusCode.UNAVAILABLE


@pytest.mark.parametrize("mask_format", ["raw", "png", "rle"])
def test_mask_is_the_same_whatever_its_format(client, fake_vision, mask_format):
    pixels = np.random.default_rng(0).integers(0, 256, (9, 14), np.uint8)
    answer = client.segment(pixels, format=mask_format, with_confidence=True)
    expected = (pixels > 127).astype(np.uint8)
    expected[0] = 2
    np.testing.assert_array_equal(answer.mask, expected)
    assert answer.mask.dtype == np.uint8
    np.testing.assert_array_equal(answer.confidence, np.full((9, 14), 200))
    assert {entry.name: entry.pixels for entry in answer.class_pixels} == {
        "background": int((expected == 0).sum()),
        "cat": int((expected == 1).sum()),
        "dog": 14,
    }


def test_confidence_comes_only_when_asked_for(client):
    assert client.segment(grey(1)).confidence is None


def test_mask_larger_than_grpcs_own_limit_arrives(client):
    assert client.segment(grey(200, 2400, 2500)).mask.shape == (2400, 2500)  # 6 MB both ways, gRPC's default is 4


def test_models_are_listed_with_their_palette_and_why_one_is_not_ready(client):
    digits, pets, broken = client.models()
    assert (digits.model, digits.version, digits.state, digits.task) == ("digits", 3, "ready", "classification")
    assert (digits.input.height, digits.input.colour, digits.input.fit) == (32, "L", "letterbox")
    assert digits.metrics == {"top1": 0.9912}
    assert pets.palette == ((0, 0, 0), (255, 0, 0), (0, 0, 255))
    assert (broken.state, broken.reason) == ("unavailable", "model.onnx is cut short")


def test_asyncio_client_answers_many_calls_at_once(vision_target, fake_vision):
    async def calls():
        async with AsyncClient(vision_target) as client:
            return await asyncio.gather(
                client.classify(grey(4)),
                client.classify_many([grey(5), b"not an image"]),
                client.segment(grey(200), format="rle"),
                client.models(),
                client.classify(grey(1), "full"),
                client.segment(grey(1), "never", deadline=0.1),
                return_exceptions=True,
            )

    one, (five, refused), segmented, models, full, late = asyncio.run(calls())
    assert one.labels[0].name == "4"
    assert (five.labels[0].name, refused.reason) == ("5", "BAD_IMAGE")
    assert np.unique(segmented.mask).tolist() == [1, 2]
    assert [model.model for model in models] == ["digits", "pets", "broken"]
    assert (full.reason, full.retry_after) == ("QUEUE_FULL", 0.25)
    assert late.code is grpc.StatusCode.DEADLINE_EXCEEDED
    assert "within 0.1 seconds" in late.message


def test_client_that_is_given_a_proxy_by_the_environment_goes_straight(vision_target, monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    with Client(vision_target) as client:
        assert len(client.models(deadline=20)) == 3


def together(target, scenario):
    """Plays a scenario with a client whose calls share requests."""

    async def play():
        async with AsyncClient(target, coalesce=True) as client:
            return await asyncio.wait_for(scenario(client), 20)

    return asyncio.run(play())


def test_concurrent_calls_share_a_request_and_each_gets_its_own_answer(vision_target, fake_vision):
    async def scenario(client):
        return await asyncio.gather(*(client.classify(grey(value), "digits") for value in range(10)))

    answers = together(vision_target, scenario)
    assert [answer.labels[0].name for answer in answers] == [str(value) for value in range(10)]
    (request,) = fake_vision.requests
    assert len(request.images) == 10


def test_calls_that_differ_in_more_than_their_images_do_not_share_a_request(vision_target, fake_vision):
    async def scenario(client):
        return await asyncio.gather(
            client.classify(grey(1), "digits", top_k=1),
            client.classify(grey(2), "digits", top_k=2),
            client.classify(grey(3), "digits", version=3, top_k=2),
            client.classify(grey(4), "digits", top_k=2),
        )

    answers = together(vision_target, scenario)
    assert [len(answer.labels) for answer in answers] == [1, 2, 2, 2]
    assert sorted(len(request.images) for request in fake_vision.requests) == [1, 1, 2]


def test_no_request_has_more_images_than_a_server_accepts(vision_target, fake_vision):
    async def scenario(client):
        return await asyncio.gather(*(client.classify(grey(value % 10), "digits") for value in range(70)))

    assert len(together(vision_target, scenario)) == 70
    assert sorted(len(request.images) for request in fake_vision.requests) == [6, 32, 32]


def test_calls_in_turn_do_not_wait_for_others(vision_target, fake_vision):
    async def scenario(client):
        return [await client.classify(grey(value), "digits") for value in range(3)]

    assert len(together(vision_target, scenario)) == 3
    assert [len(request.images) for request in fake_vision.requests] == [1, 1, 1]


def test_bad_image_is_its_own_callers_error(vision_target, tmp_path):
    async def scenario(client):
        calls = [client.classify(image, "digits") for image in (grey(1), b"no image", tmp_path / "absent.png", grey(2))]
        return await asyncio.gather(*calls, return_exceptions=True)

    good, refused, unread, also_good = together(vision_target, scenario)
    assert [answer.labels[0].name for answer in (good, also_good)] == ["1", "2"]
    assert isinstance(refused, ServerError)
    assert refused.code is grpc.StatusCode.INVALID_ARGUMENT
    assert isinstance(unread, BadImage)


def test_error_of_the_request_is_everybodys(vision_target):
    async def scenario(client):
        calls = [client.classify(grey(value), "missing") for value in range(3)]
        return await asyncio.gather(*calls, return_exceptions=True)

    errors = together(vision_target, scenario)
    assert [error.code for error in errors] == [grpc.StatusCode.NOT_FOUND] * 3


def test_each_caller_has_its_own_deadline_and_may_leave(vision_target):
    async def scenario(client):
        short, long = (asyncio.ensure_future(client.classify(grey(1), "never", deadline=each)) for each in (0.1, 15))
        with pytest.raises(ServerError, match=r"within 0\.1 seconds") as caught:
            await short
        assert not long.done()
        long.cancel()
        await asyncio.wait([long])
        return caught.value.code, long.cancelled()

    assert together(vision_target, scenario) == (grpc.StatusCode.DEADLINE_EXCEEDED, True)


def test_client_that_closes_leaves_nobody_waiting(vision_target):
    async def play():
        client = AsyncClient(vision_target, coalesce=True)
        call = asyncio.ensure_future(client.classify(grey(1), "never"))
        await asyncio.sleep(0.1)
        await client.close()
        with pytest.raises(ServerError):
            await asyncio.wait_for(call, 10)

    asyncio.run(play())
