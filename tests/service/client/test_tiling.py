"""Tiles of a large picture: every pixel is used once, with the pixels around it, from a place where the grids agree."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from convoy.service.client import tiling
from convoy.service.client.results import Context, Input, Model, ReceptiveField
from convoy.service.client.tiling import Plan, plan
from convoy.service.errors import BadRequest

SIDES = st.integers(1, 3000)


def model(
    field: ReceptiveField | None = None, multiple: int = 1, side: int = 0, *, confidence: bool = True, least: int = 1
) -> Model:
    fit = "stretch" if side else "pad"
    return Model(
        model="land",
        version=1,
        state="ready",
        reason="",
        task="segmentation",
        provider="CPUExecutionProvider",
        labels=("a", "b"),
        palette=(),
        input=Input(
            height=side, width=side, multiple=multiple, colour="RGB", fit=fit, min_height=least, min_width=least
        ),
        tensor=None,
        architecture="",
        data="",
        metrics={},
        max_batch_size=32,
        receptive_field=field,
        confidence=confidence,
    )


def field(before: int, after: int, stride: int) -> ReceptiveField:
    context = Context(before=before, after=after, stride=stride)
    return ReceptiveField(height=context, width=context)


def covered(found: Plan, height: int, width: int) -> np.ndarray:
    counts = np.zeros((height, width), int)
    for tile in found.tiles():
        counts[tile.rows.first : tile.rows.last, tile.columns.first : tile.columns.last] += 1
    return counts


@given(
    length=SIDES,
    context=st.tuples(st.integers(0, 90), st.integers(0, 90), st.sampled_from([1, 2, 3, 8, 32])),
    multiple=st.sampled_from([1, 2, 8]),
    tile=st.one_of(st.just(0), st.integers(1, 900)),
)
def test_every_pixel_is_used_once_with_what_affects_it(
    length: int, context: tuple[int, int, int], multiple: int, tile: int
) -> None:
    before, after, stride = context
    try:
        found = plan(length, 10, model(field(*context), multiple), tile)
    except BadRequest:
        assert tile < max(length, 10)
        assert tile < before + after + 4 * stride * multiple
        return
    assert found.exact
    assert (covered(found, length, 10) == 1).all()
    sizes = [span.stop - span.start for span in found.rows]
    assert max(sizes) <= max(tile, 0) or not tile
    for span in found.rows:
        assert 0 <= span.start <= span.first < span.last <= span.stop <= length
        assert span.start % stride == 0
        assert span.start % multiple == 0
        assert span.start == 0 or span.first - span.start >= before
        assert span.stop == length or span.stop - span.last >= after
        assert (span.low, span.high) == (span.first, span.last)
    # One shape, but for what alignment forbids.
    assert len(set(sizes[:-1])) <= 1
    assert len(sizes) == 1 or sizes[0] - sizes[-1] < np.lcm(stride, multiple)


@given(length=SIDES, halo=st.integers(0, 60), tile=st.integers(240, 900), multiple=st.sampled_from([1, 4]))
def test_without_a_field_neighbours_alone_overlap_by_the_halo(length: int, halo: int, tile: int, multiple: int) -> None:
    found = plan(length, 10, model(ReceptiveField(), multiple), tile, halo)
    assert (covered(found, length, 10) == 1).all()
    assert found.joined == (length > tile)
    assert found.exact == (length <= tile)
    spans = found.rows
    for span in spans:
        assert span.start <= span.low <= span.first
        assert span.last <= span.high <= span.stop
        assert span.low in (0, span.first - -(-halo // multiple) * multiple)
    for one, later in zip(spans, spans[2:], strict=False):
        assert one.high <= later.low  # at most four tiles share a pixel


@given(length=SIDES, side=st.integers(8, 300))
def test_network_of_one_size_gets_tiles_of_that_size(length: int, side: int) -> None:
    found = plan(length, side, model(side=side))
    assert (covered(found, length, side) == 1).all()
    assert found.exact == (length == side)
    assert {span.stop - span.start for span in found.rows} == {min(side, length)}


def test_size_is_chosen_by_the_field() -> None:
    unet, fcn = model(field(51, 51, 8), 8), model(field(245, 245, 32))
    assert plan(9000, 9000, unet).size == (1024, 1024)
    assert plan(9000, 9000, unet).halo == ((56, 56), (56, 56))
    assert plan(9000, 9000, fcn).size == (1536, 1536)
    assert plan(9000, 9000, model(field(2000, 2000, 32))).size == (2 * 2016 + 32,) * 2
    assert len(plan(900, 1000, unet)) == 1


def test_context_along_one_axis_alone_is_enough_where_the_other_is_not_cut() -> None:
    rows = ReceptiveField(height=Context(before=4, after=4, stride=1), width=None)
    assert plan(9000, 900, model(rows)).exact
    assert not plan(9000, 1100, model(rows)).exact
    assert [len(plan(9000, 1100, model(rows)).rows), plan(9000, 1100, model(rows)).columns[0].high] == [9, 1024]


@pytest.mark.parametrize(
    ("served", "halo", "note"),
    [
        (model(ReceptiveField()), None, "the mask of 'land' depends on the whole picture, as by global pooling"),
        (model(), None, "the file of 'land' does not say how far around a pixel its mask depends on the picture"),
        (
            model(side=64),
            None,
            "'land' accepts one size only, so there is no mask of the whole picture to compare with",
        ),
        (
            model(field(20, 30, 2)),
            24,
            "the halo is smaller than the receptive field of 'land', which needs 30 pixels or no --halo",
        ),
    ],
)
def test_plan_says_why_it_is_not_exact(served: Model, halo: int | None, note: str) -> None:
    found = plan(3000, 3000, served, 0, halo)
    assert (found.exact, found.note, found.joined) == (False, note, True)


def test_larger_halo_than_needed_stays_exact() -> None:
    found = plan(3000, 3000, model(field(20, 30, 2)), 256, 40)
    assert (found.exact, found.joined, found.halo) == (True, False, ((40, 40), (40, 40)))


def test_without_confidences_the_middle_of_each_tile_is_used() -> None:
    found = plan(3000, 3000, model(ReceptiveField(), confidence=False))
    assert not found.joined
    assert all((span.low, span.high) == (span.first, span.last) for span in found.rows)


@pytest.mark.parametrize(
    ("served", "tile", "halo", "message"),
    [
        (model(), -1, None, "tile is -1, want 1 to 65535 pixels, or 0 for the best size"),
        (model(), 0, -1, "halo is -1, want 0 to 65535 pixels"),
        (model(field(51, 51, 8)), 100, None, "tile is 100, want at least 120 along the height: the halo has 56 and 56"),
        (model(ReceptiveField()), 100, 50, "tile is 100, want at least 200 along the height: the halo has 50 and 50"),
        (model(field(1, 1, 1), least=64), 32, None, "tile is 32, want at least 64 along the height"),
        (model(side=64), 128, None, "tile is 128, want 0: the model accepts 64 pixels of height, no more and no fewer"),
        (model(side=64), 0, 17, "halo is 17, want at most 16, a quarter of the model's height of 64"),
    ],
)
def test_impossible_choice_is_refused(served: Model, tile: int, halo: int | None, message: str) -> None:
    with pytest.raises(BadRequest, match=message):
        plan(3000, 3000, served, tile, halo)


def test_rows_that_are_written_need_few_tiles_again() -> None:
    exact = plan(3000, 1000, model(field(20, 20, 2)), 300)
    row = exact.rows[3].low
    assert next(exact.tiles(row)).row == 3
    joined = plan(3000, 1000, model(ReceptiveField()), 300, 20)
    assert next(joined.tiles(joined.rows[3].low)).row == 2  # its lower end overlaps
    assert list(exact.tiles(3000)) == []
    assert tiling.HALO * 4 <= tiling.SIDE
