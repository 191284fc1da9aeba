import io

import numpy as np
import PIL.Image
import pytest
from rich.console import Console

from convoy.service.client.client import Client
from convoy.service.commands.picture import palette_of
from convoy.service.commands.segment import show
from convoy.service.images.overlay import overlay


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def scene(folder):
    """20 wide, 12 high: bright on the right half, so class 1 there; class 2 in the first row."""
    pixels = np.zeros((12, 20, 3), np.uint8)
    pixels[:, 10:] = 200
    PIL.Image.fromarray(pixels).save(folder / "scene.png")
    return pixels


MASK = np.repeat(np.repeat([[0, 1]], 10, axis=1), 12, axis=0).astype(np.uint8)
MASK[0] = 2


def opened(path):
    image = PIL.Image.open(path)
    return image, np.asarray(image)


@pytest.mark.parametrize("mask_format", ["raw", "png", "rle"])
def test_mask_is_written_as_palette_png_whatever_way_it_travels(convoy, vision_target, folder, scene, mask_format):
    done = convoy("segment", "scene.png", "-o", "out.png", "--format", mask_format, "--server", vision_target)
    assert (done.returncode, done.stderr) == (0, "")
    image, indices = opened(folder / "out.png")
    np.testing.assert_array_equal(indices, MASK)
    assert image.mode == "P"
    assert image.getpalette()[:9] == [0, 0, 0, 255, 0, 0, 0, 0, 255]


def test_overlay_lies_half_transparent_over_the_image(convoy, vision_target, folder, scene):
    assert convoy("segment", "scene.png", "-o", "out.png", "--server", vision_target).returncode == 0
    _, blended = opened(folder / "out-overlay.png")
    assert blended.shape == (12, 20, 3)
    assert blended[5, 0].tolist() == [0, 0, 0]  # black under black
    assert blended[5, 15].tolist() == [228, 100, 100]  # 200 grey under red
    assert blended[0, 0].tolist() == [0, 0, 128]  # black under blue


def test_overlay_leaves_its_arguments_alone():
    pixels, mask = np.full((2, 2, 3), 100, np.uint8), np.ones((2, 2), np.uint8)
    overlay(pixels, mask, palette_of((), 2))
    assert (pixels == 100).all()


def test_confidence_is_written_as_a_grey_png_only_when_asked_for(convoy, vision_target, folder, scene):
    convoy("segment", "scene.png", "-o", "out.png", "--server", vision_target)
    assert sorted(path.name for path in folder.iterdir()) == ["out-overlay.png", "out.png", "scene.png"]
    convoy("segment", "scene.png", "-o", "out.png", "--confidence", "sure.png", "--server", vision_target)
    image, values = opened(folder / "sure.png")
    assert (image.mode, values.shape, set(values.flat)) == ("L", (12, 20), {200})


def test_classes_are_listed_by_size_with_their_marks_in_the_picture(convoy, vision_target, scene):
    lines = convoy("segment", "scene.png", "-o", "out.png", "--server", vision_target).stdout.splitlines()
    assert lines[0] == "scene.png  pets version 2 · 20×12"
    rows = [line[32:].split()[:4] for line in lines[2:5]]
    assert rows == [["·", "background", "110", "45.8%"], ["c", "cat", "110", "45.8%"], ["d", "dog", "20", "8.3%"]]
    assert lines[1].startswith("dddd")
    assert lines[4].startswith("················cccccccccccccccc")
    assert lines[-1] == "wrote out.png, out-overlay.png"
    assert max(map(len, lines)) <= 80


def test_class_without_a_pixel_is_not_listed(convoy, vision_target, folder):
    PIL.Image.fromarray(np.zeros((4, 4), np.uint8)).save(folder / "dark.png")
    assert "cat" not in convoy("segment", "dark.png", "-o", "out.png", "--server", vision_target).stdout


def test_picture_and_table_are_in_the_masks_colours_on_a_terminal(vision_target, scene, monkeypatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    with Client(vision_target) as client:
        answer = client.segment("scene.png")
    palette = palette_of(((0, 0, 0), (255, 0, 0), (0, 0, 255)), 3)
    file = io.StringIO()
    screen = Console(file=file, width=80, force_terminal=True, color_system="truecolor", legacy_windows=False)
    show(screen, "scene.png", answer, overlay(scene, answer.mask, palette), palette)
    assert "\x1b[38;2;228;100;100;48;2;228;100;100m▀" in file.getvalue()  # the picture: grey under red
    assert "\x1b[48;2;255;0;0m  \x1b[0m" in file.getvalue()  # the table: the class's own red


def test_model_without_colours_gets_different_ones_for_each_class():
    palette = palette_of((), 256)
    assert palette.shape == (256, 3)
    assert palette[0].tolist() == [0, 0, 0]
    near = np.abs(palette[1:-1].astype(int) - palette[2:]).sum(axis=1)
    assert near.min() > 100


def test_refused_image_is_a_line_and_exit_code_1_and_writes_nothing(convoy, vision_target, folder):
    (folder / "bad.png").write_text("no image")
    done = convoy("segment", "bad.png", "-o", "out.png", "--server", vision_target)
    assert (done.returncode, done.stderr) == (1, "")
    assert done.stdout == "bad.png  image is not a PNG, want a JPEG or PNG file\n"
    assert [path.name for path in folder.iterdir()] == ["bad.png"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["-o", "o.png", "--confidence", "o.png"], "--output and --confidence are both 'o.png'"),
        (["-o", "o.png", "--confidence", "../{folder}/o.png"], "--output and --confidence are both 'o.png'"),
        (["-o", "o.png", "--confidence", "o-overlay.png"], "its overlay and --confidence are both 'o-overlay.png'"),
        (["-o", "scene.png"], "IMAGE and --output are both 'scene.png'"),
        (["-o", "o.png", "--confidence", "scene.png"], "IMAGE and --confidence are both 'scene.png'"),
    ],
)
def test_file_that_would_be_written_over_another_is_refused_before_asking(
    convoy, vision_target, fake_vision, folder, scene, arguments, said
):
    before = (folder / "scene.png").read_bytes()
    words = [word.format(folder=folder.name) for word in arguments]
    done = convoy("segment", "scene.png", *words, "--server", vision_target)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"convoy segment: {said}, want different files\n"
    assert [path.name for path in folder.iterdir()] == ["scene.png"]
    assert (folder / "scene.png").read_bytes() == before
    assert fake_vision.requests == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["absent.png", "-o", "out.png"], "absent.png"),
        (["scene.png", "-o", "."], "--output '.', want a name that ends in .png"),
        (["scene.png", "-o", "out.jpg"], "--output 'out.jpg', want a name that ends in .png"),
        (["scene.png", "-o", "out.png", "--confidence", "sure"], "--confidence 'sure', want a name that ends in .png"),
        (["scene.png", "-o", "no/folder/out.png"], "cannot write 'no/folder/out.png'"),
        (["scene.png", "-o", "out.png", "--model", "missing"], "no model 'missing'"),
    ],
)
def test_what_cannot_be_done_is_one_line_and_exit_code_2(convoy, vision_target, scene, arguments, said):
    done = convoy("segment", *arguments, "--server", vision_target)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert said in done.stderr
