"""Template matching: the exact pixel, under any light, against the formula worked out window by window."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from PIL import Image

from convoy.models import template as templates
from convoy.models.data.builtin import scenes
from convoy.models.errors import BadData, BadModelName, BadTemplate
from convoy.models.template import network, publish_template
from convoy.service import cli, metadata

Pixels = NDArray[np.uint8]


def answers(template: Pixels, *images: Pixels) -> tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.float32]]:
    """Heat maps, locations and scores of images of one size."""
    model = network(template, "waldo", "crop.png")
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    heat_map, location, score = session.run(None, {"image": np.stack(images)})
    return heat_map, location, score


def by_the_formula(template: Pixels, image: Pixels) -> NDArray[np.float64]:
    """Equation 2 of the paper for each window by itself, with 0 where a window has no variance."""
    t = template.astype(np.float64)
    t -= t.mean(axis=(0, 1))
    windows = np.lib.stride_tricks.sliding_window_view(image.astype(np.float64), t.shape[:2], axis=(0, 1))
    centred = windows - windows.mean(axis=(-1, -2), keepdims=True)  # (rows, columns, C, h, w)
    numerator = (centred * t.transpose(2, 0, 1)).sum(axis=(2, 3, 4))
    denominator = np.sqrt((centred**2).sum(axis=(2, 3, 4)) * (t**2).sum())
    return np.divide(numerator, denominator, out=np.zeros_like(numerator), where=denominator > 0)


def lit(image: Pixels, contrast: float, brightness: float) -> Pixels:
    return np.clip(np.rint(image * contrast + brightness), 0, 255).astype(np.uint8)


def cut(image: Pixels, row: int, column: int, height: int, width: int) -> Pixels:
    return image[row : row + height, column : column + width]


@pytest.mark.parametrize("colour", ["RGB", "L"])
@pytest.mark.parametrize("size", [(9, 7), (1, 12), (12, 1), (40, 50)])
def test_heat_map_is_the_formula(size: tuple[int, int], colour: str) -> None:
    grain = np.random.default_rng(1).integers(0, 60, (40, 50, 3), dtype=np.uint8)
    image = scenes.draw("test", 1, (40, 50)).image // 2 + grain
    image = image if colour == "RGB" else image[..., :1]
    template = cut(image, (40 - size[0]) // 2, (50 - size[1]) // 3, *size)
    other = image[::-1, ::-1]
    heat_maps, locations, scores = answers(template, image, other)
    assert heat_maps.shape == (2, 41 - size[0], 51 - size[1])
    for heat_map, location, score, picture in zip(heat_maps, locations, scores, (image, other), strict=True):
        expected = by_the_formula(template, picture)
        np.testing.assert_allclose(heat_map, expected, atol=1e-4)
        assert tuple(location) == np.unravel_index(heat_map.argmax(), heat_map.shape)
        assert score == heat_map.max()


@pytest.mark.parametrize("index", range(4))
@pytest.mark.parametrize(("contrast", "brightness"), [(1, 0), (0.5, 0), (0.4, 140), (0.25, 5), (-0.5, 200)])
def test_crop_is_found_at_the_exact_pixel_whatever_the_light(index: int, contrast: float, brightness: float) -> None:
    image = scenes.draw("test", index, (72, 96)).image
    random = np.random.default_rng(index)
    places = [(int(random.integers(0, 72 - 16)), int(random.integers(0, 96 - 20))) for _ in range(2)]
    for row, column in [*places, (0, 0), (72 - 16, 96 - 20)]:
        template = cut(image, row, column, 16, 20)
        heat_map, location, score = answers(template, lit(image, contrast, brightness))
        if contrast > 0:
            assert location.tolist() == [[row, column]]
            assert score[0] >= (0.999 if contrast == 1 else 0.95)  # grey levels are whole numbers
        else:  # a negative looks least like it there
            assert location.tolist() != [[row, column]]
            assert heat_map[0, row, column] <= -0.95


def test_crop_of_another_picture_is_not_found() -> None:
    first, second = (scenes.draw("test", index, (72, 96)).image for index in (0, 1))
    _, _, scores = answers(cut(first, 20, 30, 24, 24), first, second)
    assert scores[0] >= 0.999
    assert scores[1] < 0.8


@pytest.mark.parametrize("level", [3, 128, 250])
def test_faint_noise_is_found_and_what_is_flat_is_not(level: int) -> None:
    """Where float32 loses a window's variance: its squares are 10,000 times larger, or there is none."""
    random = np.random.default_rng(level)
    image = random.integers(0, 256, (120, 160, 3), dtype=np.uint8)
    image[10:110, 10:150] = level
    image[20:60, 20:80] += random.integers(0, 2, (40, 60, 3), dtype=np.uint8)
    heat_map, location, score = answers(cut(image, 24, 30, 30, 40), image)
    assert location.tolist() == [[24, 30]]
    assert score[0] >= 0.999
    np.testing.assert_allclose(heat_map[0], by_the_formula(cut(image, 24, 30, 30, 40), image), atol=1e-3)
    flat = heat_map[0, 60 : 110 - 30 + 1, 10 : 150 - 40 + 1]
    assert flat.size > 1000
    assert not flat.any()


def test_single_faint_pixel_makes_no_likeness_of_its_own() -> None:
    image = np.full((80, 90, 3), 251, np.uint8)
    image[40, 45] = 250
    image[:16, :16] = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    heat_map, location, score = answers(image[:16, :16], image)
    assert location.tolist() == [[0, 0]]
    assert score[0] >= 0.999
    np.testing.assert_allclose(heat_map[0], by_the_formula(image[:16, :16], image), atol=1e-3)


def test_constant_image_answers_nothing() -> None:
    template = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    for level in (0, 77, 255):
        heat_map, location, score = answers(template, np.full((20, 30, 3), level, np.uint8))
        assert not heat_map.any()
        assert (location.tolist(), score.tolist()) == ([[0, 0]], [0.0])


def test_pictures_of_a_batch_answer_as_they_do_alone() -> None:
    images = [scenes.draw("test", index, (48, 64)).image for index in range(3)]
    template = cut(images[1], 11, 17, 12, 12)
    together = answers(template, *images)
    for index, image in enumerate(images):
        for whole, alone in zip(together, answers(template, image), strict=True):
            np.testing.assert_allclose(whole[index], alone[0], atol=1e-6)


def test_file_says_what_it_finds_and_how_large_an_image_must_be(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    Image.fromarray(random.integers(0, 256, (13, 21), dtype=np.uint8)).save(tmp_path / "grey.png")
    file, size = publish_template(tmp_path / "grey.png", tmp_path / "repository", "waldo")
    assert file == tmp_path / "repository" / "waldo" / "1" / "model.onnx"
    assert size == (13, 21)
    model = onnx.load(file)
    document = metadata.decode({entry.key: entry.value for entry in model.metadata_props})
    assert document is not None
    assert (document.task, document.labels) == ("matching", ["waldo"])
    assert (document.image.colour, document.image.min_height, document.image.min_width) == ("L", 13, 21)
    assert [model.opset_import[0].version, model.ir_version] == [18, 10]
    again, _ = publish_template(tmp_path / "grey.png", tmp_path / "repository", "waldo")
    assert again.parent.name == "2"


def test_transparent_parts_count_as_white(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (9, 9, 4), dtype=np.uint8)
    pixels[..., 3] = np.where(pixels[..., 3] > 127, 255, 0)
    Image.fromarray(pixels, "RGBA").save(tmp_path / "clear.png")
    file, _ = publish_template(tmp_path / "clear.png", tmp_path / "repository", "waldo")
    on_white = np.where(pixels[..., 3:] > 0, pixels[..., :3], 255).astype(np.uint8)
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    assert session.run(["score"], {"image": on_white[None]})[0][0] >= 0.999


@pytest.mark.parametrize("colour", [(0, 0, 0), (10, 200, 30)])
def test_template_of_one_colour_is_refused(colour: tuple[int, int, int]) -> None:
    with pytest.raises(BadTemplate, match="7x5 pixels of one colour"):
        network(np.full((5, 7, 3), colour, np.uint8), "waldo", "")
    with pytest.raises(BadTemplate, match="1x1 pixels of one colour"):
        network(np.full((1, 1, 3), colour, np.uint8), "waldo", "")


def test_template_with_too_many_pixels_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(templates, "MAX_PIXELS", 99)
    with pytest.raises(BadTemplate, match="10x10 pixels, want at most 99"):
        network(np.zeros((10, 10, 1), np.uint8), "waldo", "")


def test_largest_template_keeps_its_sums_in_63_bits() -> None:
    n = templates.MAX_PIXELS
    assert n * (n * 3 * 255**2) < 2**63
    assert 3 * (n * 255) ** 2 < 2**63


def test_what_cannot_be_a_template_writes_nothing(tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no picture")
    Image.new("RGB", (9, 9), "red").save(tmp_path / "red.png")
    repository = tmp_path / "repository"
    for path, name, error in (
        (tmp_path / "text.png", "waldo", BadData),
        (tmp_path / "absent.png", "waldo", BadData),
        (tmp_path / "red.png", "waldo", BadTemplate),
        (tmp_path / "red.png", "../waldo", BadModelName),
        (tmp_path / "red.png", "Waldo", BadModelName),
    ):
        with pytest.raises(error):
            publish_template(path, repository, name)
    assert not repository.exists()


def test_command_says_what_comes_next_or_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.fromarray(scenes.draw("test", 0, (32, 40)).image).save(tmp_path / "crop.png")
    arguments = ["template", str(tmp_path / "crop.png"), "--repository", str(tmp_path / "repository"), "--name"]
    assert cli.run([*arguments, "waldo"]) == 0
    assert "finds 40x32 pixels, version 1" in capsys.readouterr().out
    assert cli.run([*arguments, "Bad Name"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
