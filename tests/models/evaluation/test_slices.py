"""Images by their size."""

import pytest

from convoy.models.errors import BadTraining
from convoy.models.evaluation.slices import names, parse, place, side, thirds


def test_side_is_that_of_a_square_of_the_same_area() -> None:
    assert side((4, 9)) == 6


def test_thirds_are_equally_many_images() -> None:
    sides = [float(number) for number in range(1, 10)]
    bounds = thirds(sides)
    assert [[each for each in sides if place(each, bounds) == number] for number in range(3)] == [
        [1, 2, 3],
        [4, 5, 6],
        [7, 8, 9],
    ]


def test_images_of_one_size_stay_together() -> None:
    assert thirds([5.0] * 4 + [9.0]) == [5.0]
    assert thirds([5.0] * 4) == []


def test_bounds_are_read_and_name_the_slices() -> None:
    assert parse("32,96") == [32, 96]
    assert names([32, 96]) == ["small, up to 32 px", "medium, 32 to 96 px", "large, above 96 px"]
    assert names([64]) == ["up to 64 px", "above 64 px"]
    assert [place(each, [32, 96]) for each in (32, 32.1, 96, 97)] == [0, 1, 1, 2]


@pytest.mark.parametrize("text", ["", "32,", "96,32", "32,32", "0,32", "small", "-3"])
def test_bounds_that_are_no_ascending_sides_are_refused(text: str) -> None:
    with pytest.raises(BadTraining, match="want ascending sides"):
        parse(text)
