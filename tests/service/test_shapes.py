"""Images of like but unequal sizes on a real server: they share batches where they share a bucket, and nothing of it is
seen in their masks."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from convoy.service.client.client import Client
from convoy.service.client.results import Segmentation
from tests.service import networks
from tests.service.running import Server
from tests.service.test_overload import PATIENT, _wait_until, standing

BUCKETS = "buckets = [[64, 64], [128, 96]]\n"
SLEEP = ["engine.sleep_ms=[15, 1]", "server.lame_duck_seconds=0"]  # a device that gains much from batches
SIZES = [(64 - 4 * (number % 8), 64 - 4 * (number // 8)) for number in range(64)]  # no two of them the same


def repository(root: Path, settings: str) -> Path:
    networks.save(networks.segmenter(), root, "colours", 1)
    (root / "colours" / "model.toml").write_text(settings)
    return root


def noise(height: int, width: int) -> NDArray[np.uint8]:
    return np.random.default_rng((height, width)).integers(0, 256, (height, width, 3), np.uint8)


def segment_all(server: Server, sizes: list[tuple[int, int]]) -> list[Segmentation]:
    with Client(server.grpc) as client, ThreadPoolExecutor(32) as callers:
        return list(callers.map(lambda size: client.segment(noise(*size), "colours"), sizes))


@pytest.mark.parametrize(("settings", "shared"), [(BUCKETS, True), ("", False)], ids=["buckets", "none"])
def test_unequal_images_share_batches_where_they_share_a_bucket(tmp_path: Path, settings: str, shared: bool) -> None:
    with (
        Server(repository(tmp_path, settings), [*SLEEP, PATIENT]) as server,
        Client(server.grpc) as client,
        ThreadPoolExecutor(len(SIZES)) as callers,
    ):
        with standing(server):  # until all are there: a busy machine may send them more slowly than they run
            calls = [callers.submit(client.segment, noise(*size), "colours") for size in SIZES]
            _wait_until(lambda: server.total("convoy_requests_in_flight") == len(SIZES))
        answers = [call.result() for call in calls]
        assert [answer.mask.shape for answer in answers] == SIZES
        batches = [answer.timings.batch_size for answer in answers]
        assert server.total("convoy_batch_size_sum") == len(SIZES)
        if shared:
            assert server.total("convoy_batch_size_count") < len(SIZES) / 3
            assert max(batches) > 4
        else:
            assert set(batches) == {1}


def test_masks_are_what_they_are_without_buckets_and_the_waste_is_counted(tmp_path: Path) -> None:
    sizes = [(64, 64), (61, 33), (30, 64), (5, 5), (100, 20), (129, 40), (128, 96)]
    padded = [(64, 64), (64, 64), (64, 64), (64, 64), (128, 96), (132, 40), (128, 96)]
    with Server(repository(tmp_path, BUCKETS), ["server.lame_duck_seconds=0"]) as server:
        for size, answer in zip(sizes, segment_all(server, sizes), strict=True):
            assert (answer.mask == noise(*size).argmax(axis=2)).all()
        pixels, waste = server.total("convoy_input_pixels_total"), server.total("convoy_padding_pixels_total")
    assert pixels == sum(height * width for height, width in padded)
    assert waste == pixels - sum(height * width for height, width in sizes)


def test_buckets_are_learnt_from_what_comes_where_batches_pay(tmp_path: Path) -> None:
    unequal = [noise(*size) for size in SIZES[:3]]
    with (
        Server(repository(tmp_path, "buckets = 'auto'\n"), SLEEP) as server,
        Client(server.grpc) as client,
    ):
        assert [answer.timings.batch_size for answer in client.segment_many(unequal, "colours")] == [1, 1, 1]
        segment_all(server, SIZES[:3] * 200)
        record = server.wait_for_log("model colours version 1: images are padded to")
        assert record["message"].endswith("padded to 64x64")
        tries = []

        def together() -> bool:
            before = server.total("convoy_padding_pixels_total")
            tries.append((before, client.segment_many(unequal, "colours")))
            return tries[-1][1][0].timings.batch_size == 3

        _wait_until(together)  # front ends hear of it a moment later, and a busy one sends the images apart
        before, answers = tries[-1]
        assert [answer.timings.batch_size for answer in answers] == [3, 3, 3]
        assert [answer.mask.shape for answer in answers] == SIZES[:3]
        waste = sum(64 * 64 - height * width for height, width in SIZES[:3])
        assert server.total("convoy_padding_pixels_total") - before == waste


def test_buckets_are_not_learnt_where_batches_bring_nothing(tmp_path: Path) -> None:
    # Long enough that the delays of a busy machine do not look like a fixed cost, which larger batches would share.
    with Server(repository(tmp_path, "buckets = 'auto'\n"), ["engine.sleep_ms=[0, 10]", *SLEEP[1:]]) as server:
        answers = segment_all(server, SIZES[:3] * 180)  # more than it takes to learn
        assert [answer.mask.shape for answer in answers[:3]] == SIZES[:3]
        assert server.total("convoy_padding_pixels_total") == 0
        assert server.total("convoy_images_total") == 540
