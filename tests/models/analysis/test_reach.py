"""The arithmetic of receptive fields, against sets of places followed one by one."""

from fractions import Fraction
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from convoy.models.analysis.reach import ITSELF, Reach, bins, resized, spread, union, whole, window

Layer = tuple[str, int, int, int, int]  # kind, kernel, stride, before, dilation

windows = st.tuples(st.just("window"), st.integers(1, 4), st.integers(1, 3), st.integers(-2, 3), st.integers(1, 3))
# A kernel at least as long as the stride: nothing between the kernels is left unseen.
spreads = st.integers(1, 3).flatmap(
    lambda stride: st.tuples(
        st.just("spread"), st.integers(stride, stride + 2), st.just(stride), st.integers(0, 2), st.just(1)
    )
)


def seen(layer: Layer, places: set[int]) -> set[int]:
    """The places of the input that these places of the answer see, from the definition of the layer."""
    kind, kernel, stride, before, dilation = layer
    taps = range(0, dilation * kernel, dilation)
    if kind == "window":
        return {place * stride - before + tap for place in places for tap in taps}
    sources = range((min(places) + before - kernel) // stride, (max(places) + before) // stride + 1)
    return {source for source in sources for tap in taps if source * stride - before + tap in places}


def field(layers: list[Layer]) -> Reach:
    reach = ITSELF
    for kind, *numbers in layers:
        reach = reach.compose({"window": window, "spread": spread}[kind](*numbers))
    return reach


@given(st.lists(windows | spreads, min_size=1, max_size=5), st.integers(0, 12))
def test_field_spans_the_places_that_are_seen(layers: list[Layer], place: int) -> None:
    places = {place}
    for layer in reversed(layers):
        places = seen(layer, places)
    assert field(layers).at(place) == (min(places), max(places))


@given(st.lists(windows, min_size=1, max_size=6))
def test_windows_agree_with_the_recurrence(layers: list[Layer]) -> None:
    size, jump, centre = 1, 1, Fraction(0)
    for _, kernel, stride, before, dilation in layers:
        reach = dilation * (kernel - 1)
        size, centre, jump = size + reach * jump, centre + (Fraction(reach, 2) - before) * jump, jump * stride
    answer = field(layers)
    assert (answer.size, answer.stride, answer.offset) == (size, jump, centre)


def test_upsampling_takes_the_centre_back_to_where_it_was() -> None:
    halved = ITSELF.compose(window(2, 2))
    assert (halved.size, halved.stride, halved.offset) == (2, 2, Fraction(1, 2))
    doubled = halved.compose(spread(2, 2))
    assert (doubled.size, doubled.stride, doubled.offset) == (2, 1, 0)
    assert [doubled.at(place) for place in range(4)] == [(0, 1), (0, 1), (2, 3), (2, 3)]


@pytest.mark.parametrize(("taps", "shift"), [(1, 0.0), (2, 0.5)])
@pytest.mark.parametrize(("side", "new_side"), [(3, 12), (5, 7), (7, 5), (4, 8)])
def test_interpolation_sees_the_neighbours_of_the_new_centre(side: int, new_side: int, taps: int, shift: float) -> None:
    reach = resized(side, new_side, taps)
    for place in range(new_side):
        first, last = reach.at(place)
        centre = (place + shift) * side / new_side - shift
        assert first <= centre < last + 1
        assert last - first < taps


def test_interpolation_of_a_single_place_sees_it_all() -> None:
    assert [resized(1, 6, 2).at(place) for place in range(6)] == [(0, 0)] * 6
    assert resized(6, 1, 2).at(0) == (0, 5)


@pytest.mark.parametrize(("side", "count"), [(7, 3), (6, 3), (3, 4), (8, 1)])
def test_bins_leave_no_place_out(side: int, count: int) -> None:
    spans = [bins(side, count).at(place) for place in range(count)]
    assert spans[0][0] == 0
    assert spans[-1][1] == side - 1
    assert all(after[0] <= before[1] + 1 for before, after in pairwise(spans))


def test_branches_together_see_what_either_sees() -> None:
    straight, wide = window(1, 2), window(3, 2, before=1)
    both = union([straight, wide], 8)
    assert both == wide
    shifted = union([straight, window(3, 2)], 8)
    assert shifted.at(0) == (0, 2)
    assert not shifted.centred
    assert shifted.compose(window(3)).centred is False


def test_branch_that_sees_everything_leaves_nothing_to_the_other() -> None:
    both = union([window(3, before=1), whole(8)], 8)
    assert both.jump == 0
    assert both.at(5) == (-1, 8)
