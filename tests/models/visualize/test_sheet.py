from pathlib import Path

import numpy as np
from PIL import Image

from convoy.models.visualize.sheet import Section, Tile, draw, film


def tile(side: int, value: int = 100, caption: str = "") -> Tile:
    return Tile(np.full((side, side, 1), value, np.uint8), caption)


def test_small_pictures_are_enlarged_to_squares_of_one_colour() -> None:
    checks = Tile(np.array([[[0], [200]], [[200], [0]]], np.uint8))
    pixels = np.asarray(draw("", [Section("", [checks])]).convert("L"))
    assert (pixels == 0).sum() == (pixels == 200).sum() == 2 * 48 * 48


def test_large_pictures_keep_their_pixels() -> None:
    pixels = np.asarray(draw("", [Section("", [tile(300)])]).convert("L"))
    assert (pixels == 100).sum() == 300 * 300


def test_ten_pictures_go_into_even_rows() -> None:
    pixels = np.asarray(draw("", [Section("", [tile(96) for _ in range(10)])]).convert("L")) == 100
    starts = np.flatnonzero(np.diff(pixels.any(axis=1).astype(int)) == 1)
    assert len(starts) == 2
    assert (np.diff(pixels[starts[0] + 1].astype(int)) == 1).sum() == 5


def test_captions_are_never_cut_off() -> None:
    short, long = (draw("", [Section("", [tile(96, caption=text)])]) for text in ("a", "a caption that is much wider"))
    assert long.width > short.width


def test_letters_of_other_languages_are_not_boxes() -> None:
    first, second = (np.asarray(draw("", [Section("", [tile(8, caption=text)])])) for text in ("жук", "кит"))
    assert first.shape != second.shape or (first != second).any()


def test_film_has_all_frames_and_begins_again(tmp_path: Path) -> None:
    sheets = [draw("", [Section("", [tile(96, value)])]) for value in (0, 80, 160, 240)]
    film(sheets, tmp_path / "film.gif")
    with Image.open(tmp_path / "film.gif") as found:
        assert found.n_frames == 4
        assert found.info["loop"] == 0
        assert found.size == sheets[0].size
        middles = []
        for number in range(4):
            found.seek(number)
            middles.append(found.convert("L").getpixel((58, 60)))
    assert np.abs(np.subtract(middles, (0, 80, 160, 240))).max() <= 40
