import io

import pytest
from rich.console import Console

from convoy.service.commands.raster_options import area_table, stretch_of
from convoy.service.errors import BadConfig
from convoy.service.rasters.areas import ClassArea
from convoy.service.rasters.samples import Stretch


def test_a_range_has_two_ends() -> None:
    assert stretch_of("") is None
    assert stretch_of("0:3000") == Stretch(0, 3000)
    assert stretch_of("-1.5:2e3") == Stretch(-1.5, 2000)


@pytest.mark.parametrize("text", ["5", "5:5", "9:2", "a:b", ":", "nan:3", "0:inf", "0:nan", "-inf:0"])
def test_other_ranges_are_refused(text: str) -> None:
    with pytest.raises(BadConfig, match="want LOW:HIGH such as 0:3000"):
        stretch_of(text)


def shown(areas: list[ClassArea]) -> list[str]:
    screen = Console(file=io.StringIO(), width=80)
    screen.print(area_table(areas))
    return screen.file.getvalue().splitlines()  # type: ignore[attr-defined, no-any-return]


def test_areas_are_listed_from_the_largest() -> None:
    lines = shown(
        [
            ClassArea(0, "field", 250, 0.2, 2_500_000.0, "m2"),
            ClassArea(1, "house", 1000, 0.8, 10_000_000.0, "m2"),
            ClassArea(2, "sea", 0, 0.0, 0.0, "m2"),
        ]
    )
    assert lines[0].split() == ["class", "pixels", "share", "area"]
    assert lines[1].split() == ["house", "1,000", "80.0%", "10.000", "km²"]
    assert lines[2].split() == ["field", "250", "20.0%", "2.500", "km²"]
    assert len(lines) == 3


def test_without_a_scale_there_are_pixels_alone() -> None:
    assert shown([ClassArea(0, "field", 250, 1.0, None, "")])[1].split() == ["field", "250", "100.0%"]
    assert shown([ClassArea(0, "cell", 250, 1.0, 62.5, "um2")])[1].split()[-2:] == ["62.5", "µm²"]
