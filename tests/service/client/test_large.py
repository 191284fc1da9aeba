"""The mask of a large picture equals that of the whole, whatever happens to its tiles, in little memory."""

import asyncio
import os
import random
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import grpc
import numpy as np
import PIL.Image
import pytest
from numpy.typing import NDArray

from convoy.service.client import large, tile_queue
from convoy.service.client.aio import AsyncClient
from convoy.service.client.assembly import Assembly
from convoy.service.client.client import Client
from convoy.service.client.large import ArrayRaster, Job, Progress
from convoy.service.client.results import ReceptiveField as Seen
from convoy.service.client.results import Segmentation, ServerError, Timings
from convoy.service.client.tile_queue import FOREVER, TileQueue
from convoy.service.client.tiling import Plan, plan
from convoy.service.errors import BadImage, BadRequest, UnknownModel
from convoy.service.metadata import Context, ReceptiveField
from convoy.service.rasters.raster import NO_CLASS
from tests.service import networks
from tests.service.client.test_tiling import field, model
from tests.service.running import Server

Pixels = NDArray[np.uint8]
TIMINGS = Timings(**dict.fromkeys(Timings.__struct_fields__, 0))


@pytest.fixture(scope="module")
def land(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Networks that tile, that pool globally, with and without confidences, and one of a fixed size."""
    repository = tmp_path_factory.mktemp("land")
    networks.save(networks.surroundings(), repository, "land")
    networks.save(networks.surroundings("global"), repository, "scene")
    networks.save(networks.surroundings("global", confidence=False), repository, "sure")
    networks.save(networks.surroundings(side=64), repository, "square")
    alone = Context(before=0, after=0, stride=1)
    networks.save(networks.segmenter(field=ReceptiveField(height=alone, width=alone)), repository, "colours")
    networks.save(networks.classifier(), repository, "letters")
    with Server(repository, ["server.lame_duck_seconds=0", "limits.max_input_pixels=1100000"]) as server:
        yield server


@pytest.fixture
def client(land: Server) -> Iterator[Client]:
    with Client(land.grpc) as client:
        yield client


def picture(height: int, width: int, channels: int = 3) -> Pixels:
    """Squares of random colours under noise."""
    generator = np.random.default_rng(height * 10_000 + width)
    coarse = generator.integers(0, 200, (height // 9 + 1, width // 9 + 1, channels))
    squares = coarse.repeat(9, axis=0).repeat(9, axis=1)[:height, :width]
    return (squares + generator.integers(0, 56, squares.shape)).astype(np.uint8)


class Rows:
    """A MaskSink in memory."""

    def __init__(self) -> None:
        self.parts: list[Pixels] = []

    def write(self, rows: Pixels) -> None:
        self.parts.append(rows.copy())

    def close(self) -> None:
        raise AssertionError("not for the client to close")

    abandon = close

    @property
    def mask(self) -> Pixels:
        return np.concatenate(self.parts)


@pytest.mark.parametrize(
    ("size", "tile"),
    [((301, 417), 64), ((300, 416), 101), ((97, 1000), 128), ((1000, 97), 0), ((63, 64), 64), ((1, 300), 64)],
)
def test_mask_is_that_of_the_whole_picture_bit_for_bit(client: Client, size: tuple[int, int], tile: int) -> None:
    pixels = picture(*size)
    whole = client.segment(pixels, "land")
    found = client.segment_large(pixels, "land", tile=tile)
    assert found.exact
    assert found.note == ""
    assert found.mask is not None
    assert found.mask.shape == size
    assert (found.mask == whole.mask).all()
    assert found.class_pixels == whole.class_pixels
    assert sum(entry.pixels > 0 for entry in found.class_pixels) > (2 if min(size) > 1 else 0)
    assert found.tiles == 1 or tile


def test_smaller_halo_is_not_exact_and_says_so(client: Client) -> None:
    pixels = picture(301, 417)
    found = client.segment_large(pixels, "land", tile=64, halo=0)
    assert found.mask is not None
    assert (found.exact, found.halo) == (False, 0)
    assert "the halo is smaller than the receptive field of 'land'" in found.note
    # The same comparison as above finds the seams.
    assert (found.mask != client.segment(pixels, "land").mask).any()


@pytest.mark.parametrize("name", ["scene", "sure"])
def test_network_that_pools_globally_says_that_its_mask_is_not_that_of_the_whole(client: Client, name: str) -> None:
    pixels = picture(301, 417)
    found = client.segment_large(pixels, name, tile=128, halo=16)
    assert not found.exact
    assert found.note == f"the mask of {name!r} depends on the whole picture, as by global pooling"
    assert found.mask is not None
    assert found.mask.shape == (301, 417)
    assert client.segment_large(pixels, name).exact  # in one tile


def test_more_confident_tile_wins_where_they_overlap(client: Client) -> None:
    pixels = picture(200, 300)
    served = large.chosen(client.models(), "scene")
    found = plan(200, 300, served, 128, 16)
    best = np.zeros((200, 300), int)
    expected = np.zeros((200, 300), np.uint8)
    for tile in found.tiles():
        rows, columns = tile.rows, tile.columns
        part = client.segment(
            pixels[rows.start : rows.stop, columns.start : columns.stop], "scene", with_confidence=True
        )
        assert part.confidence is not None
        middle = np.zeros(part.mask.shape, int)
        middle[rows.first - rows.start : rows.last - rows.start, columns.first - columns.start :][
            :, : columns.last - columns.first
        ] = 1
        rank = 2 * part.confidence.astype(int) + middle + 1
        used = slice(rows.low, rows.high), slice(columns.low, columns.high)
        cut = (
            slice(rows.low - rows.start, rows.high - rows.start),
            slice(columns.low - columns.start, columns.high - columns.start),
        )
        better = rank[cut] > best[used]
        expected[used] = np.where(better, part.mask[cut], expected[used])
        best[used] = np.maximum(best[used], rank[cut])
    result = client.segment_large(pixels, "scene", tile=128, halo=16)
    assert result.mask is not None
    assert (result.mask != expected).mean() < 0.001  # those of two equally sure tiles, neither in the middle


def test_network_of_one_size_is_sent_that_size(client: Client) -> None:
    pixels = picture(150, 50)
    found = client.segment_large(pixels, "square", halo=0)
    assert (found.exact, found.tile, found.tiles) == (False, (64, 64), 3)
    padded = np.pad(pixels, ((0, 0), (0, 14), (0, 0)), mode="edge")
    assert found.mask is not None
    for top in (0, 64, 86):
        expected = client.segment(padded[top : top + 64], "square").mask[:, :50]
        rows = slice(0, 64) if top != 86 else slice(42, 64)
        assert (found.mask[top : top + 64][rows] == expected[rows]).all()


def test_grey_pictures_files_and_the_only_model_are_accepted(land: Server, tmp_path: Path) -> None:
    pixels = picture(90, 100, 1)
    PIL.Image.fromarray(pixels[..., 0]).save(tmp_path / "grey.png")
    with Client(land.grpc) as client:
        masks = [client.segment_large(each, "land", tile=64).mask for each in (pixels, pixels[..., 0])]
        masks.append(client.segment_large(tmp_path / "grey.png", "land", tile=64).mask)
        whole = client.segment(pixels, "land").mask
        assert all(mask is not None and (mask == whole).all() for mask in masks)
        with pytest.raises(BadRequest, match="model is empty, want a name: the server has 5"):
            client.segment_large(pixels)
        with pytest.raises(UnknownModel, match="no model 'lond' for segmentation that is ready; did you mean 'land'"):
            client.segment_large(pixels, "lond")
        with pytest.raises(UnknownModel, match="no model 'land' version 7"):
            client.segment_large(pixels, "land", version=7)
        with pytest.raises(BadImage, match="cannot read image"):
            client.segment_large(tmp_path / "none.png", "land")
        with pytest.raises(BadImage, match="array is uint8"):
            client.segment_large(np.zeros((4, 4, 4), np.uint8), "land")


def test_rows_go_to_a_sink_in_order_and_from_any_row_on(client: Client) -> None:
    pixels = picture(301, 417)
    whole = client.segment(pixels, "land").mask
    sink, seen = Rows(), list[Progress]()
    found = client.segment_large(pixels, "land", tile=96, sink=sink, progress=seen.append)
    assert found.mask is None
    assert (sink.mask == whole).all()
    assert [each.tiles for each in seen] == list(range(1, found.tiles + 1))
    assert seen[-1] == Progress(found.tiles, found.tiles, found.tiles, 301)
    for first_row in (0, 1, len(sink.parts[0]), 2 * len(sink.parts[0]), 300, 301):
        rest = Rows()
        again = client.segment_large(pixels, "land", tile=96, sink=rest, first_row=first_row, progress=seen.append)
        assert (np.concatenate([whole[:0], *rest.parts]) == whole[first_row:]).all()
        assert sum(entry.pixels for entry in again.class_pixels) == (301 - first_row) * 417


def test_joined_rows_are_the_same_from_any_row_on(client: Client) -> None:
    pixels = picture(500, 200)
    whole = client.segment_large(pixels, "scene", tile=128, halo=16).mask
    assert whole is not None
    for first_row in (80, 176, 300):
        rest = Rows()
        client.segment_large(pixels, "scene", tile=128, halo=16, sink=rest, first_row=first_row)
        assert (rest.mask == whole[first_row:]).all()


def test_asyncio_does_the_same(land: Server, client: Client) -> None:
    pixels = picture(301, 417)

    async def found() -> large.LargeSegmentation:
        async with AsyncClient(land.grpc) as other:
            return await other.segment_large(pixels, "land", tile=64)

    result = asyncio.run(found())
    assert result.mask is not None
    assert (result.mask == client.segment(pixels, "land").mask).all()


class Holes(ArrayRaster):
    """Without data left of column 200, and in one more place."""

    def absent(self, top: int, left: int, height: int, width: int) -> NDArray[np.bool_] | None:  # type: ignore[override]
        columns = np.arange(left, left + width)
        found = np.broadcast_to(columns < 200, (height, width)).copy()
        found |= (np.arange(top, top + height) == 20)[:, None] & (columns == 300)
        return found if found.any() else None


def test_places_without_data_have_no_class_and_are_not_sent(client: Client) -> None:
    pixels = picture(301, 417)
    seen: list[Progress] = []
    found = client.segment_large(Holes(pixels), "land", tile=64, progress=seen.append)
    expected = client.segment(pixels, "land").mask.copy()
    expected[:, :200] = NO_CLASS
    expected[20, 300] = NO_CLASS
    assert found.mask is not None
    assert (found.mask == expected).all()
    assert seen[-1].tiles == found.tiles > seen[-1].sent > 0
    assert sum(entry.pixels for entry in found.class_pixels) == 301 * 217 - 1


def test_tile_beyond_the_servers_limits_is_refused_with_the_limit_and_the_option(client: Client) -> None:
    with pytest.raises(ServerError) as caught:
        client.segment_large(picture(1300, 1300), "land", tile=1200)
    assert caught.value.message == (
        "tiles of 1200x1200 are too large: image is 1200x1200 = 1440000 pixels, want at most 1100000, the server's "
        "limits.max_input_pixels; want smaller ones (--tile)"
    )


def test_killed_front_end_costs_no_more_than_the_tiles_on_their_way(land: Server) -> None:
    pixels = picture(700, 700)
    with Client(land.grpc) as client:
        whole = client.segment(pixels, "land").mask
        left = iter(range(40))

        def kill(_: Progress) -> None:
            if next(left, None) == 39:
                os.kill(land.children()["frontend"], signal.SIGKILL)

        found = client.segment_large(pixels, "land", tile=64, progress=kill)
    assert found.mask is not None
    assert (found.mask == whole).all()


# What follows needs no server: streams that answer, refuse and break as they are told.


def answer(pixels: Pixels) -> Segmentation:
    """Class 1 where a pixel is bright."""
    mask = (pixels[..., 0] > 127).astype(np.uint8)
    return Segmentation(model="land", version=1, mask=mask, confidence=mask, class_pixels=(), timings=TIMINGS)


def refusal(
    reason: str = "QUEUE_FULL", code: grpc.StatusCode = grpc.StatusCode.RESOURCE_EXHAUSTED, after: float | None = 0.001
) -> ServerError:
    return ServerError(code, reason, f"refused: {reason}", after)


def job(pixels: Pixels, halo: int = 8) -> Job:
    served = model(field(halo, halo, 4))
    return Job(ArrayRaster(pixels), plan(*pixels.shape[:2], served, 64), served, None, 0, None)


Stream = Callable[[Iterator[Pixels]], Iterator[large.Answer]]


def test_broken_stream_is_opened_again_for_what_is_unanswered() -> None:
    pixels = picture(400, 300)
    sent: list[int] = []

    def stream(tiles: Iterator[Pixels]) -> Iterator[large.Answer]:
        broken = len(sent) < 2
        sent.append(0)
        for number, tile in enumerate(tiles):
            sent[-1] += 1
            if broken and number == 9:
                raise refusal("UNAVAILABLE", grpc.StatusCode.UNAVAILABLE)
            yield number, answer(tile)

    work = job(pixels)
    found = large.run(work, stream)
    assert found.mask is not None
    assert (found.mask == (pixels[..., 0] > 127)).all()
    assert sent == [10, 10, len(work.plan) - 18]


def test_refused_tiles_are_sent_again_after_a_while() -> None:
    pixels = picture(400, 300)
    refused: set[int] = set()

    def stream(tiles: Iterator[Pixels]) -> Iterator[large.Answer]:
        for number, tile in enumerate(tiles):
            if number % 3 == 0 and len(refused) < 20:
                refused.add(number)
                yield number, refusal()
            else:
                yield number, answer(tile)

    found = large.run(job(pixels), stream)
    assert len(refused) == 20
    assert found.mask is not None
    assert (found.mask == (pixels[..., 0] > 127)).all()


@pytest.mark.parametrize(
    "error",
    [
        refusal("BAD_IMAGE", grpc.StatusCode.INVALID_ARGUMENT, None),
        refusal("RESOURCE_EXHAUSTED", after=None),  # of gRPC itself: a message beyond its limit
        refusal("UNKNOWN_MODEL", grpc.StatusCode.NOT_FOUND, None),
    ],
)
@pytest.mark.parametrize("whole", [False, True])
def test_what_would_be_refused_again_is_raised(error: ServerError, whole: bool) -> None:
    def stream(tiles: Iterator[Pixels]) -> Iterator[large.Answer]:
        next(tiles)
        if whole:
            raise error
        yield 0, error

    with pytest.raises(ServerError, match=error.message):
        large.run(job(picture(200, 200)), stream)


def test_error_of_the_picture_or_the_sink_is_raised() -> None:
    class Broken(ArrayRaster):
        def read(self, top: int, left: int, height: int, width: int) -> Pixels:
            raise BadImage("damaged at the third strip")

    work = job(picture(200, 200))
    work.raster = Broken(picture(200, 200))
    with pytest.raises(BadImage, match="damaged at the third strip"):
        large.run(work, lambda tiles: ((number, answer(tile)) for number, tile in enumerate(tiles)))


def tiles_of(found: Plan, most: int = 4) -> TileQueue:
    return TileQueue(found.tiles(), most)


def test_queue_sends_a_few_tiles_and_waits() -> None:
    queue = tiles_of(plan(600, 100, model(field(8, 8, 4)), 64))
    sent = [queue.next(0.0) for _ in range(4)]
    assert [tile.number for tile in sent if isinstance(tile, tuple)] == [0, 1, 2, 3]
    assert queue.next(0.0) == FOREVER
    queue.answered(sent[2])  # type: ignore[arg-type]
    later = queue.next(0.0)
    assert isinstance(later, tuple)
    assert later.number == 4


def test_queue_does_not_run_far_ahead_of_a_refused_tile() -> None:
    queue = tiles_of(plan(3000, 100, model(field(8, 8, 4)), 64))
    first = queue.next(0.0)
    assert isinstance(first, tuple)
    queue.refused(first, refusal(after=5.0), 0.0)
    numbers = []
    while isinstance(step := queue.next(0.0), tuple):
        numbers.append(step.number)
        queue.answered(step)
    assert numbers == list(range(1, 8))
    assert step == 5.0
    again = queue.next(5.0)
    assert again == first


def test_patience_ends_after_a_minute_of_nothing_but_refusals() -> None:
    queue = tiles_of(plan(600, 100, model(field(8, 8, 4)), 64))
    now, waits = 0.0, []
    lost = refusal("UNAVAILABLE", grpc.StatusCode.UNAVAILABLE, None)
    with suppress(ServerError):
        while now < 1000:
            queue.next(now)
            waits.append(queue.lost(lost, now))
            now += waits[-1]
    assert tile_queue.PATIENCE < now < tile_queue.PATIENCE + 10
    assert waits[0] < waits[1] < waits[-1] == 8.0


def test_answer_renews_the_patience() -> None:
    queue = tiles_of(plan(600, 100, model(field(8, 8, 4)), 64))
    now = 0.0
    for _ in range(5):
        tile, other = queue.next(now), queue.next(now)
        assert isinstance(tile, tuple)
        assert isinstance(other, tuple)
        queue.refused(tile, refusal(after=30.0), now)
        queue.answered(other)
        now += 40.0
    assert now > 3 * tile_queue.PATIENCE


@pytest.mark.parametrize("served", [model(field(8, 8, 4)), model(Seen())])
def test_order_of_the_answers_does_not_matter(served: object) -> None:
    assert not isinstance(served, str)
    found = plan(300, 400, served, 100, None if served.receptive_field.height else 20)  # type: ignore[attr-defined]
    generator = np.random.default_rng(0)
    answers = {
        tile: generator.integers(
            0, 4, (2, tile.rows.stop - tile.rows.start, tile.columns.stop - tile.columns.start), np.uint8
        )
        for tile in found.tiles()
    }
    masks = []
    for seed in range(4):
        parts: list[Pixels] = []
        assembly = Assembly(found, 400, lambda rows, parts=parts: parts.append(rows.copy()))
        order = list(answers)
        random.Random(seed).shuffle(order)
        for tile in order:
            mask, confidence = answers[tile]
            assembly.place(tile, mask, confidence if found.joined else None, None)
        masks.append(np.concatenate(parts))
    assert masks[0].shape == (300, 400)
    assert all((mask == masks[0]).all() for mask in masks[1:])


MEASURED = textwrap.dedent(
    """
    import resource, sys
    import numpy as np
    from convoy.service.client.client import Client

    side, target = int(sys.argv[1]), sys.argv[2]

    class Waves:
        "A picture that is computed where it is read."
        height = width = side
        channels, notes, ground, georeference = 3, (), None, None
        def read(self, top, left, height, width):
            rows = np.arange(top, top + height, dtype=np.uint32)[:, None, None]
            columns = np.arange(left, left + width, dtype=np.uint32)[None, :, None]
            return ((rows * 7 ^ columns * 5) + np.array([0, 90, 180], np.uint32)).astype(np.uint8)
        def absent(self, *window):
            return None

    class Counted:
        rows = 0
        def write(self, rows):
            self.rows += len(rows)

    sink = Counted()
    with Client(target) as client:
        client.segment_large(np.zeros((64, 64, 3), np.uint8), "colours")
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        found = client.segment_large(Waves(), "colours", sink=sink, tile=int(sys.argv[3]))
    assert sink.rows == side
    assert sum(each.pixels for each in found.class_pixels) == side * side
    print(before / 1024, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
    """
)


def most_memory(server: Server, side: int, tile: int) -> tuple[float, float]:
    """The most memory of a process, in MiB, before and after it has segmented a square picture."""
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, str(side), server.grpc, str(tile)],
        capture_output=True,
        text=True,
        timeout=3000,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    before, after = map(float, done.stdout.split())
    return before, after


def test_memory_of_the_client_is_that_of_a_few_strips(land: Server) -> None:
    before, after = most_memory(land, 5_000, 512)
    # The picture has 72 MiB and its mask 24; the tiles on their way have 24, a strip of the mask has 2.
    assert after - before < 50, (before, after)


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_picture_of_40000_by_40000_takes_less_than_600_megabytes(land: Server) -> None:
    _, after = most_memory(land, 40_000, 0)
    print(f"{after:.0f} MiB at most")
    assert after < 600e6 / 2**20
