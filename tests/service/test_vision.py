"""Images in, labels and class maps out, over a real server."""

import asyncio
import io
import time
from pathlib import Path

import grpc
import numpy as np
import onnxruntime
import pytest
from PIL import Image
from pycocotools import mask as coco

from convoy.service.client.aio import AsyncClient
from convoy.service.client.client import Client
from convoy.service.client.results import Classification, Segmentation, ServerError
from convoy.service.pb.convoy.v1 import vision_pb2 as pb
from tests.service import networks
from tests.service.calls import method, reason
from tests.service.images.test_decode import png_of
from tests.service.running import Server


def grey(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (networks.SIDE, networks.SIDE), dtype=np.uint8)


def colourful(seed: int, height: int, width: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def encoded(image: np.ndarray, kind: str = "PNG", **options: object) -> bytes:
    data = io.BytesIO()
    Image.fromarray(image).save(data, kind, **options)
    return data.getvalue()


@pytest.fixture(scope="module")
def offline(small_repository: Path) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(small_repository / "letters" / "1" / "model.onnx")


def expected(offline: onnxruntime.InferenceSession, image: np.ndarray) -> np.ndarray:
    return offline.run(["probabilities"], {"image": image[None, :, :, None]})[0][0]


def served(answer: Classification) -> np.ndarray:
    values = np.zeros(networks.CLASSES, np.float32)
    for label in answer.labels:
        values[label.index] = label.probability
    return values


def test_served_probabilities_are_those_of_offline_onnxruntime(
    client: Client, offline: onnxruntime.InferenceSession
) -> None:
    for seed in range(20):
        answer = client.classify(grey(seed), "letters", top_k=10)
        np.testing.assert_allclose(served(answer), expected(offline, grey(seed)), atol=1e-6)
        assert [label.probability for label in answer.labels] == sorted(served(answer), reverse=True)
        assert answer.labels[0].name == "abcdefghij"[answer.labels[0].index]


def test_the_five_most_probable_labels_come_where_nobody_says_how_many(client: Client, channel: grpc.Channel) -> None:
    request = pb.ClassifyRequest(model="letters", images=[pb.Image(encoded=encoded(grey(1)))])
    labels = method(channel, "Classify")(request).results[0].classification.labels
    assert len(labels) == 5
    assert len(client.classify(grey(1), "letters", top_k=99).labels) == networks.CLASSES


@pytest.mark.both_transports
def test_64_concurrent_callers_ride_in_batches_and_each_gets_its_own_answer(
    small: Server, offline: onnxruntime.InferenceSession
) -> None:
    async def run() -> list[tuple[int, Classification]]:
        async with AsyncClient(small.grpc) as client:

            async def caller(number: int) -> list[tuple[int, Classification]]:
                seeds = range(number * 100, number * 100 + 15)
                return [(seed, await client.classify(grey(seed), "letters", top_k=10)) for seed in seeds]

            found = await asyncio.gather(*(caller(number) for number in range(64)))
            return [answer for answers in found for answer in answers]

    images, batches = (small.total(f"convoy_batch_size_{part}", model="letters") for part in ("sum", "count"))
    answers = asyncio.run(run())
    assert len(answers) == 64 * 15
    for seed, answer in answers:
        np.testing.assert_allclose(served(answer), expected(offline, grey(seed)), atol=1e-6)
    images = small.total("convoy_batch_size_sum", model="letters") - images
    batches = small.total("convoy_batch_size_count", model="letters") - batches
    assert images == 64 * 15
    assert images / batches > 1
    assert max(answer.timings.batch_size for _, answer in answers) > 4


def test_a_lone_caller_does_not_wait_for_company(quick_repository: Path) -> None:
    settings = ["batching.max_queue_delay_ms=2000", "server.lame_duck_seconds=0"]
    with Server(quick_repository, settings) as server, Client(server.grpc) as client:
        answers = [client.classify(grey(seed), "letters") for seed in range(30)]
    assert {answer.timings.batch_size for answer in answers} == {1}
    # A lone image must not spend the queue delay.
    assert np.median([answer.timings.queue for answer in answers]) < 1


@pytest.mark.parametrize("form", ["raw", "png", "rle"])
@pytest.mark.parametrize("size", [(1, 1), (4, 8), (37, 51), (130, 3)])
def test_a_class_map_has_the_size_of_the_image_that_was_sent(client: Client, form: str, size: tuple[int, int]) -> None:
    image = colourful(7, *size)
    answer = client.segment(image, "colours", format=form, with_confidence=True)
    np.testing.assert_array_equal(answer.mask, image.argmax(2))
    assert answer.confidence is not None
    np.testing.assert_array_equal(answer.confidence, image.max(2))
    counts = {entry.name: entry.pixels for entry in answer.class_pixels}
    assert counts == dict(zip(["red", "green", "blue"], np.bincount(answer.mask.ravel(), minlength=3), strict=True))


def test_network_without_confidence_answers_its_mask_and_refuses_to_say_how_sure_it_is(tmp_path: Path) -> None:
    networks.save(networks.segmenter(confidence=False), tmp_path, "masks")
    image = colourful(2, 40, 60)
    with Server(tmp_path, ["server.lame_duck_seconds=0"]) as server, Client(server.grpc) as client:
        answer = client.segment(image)
        np.testing.assert_array_equal(answer.mask, image.argmax(2))
        assert answer.confidence is None
        with pytest.raises(ServerError, match="model 'masks' version 1 answers masks alone: want false") as refused:
            client.segment(image, with_confidence=True)
        assert (refused.value.code, refused.value.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "BAD_REQUEST")


def test_run_lengths_are_what_coco_tools_read_and_a_png_carries_the_palette(channel: grpc.Channel) -> None:
    image = colourful(3, 20, 31)
    segment = method(channel, "Segment")
    request = pb.SegmentRequest(model="colours", images=[pb.Image(encoded=encoded(image))], format=pb.MASK_FORMAT_RLE)
    for run_lengths in segment(request).results[0].segmentation.run_lengths:
        decoded = coco.decode({"size": [20, 31], "counts": run_lengths.counts})
        np.testing.assert_array_equal(decoded, image.argmax(2) == run_lengths.class_index)
    request.format = pb.MASK_FORMAT_PNG
    picture = Image.open(io.BytesIO(segment(request).results[0].segmentation.mask))
    assert picture.mode == "P"
    np.testing.assert_array_equal(np.asarray(picture), image.argmax(2))
    assert picture.getpalette()[:9] == [200, 0, 0, 0, 200, 0, 0, 0, 200]


def test_images_of_different_sizes_in_one_request_each_get_their_own_class_map(client: Client) -> None:
    images = [colourful(seed, 5 + seed, 40 - seed) for seed in range(12)]
    answers = client.segment_many(images, "colours")
    for image, answer in zip(images, answers, strict=True):
        assert isinstance(answer, Segmentation)
        np.testing.assert_array_equal(answer.mask, image.argmax(2))


def test_of_several_images_each_has_its_own_result_or_error(client: Client) -> None:
    good = encoded(grey(5))
    answers = client.classify_many([good, good[:40], good, b""], "letters")
    assert [type(answer) for answer in answers] == [Classification, ServerError, Classification, ServerError]
    assert isinstance(answers[1], ServerError)
    assert answers[1].code == grpc.StatusCode.INVALID_ARGUMENT
    assert answers[1].reason == "BAD_IMAGE"


def raw_request(model: str, images: list[np.ndarray]) -> pb.ClassifyRequest:
    sent = [
        pb.Image(raw=pb.RawImage(pixels=image.tobytes(), height_px=networks.SIDE, width_px=networks.SIDE, channels=1))
        for image in images
    ]
    return pb.ClassifyRequest(model=model, images=sent, top_k=10)


def test_images_that_need_no_work_share_a_batch_and_each_gets_its_own_answer(
    channel: grpc.Channel, offline: onnxruntime.InferenceSession
) -> None:
    images = [grey(seed) for seed in range(8)]
    results = method(channel, "Classify")(raw_request("letters", images)).results
    for image, result in zip(images, results, strict=True):
        assert result.timings.batch_size == 8
        values = np.zeros(networks.CLASSES, np.float32)
        for label in result.classification.labels:
            values[label.index] = label.probability
        np.testing.assert_allclose(values, expected(offline, image), atol=1e-6)


def test_an_image_that_the_network_fails_on_leaves_those_that_share_its_slot_unharmed(tmp_path: Path) -> None:
    networks.save(networks.choosy(), tmp_path, "choosy")
    images = [grey(seed) for seed in range(8)]
    images[5][...] = 250
    with Server(tmp_path) as server, grpc.insecure_channel(server.grpc) as channel:
        results = method(channel, "Classify")(raw_request("choosy", images)).results
        again = method(channel, "Classify")(raw_request("choosy", [*images[:5], *images[6:]])).results
    assert [result.error.reason for result in results] == ["", "", "", "", "", "RUN_FAILED", "", ""]
    del results[5]
    assert [one.classification for one in results] == [one.classification for one in again]
    assert {one.timings.batch_size for one in again} == {7}


def test_stage_timings_follow_each_other_and_add_up_to_the_total(client: Client) -> None:
    timings = client.segment(encoded(colourful(1, 64, 64)), "colours").timings
    stages = (
        timings.receive,
        timings.decode,
        timings.preprocess,
        timings.queue,
        timings.gather,
        timings.run,
        timings.scatter,
        timings.postprocess,
    )
    assert all(stage > 0 for stage in stages)
    assert sum(stages) == pytest.approx(timings.total, rel=1e-6)
    assert client.segment(colourful(1, 64, 64), "colours").timings.decode == 0  # it came as pixels


def test_the_only_model_of_a_task_needs_no_name_and_several_do(client: Client) -> None:
    assert client.segment(colourful(1, 8, 8)).model == "colours"
    with pytest.raises(
        ServerError, match=r"2 models for classification are served: name one of letters, slow$"
    ) as caught:
        client.classify(grey(1))
    assert caught.value.code == grpc.StatusCode.NOT_FOUND


def test_models_are_listed_with_what_they_say_of_themselves(client: Client) -> None:
    rows = {model.model: model for model in client.models()}
    assert set(rows) == {"letters", "colours", "waves", "doubler", "triple", "compressor", "slow"}
    assert rows["letters"].task == "classification"
    assert rows["letters"].labels == tuple("abcdefghij")
    assert rows["letters"].provider == "CPUExecutionProvider"
    assert rows["doubler"].task == "tensors"
    assert rows["letters"].tensor is None
    tensor = rows["waves"].tensor
    assert tensor is not None
    assert (tensor.name, tensor.datatype, tensor.unit) == ("waveform", "FP32", "degrees")
    channel, time = tensor.axes
    assert (channel.name, channel.size, channel.labels) == ("channel", 3, networks.JOINTS)
    assert (time.name, time.size, time.spacing, time.unit) == ("time", 0, 0.01, "s")
    assert rows["waves"].input.colour == ""


WHOLE = encoded(colourful(1, 60, 60))
JPEG = encoded(colourful(1, 60, 60), "JPEG")
HUGE = WHOLE[:16] + (60_000).to_bytes(4, "big") * 2 + WHOLE[24:]
ZERO = WHOLE[:16] + (0).to_bytes(4, "big") * 2 + WHOLE[24:]


@pytest.mark.parametrize(
    ("image", "wanted"),
    [
        pytest.param(b"", "image is 0 bytes", id="empty"),
        pytest.param(WHOLE[:200], "", id="truncated-png"),
        pytest.param(JPEG[:-40], "", id="truncated-jpeg"),
        pytest.param(b"once upon a time there was no image", "want JPEG or PNG", id="text"),
        pytest.param(encoded(colourful(1, 9, 9), "GIF"), "image is GIF, want JPEG or PNG", id="gif"),
        pytest.param(encoded(colourful(1, 9, 9), "BMP"), "image is BMP, want JPEG or PNG", id="bmp"),
        pytest.param(encoded(colourful(1, 9, 9), "WEBP"), "image is WebP, want JPEG or PNG", id="webp"),
        pytest.param(HUGE, "60000", id="huge-header"),
        pytest.param(ZERO, "", id="zero-header"),
    ],
)
def test_a_bad_image_is_refused_at_once_naming_what_was_wanted(
    channel: grpc.Channel, image: bytes, wanted: str
) -> None:
    classify = method(channel, "Classify")
    request = pb.ClassifyRequest(model="letters", images=[pb.Image(encoded=image)])
    times = []
    for _ in range(5):
        began = time.perf_counter()
        with pytest.raises(grpc.RpcError) as caught:
            classify(request)
        times.append(time.perf_counter() - began)
        assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
        assert wanted in caught.value.details()
        assert "want" in caught.value.details() or "damaged" in caught.value.details()
        assert reason(caught.value) == "BAD_IMAGE"
    assert min(times) < 0.5  # it waits for nothing


def test_a_bad_image_leaves_its_neighbours_in_the_batch_unharmed(
    small: Server, offline: onnxruntime.InferenceSession
) -> None:
    async def run() -> list[object]:
        async with AsyncClient(small.grpc) as client:
            calls = [
                client.classify(b"no image" if seed % 3 == 0 else grey(seed), "letters", top_k=10) for seed in range(60)
            ]
            return await asyncio.gather(*calls, return_exceptions=True)

    for seed, answer in enumerate(asyncio.run(run())):
        if seed % 3 == 0:
            assert isinstance(answer, ServerError)
            assert answer.reason == "BAD_IMAGE"
        else:
            assert isinstance(answer, Classification)
            np.testing.assert_allclose(served(answer), expected(offline, grey(seed)), atol=1e-6)


def test_raw_pixels_and_their_png_get_the_same_answer(client: Client) -> None:
    image = grey(9)
    assert client.classify(image, "letters").labels == client.classify(encoded(image), "letters").labels


def test_raw_pixels_whose_bytes_do_not_fit_their_size_are_refused(channel: grpc.Channel) -> None:
    raw = pb.RawImage(pixels=b"123", height_px=2, width_px=2, channels=1)
    request = pb.ClassifyRequest(model="letters", images=[pb.Image(raw=raw)])
    with pytest.raises(grpc.RpcError, match="raw image is 3 bytes, want 4"):
        method(channel, "Classify")(request)


def test_a_colour_image_reaches_a_grey_model_as_its_luma(client: Client) -> None:
    image = colourful(2, networks.SIDE, networks.SIDE)
    luma = np.asarray(Image.fromarray(image).convert("L"))
    assert client.classify(image, "letters").labels == client.classify(luma, "letters").labels


@pytest.mark.parametrize(
    ("request_", "code", "words"),
    [
        (pb.ClassifyRequest(model="nobody", images=[pb.Image()]), "NOT_FOUND", "'nobody' is unknown: the server has c"),
        (
            pb.ClassifyRequest(model="waves", images=[pb.Image()]),
            "INVALID_ARGUMENT",
            "model 'waves' accepts no images, but a float32 tensor 'waveform' [N, 3, time], over ModelInfer",
        ),
        (pb.ClassifyRequest(model="letters", version=9, images=[pb.Image()]), "NOT_FOUND", "no version 9"),
        (pb.ClassifyRequest(model="letters", version=-1, images=[pb.Image()]), "INVALID_ARGUMENT", "version is -1"),
        (pb.ClassifyRequest(model="letters"), "INVALID_ARGUMENT", "request has 0 images, want 1 to 256"),
        (pb.ClassifyRequest(model="letters", images=[pb.Image()] * 257), "INVALID_ARGUMENT", "want 1 to 256"),
        (pb.ClassifyRequest(model="letters", images=[pb.Image()]), "INVALID_ARGUMENT", "image is empty"),
        (pb.ClassifyRequest(model="colours", images=[pb.Image()]), "INVALID_ARGUMENT", "is for segmentation"),
        (pb.ClassifyRequest(model="doubler", images=[pb.Image()]), "INVALID_ARGUMENT", "send tensors over ModelInfer"),
        (pb.SegmentRequest(model="letters", images=[pb.Image()]), "INVALID_ARGUMENT", "is for classification"),
        (pb.SegmentRequest(model="colours", images=[pb.Image()], format=77), "INVALID_ARGUMENT", "format is 77"),
    ],
)
def test_a_request_that_cannot_be_served_says_why(
    channel: grpc.Channel, request_: pb.ClassifyRequest | pb.SegmentRequest, code: str, words: str
) -> None:
    name = "Classify" if isinstance(request_, pb.ClassifyRequest) else "Segment"
    with pytest.raises(grpc.RpcError) as caught:
        method(channel, name)(request_)
    assert caught.value.code().name == code
    assert words in caught.value.details()


def test_bytes_that_are_no_message_are_an_invalid_argument(channel: grpc.Channel) -> None:
    with pytest.raises(grpc.RpcError, match=r"request is not a convoy\.v1\.ClassifyRequest message") as caught:
        method(channel, "Classify")(b"\xff\xff\xff\xff")
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT


def test_an_image_that_is_too_large_is_refused_with_the_name_of_the_limit(client: Client) -> None:
    pixels = np.zeros((2100, 2100), np.uint8)
    for image in (pixels, Image.fromarray(pixels)):
        with pytest.raises(ServerError, match=r"want at most 4194304, the server's limits\.max_input_pixels$"):
            client.segment(image, "colours")
    with pytest.raises(ServerError, match=r"want at most 50000000, the server's limits\.max_pixels$"):
        client.classify(png_of(60_000, 60_000), "letters")
    with pytest.raises(ServerError, match=r"want 1 to 65535 a side$"):
        client.classify(png_of(70_000, 1), "letters")


@pytest.mark.both_transports
def test_a_message_over_the_limit_is_resource_exhausted(channel: grpc.Channel) -> None:
    request = pb.ClassifyRequest(model="letters", images=[pb.Image(encoded=bytes(64 << 20))])
    with pytest.raises(grpc.RpcError) as caught:
        method(channel, "Classify")(request)
    assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
