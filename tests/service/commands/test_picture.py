import io

import numpy as np
import PIL.Image
import pytest
from rich.console import Console

from convoy.service.commands.picture import cells, characters, half_blocks, read_pixels, symbols
from convoy.service.commands.terminal import bar, plain, shows_colours


def test_half_blocks_show_an_upper_and_a_lower_pixel_in_each_cell():
    pixels = np.array([[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [9, 9, 9]]], np.uint8)
    text = half_blocks(pixels, 2, 1)
    assert text.plain == "▀▀"
    colours = [(span.style.color.triplet, span.style.bgcolor.triplet) for span in text.spans]
    assert colours == [((255, 0, 0), (0, 0, 255)), ((0, 255, 0), (9, 9, 9))]


def test_characters_run_from_dark_to_bright():
    ramp = np.repeat(np.linspace(0, 255, 10).astype(np.uint8)[None, :, None], 3, axis=2)
    assert characters(np.repeat(ramp, 2, axis=0), 10, 1).plain == " .:-=+*#%@"


def test_symbols_draw_each_class():
    mask = np.array([[0, 1], [0, 1], [2, 2], [2, 2]], np.uint8)
    assert symbols(mask, {0: ".", 1: "c", 2: "d"}, 2, 2).plain == ".c\ndd"


@pytest.mark.parametrize(
    ("size", "room", "expected"),
    [((100, 100), (40, 100), (20, 40)), ((100, 100), (100, 10), (10, 20)), ((1, 1000), (50, 10), (1, 50))],
)
def test_picture_keeps_its_ratio_and_fits(size, room, expected):
    assert cells(*size, *room) == expected


def test_image_is_turned_as_its_exif_says():
    image = PIL.Image.new("RGB", (6, 4))
    exif = image.getexif()
    exif[0x0112] = 6  # a quarter turn
    file = io.BytesIO()
    image.save(file, "JPEG", exif=exif)
    assert read_pixels(file.getvalue()).shape == (6, 4, 3)


def test_damaged_image_has_no_picture():
    file = io.BytesIO()
    PIL.Image.new("RGB", (64, 64)).save(file, "PNG")
    assert read_pixels(file.getvalue()) is not None
    assert read_pixels(file.getvalue()[:60]) is None
    assert read_pixels(b"") is None


@pytest.mark.parametrize(("share", "drawn"), [(0, "    "), (1, "████"), (0.5, "██  "), (0.28125, "█▏  "), (2, "████")])
def test_bar_is_as_long_as_its_share(share, drawn):
    assert bar(share, 4) == drawn


def test_text_from_elsewhere_cannot_steer_the_terminal():
    assert plain("a\x1b[31mb\nc[bold]é") == "a?[31mb?c[bold]é"


def test_colours_are_shown_only_where_they_can_be_seen(monkeypatch):
    def on(**settings):
        return shows_colours(Console(file=io.StringIO(), **settings))

    monkeypatch.delenv("NO_COLOR", raising=False)
    assert on(force_terminal=True, color_system="truecolor")
    assert not on(force_terminal=False)
    assert not on(force_terminal=True, color_system=None)
    assert not on(force_terminal=True, color_system="standard")
    monkeypatch.setenv("NO_COLOR", "1")
    assert not on(force_terminal=True, color_system="truecolor")


def test_picture_is_read_as_a_server_sees_it():
    file = io.BytesIO()
    pixels = np.array([[[10, 20, 30, 255], [10, 20, 30, 0]]], np.uint8)
    PIL.Image.fromarray(pixels, "RGBA").save(file, "PNG")
    assert read_pixels(file.getvalue()).tolist() == [[[10, 20, 30], [255, 255, 255]]]
    deep = io.BytesIO()
    PIL.Image.fromarray(np.array([[0, 257, 65535]], np.uint16)).save(deep, "PNG")
    assert read_pixels(deep.getvalue()).tolist() == [[[0] * 3, [1] * 3, [255] * 3]]
