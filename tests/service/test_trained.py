"""The two trained networks, served: every held-out image gets the answer that offline onnxruntime gives."""

import asyncio
import itertools
from collections.abc import Sequence

import numpy as np
import onnxruntime
import pytest
from numpy.typing import NDArray

from convoy.service.client.aio import AsyncClient
from convoy.service.client.client import Client
from convoy.service.client.results import Classification, Segmentation
from tests.service.running import Server

pytestmark = pytest.mark.trained


def offline(server: Server, model: str) -> onnxruntime.InferenceSession:
    with Client(server.grpc) as client:
        version = next(entry.version for entry in client.models() if entry.model == model and entry.state == "ready")
    return onnxruntime.InferenceSession(server.repository / model / str(version) / "model.onnx")


def held_out(name: str) -> list[tuple[NDArray[np.uint8], NDArray[np.int64] | int]]:
    from convoy.models.data.registry import data_set

    split = data_set(name).split("test")
    return [split[index] for index in range(len(split))]


def in_groups(images: Sequence[NDArray[np.uint8]], sizes: Sequence[int]) -> list[list[NDArray[np.uint8]]]:
    """The images cut into groups of changing size: requests of one and of many, which ride in batches of every kind."""
    groups, rest, turn = [], list(images), itertools.cycle(sizes)
    while rest:
        size = next(turn)
        groups.append(rest[:size])
        rest = rest[size:]
    return groups


def test_every_digit_gets_offline_onnxruntimes_answer_whatever_batch_it_rode_in(server: Server) -> None:
    samples = held_out("digits")
    images = [np.asarray(image) for image, _ in samples]
    wanted = offline(server, "lenet5").run(["probabilities"], {"image": np.stack(images).reshape(-1, 32, 32, 1)})[0]

    async def run() -> list[Classification]:
        async with AsyncClient(server.grpc) as client:
            groups = in_groups(images, (1, 1, 1, 5, 1, 2, 20))
            answers = await asyncio.gather(*(client.classify_many(group, "lenet5", top_k=10) for group in groups))
            return [answer for group in answers for answer in group if isinstance(answer, Classification)]

    answers = asyncio.run(run())
    assert len(answers) == len(images)
    for answer, row in zip(answers, wanted, strict=True):
        got = np.zeros(10, np.float32)
        for label in answer.labels:
            got[label.index] = label.probability
        np.testing.assert_allclose(got, row, atol=1e-5)
        assert answer.labels[0].index == row.argmax()
    assert len({answer.timings.batch_size for answer in answers}) > 3
    right = sum(answer.labels[0].index == target for answer, (_, target) in zip(answers, samples, strict=True))
    assert right / len(samples) >= 0.98


def test_every_scene_gets_offline_onnxruntimes_class_map_whatever_batch_it_rode_in(server: Server) -> None:
    samples = held_out("digit-scenes")
    images = [np.asarray(image) for image, _ in samples]
    session = offline(server, "unet")

    async def run() -> list[Segmentation]:
        async with AsyncClient(server.grpc) as client:
            groups = in_groups(images, (1, 4, 2, 1, 8))
            answers = await asyncio.gather(
                *(client.segment_many(group, "unet", with_confidence=True) for group in groups)
            )
            return [answer for group in answers for answer in group if isinstance(answer, Segmentation)]

    answers = asyncio.run(run())
    assert len(answers) == len(images)
    different = right = pixels = 0
    for answer, (image, target) in zip(answers, samples, strict=True):
        mask, _ = session.run(["mask", "confidence"], {"image": np.asarray(image)[None]})
        different += int((answer.mask != mask[0]).sum())
        right += int((answer.mask == np.asarray(target)).sum())
        pixels += answer.mask.size
    # onnxruntime sums in another order for another batch: at most a pixel on an edge may tip over.
    assert different / pixels <= 1e-4
    assert right / pixels > 0.9
    assert len({answer.timings.batch_size for answer in answers}) > 1


def test_where_the_networks_come_from_and_their_parity_are_told(server: Server) -> None:
    with Client(server.grpc) as client:
        rows = {entry.model: entry for entry in client.models() if entry.state == "ready"}
    assert rows["lenet5"].data == "digits"
    assert rows["lenet5"].metrics["top1"] >= 0.98
    assert rows["unet"].metrics["mean_iou"] >= 0.85
    assert len(rows["unet"].labels) == 11
