import io

import PIL.Image
import pytest

from convoy.service.bench.vision import from_folder, generated
from convoy.service.errors import BadConfig


@pytest.mark.parametrize(("colour", "mode"), [("L", "L"), ("RGB", "RGB")])
def test_generated_images_have_the_sizes_and_the_colour_and_differ(colour, mode):
    files = generated(colour, [(28, 32), (40, 20)])
    images = [PIL.Image.open(io.BytesIO(file)) for file in files]
    assert {(image.format, image.size, image.mode) for image in images} == {
        ("PNG", (32, 28), mode),
        ("PNG", (20, 40), mode),
    }
    assert len(set(files)) == len(files) > 2
    assert generated(colour, [(28, 32), (40, 20)]) == files


def test_folder_without_images_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("no image")
    with pytest.raises(BadConfig, match="contains no JPEG or PNG file"):
        from_folder(tmp_path)
